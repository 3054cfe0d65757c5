"""Response log-probabilities: float32, response tokens only, the head in tiles, its gradient made in the forward.

Legend: B pairs, S scored response tokens, V vocabulary, h width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simpo.activations import remaking
from simpo.attention import PairLayout
from simpo.errors import ConfigError
from simpo.packing import MicroBatch

TILE_ROWS = 256
"""Least rows of a head tile (whole pairs are merged up to it): smaller products leave the processor idle."""
SOFTMAX_ENTRIES = 2**18
"""Logits that are in float32 at one time on a CPU: they stay in its cache (4 times faster than 8 MB pieces)."""
RARE = 1e-30
"""Probability below which a target's logarithm is taken from the logits: float32 ends at 1e-38."""


@dataclass(frozen=True)
class Scores:
    """Sum and length of each response's log-probability. Length normalisation belongs to the objectives, not here."""

    chosen_sum_B: Tensor
    rejected_sum_B: Tensor
    chosen_len_B: Tensor
    rejected_len_B: Tensor
    mean_chosen_len: float
    """Chosen tokens per pair over the *global* batch: turns a sum over a pair into its share of a token mean."""
    ref_chosen_sum_B: Tensor | None = None
    ref_rejected_sum_B: Tensor | None = None
    kl: float | None = None
    """KTO's z: the batch's estimate of the KL divergence from the reference, detached, at least 0."""

    @property
    def chosen_mean_B(self) -> Tensor:
        """a_w = S_w / n_w, in nats per token."""
        return self.chosen_sum_B / self.chosen_len_B

    @property
    def rejected_mean_B(self) -> Tensor:
        """a_l = S_l / n_l, in nats per token."""
        return self.rejected_sum_B / self.rejected_len_B

    def reference(self) -> tuple[Tensor, Tensor]:
        """(R_w, R_l); ConfigError if they were never computed."""
        if self.ref_chosen_sum_B is None or self.ref_rejected_sum_B is None:
            raise ConfigError("this method needs reference log-probabilities: pass reference= to fit()", "reference")
        return self.ref_chosen_sum_B, self.ref_rejected_sum_B

    def with_sums(self, chosen_sum_B: Tensor, rejected_sum_B: Tensor) -> "Scores":
        """The same responses with other sums (leaves of a gradient)."""
        return dataclasses.replace(self, chosen_sum_B=chosen_sum_B, rejected_sum_B=rejected_sum_B)


Coefficients = Callable[[Tensor, Sequence[int]], Tensor]
"""(sums_2b, positions of the b pairs in the micro-batch) -> dLoss/dsum of the 2b responses of one tile."""


def hidden_rows(model: Any, batch: MicroBatch, embedded_1Th: Tensor | None = None) -> Tensor:
    """The S hidden states that predict response tokens, shape (S, h), after the final norm.

    `embedded_1Th`: the tokens' embeddings, for a caller who wants the gradient by them; None: the model looks them up.
    """
    layout = PairLayout.of(batch, batch.input_ids_T.device)
    with remaking():
        output = model.get_decoder()(
            **({"input_ids": batch.input_ids_T[None]} if embedded_1Th is None else {"inputs_embeds": embedded_1Th}),
            position_ids=batch.position_ids_T[None],
            use_cache=False,
            pair_layout=layout,
        )
    rows: Tensor = output.last_hidden_state[0][batch.source_S]
    return rows


def softcap_of(model: Any) -> float | None:
    """The soft cap of the model's logits, which is not part of its head's weight; None for most models."""
    softcap: float | None = getattr(model.config, "final_logit_softcapping", None)
    return softcap


def head_sums(
    hidden_Sh: Tensor, weight_Vh: Tensor, batch: MicroBatch, *, softcap: float | None = None
) -> Tensor:
    """Summed log-probability of each response, shape 2B (chosen, rejected in turn), float32, without a gradient."""
    sums_2B = torch.zeros(2 * batch.num_pairs, dtype=torch.float64, device=hidden_Sh.device)
    for tile in tiles(batch):
        rows = slice(tile.first_row, tile.end_row)
        logits_SV = hidden_Sh[rows] @ weight_Vh.t()
        logp_S = _target_log_probabilities(logits_SV, batch.target_S[rows], softcap)
        sums_2B.index_add_(0, batch.owner_S[rows], logp_S)
    return sums_2B.float()


def head_with_gradient(
    hidden_Sh: Tensor,
    weight_Vh: Tensor,
    batch: MicroBatch,
    coefficients: Coefficients,
    grad_weight_Vh: Tensor | None,
    *,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums of the responses and the loss's gradient by the hidden rows, in one pass over the vocabulary.

    Possible because the objectives are separable over pairs: once a pair's two sums are known, so is the coefficient
    dLoss/dlogp of each of its tokens (equal to dLoss/dS of its response), and the softmax's gradient follows from
    probabilities that are still at hand:

        dLoss/dlogit_tv = -coefficient_t * error_tv,   error_tv = softmax_tv - [v = target_t]

    (times the slope 1 - tanh^2(logit_tv / softcap) where the model has a soft cap). The coefficient is constant along a
    row, so it goes to the thin side of each product, and the S x V errors are touched once.

    Returns (sums_2B float32, gradient of shape (S, h)). `grad_weight_Vh` (float32) collects the head's own gradient,
    or is None when the head is frozen. No autograd graph is made.
    """
    sums_2B = torch.zeros(2 * batch.num_pairs, dtype=torch.float64, device=hidden_Sh.device)
    grad_Sh = torch.empty_like(hidden_Sh)
    for tile in tiles(batch):
        rows, sides = slice(tile.first_row, tile.end_row), slice(2 * tile.pairs[0], 2 * tile.pairs[-1] + 2)
        hidden, target, owner = hidden_Sh[rows], batch.target_S[rows], batch.owner_S[rows]
        errors_SV = hidden @ weight_Vh.t()
        logp_S = _target_log_probabilities(errors_SV, target, softcap, errors_SV)
        sums_2B.index_add_(0, owner, logp_S)
        coefficient_S1 = -coefficients(sums_2B[sides].float(), tile.pairs)[owner - sides.start][:, None]
        grad_Sh[rows] = (errors_SV @ weight_Vh).float() * coefficient_S1
        if grad_weight_Vh is not None:
            weighted = (hidden.float() * coefficient_S1).to(hidden.dtype)
            if weighted.dtype == grad_weight_Vh.dtype:
                grad_weight_Vh.addmm_(errors_SV.t(), weighted)
            else:
                grad_weight_Vh += errors_SV.t() @ weighted
    return sums_2B.float(), grad_Sh


@dataclass(frozen=True)
class Tile:
    """Consecutive whole pairs of a micro-batch whose rows go through the head together."""

    first_row: int
    end_row: int
    pairs: range


def tiles(batch: MicroBatch) -> list[Tile]:
    """Merge whole pairs until a tile has TILE_ROWS rows."""
    made: list[Tile] = []
    row = first_row = first_pair = 0
    for pair, segment in enumerate(batch.segments):
        row += segment.chosen + segment.rejected
        if row - first_row >= TILE_ROWS or pair == batch.num_pairs - 1:
            made.append(Tile(first_row, row, range(first_pair, pair + 1)))
            first_row, first_pair = row, pair + 1
    return made


def scores_of(
    sums_2B: Tensor,
    lengths_2B: Tensor,
    *,
    mean_chosen_len: float,
    reference_2B: Tensor | None = None,
    kl: float | None = None,
) -> Scores:
    """Divide the interleaved sums of a micro-batch into the two sides."""
    lengths_2B = lengths_2B.to(sums_2B.dtype)
    return Scores(
        chosen_sum_B=sums_2B[0::2],
        rejected_sum_B=sums_2B[1::2],
        chosen_len_B=lengths_2B[0::2],
        rejected_len_B=lengths_2B[1::2],
        mean_chosen_len=mean_chosen_len,
        ref_chosen_sum_B=None if reference_2B is None else reference_2B[0::2],
        ref_rejected_sum_B=None if reference_2B is None else reference_2B[1::2],
        kl=kl,
    )


@torch.no_grad()
def score_pairs(model: Any, batches: Sequence[MicroBatch]) -> Scores:
    """Score packed pairs without a gradient. Row i of the result is pair id i; the batches must hold each id once."""
    num_pairs = sum(batch.num_pairs for batch in batches)
    sums_N2 = torch.zeros(num_pairs, 2, dtype=torch.float32)
    lengths_N2 = torch.zeros(num_pairs, 2, dtype=torch.float32)
    for batch in batches:
        batch = batch.to(model.device)
        ids = torch.tensor(batch.pair_ids)
        head = model.get_output_embeddings().weight
        sums_2B = head_sums(hidden_rows(model, batch), head, batch, softcap=softcap_of(model))
        sums_N2[ids] = sums_2B.view(-1, 2).cpu()
        lengths_N2[ids] = batch.lengths_2B.view(-1, 2).float().cpu()
    return Scores(
        chosen_sum_B=sums_N2[:, 0],
        rejected_sum_B=sums_N2[:, 1],
        chosen_len_B=lengths_N2[:, 0],
        rejected_len_B=lengths_N2[:, 1],
        mean_chosen_len=float(lengths_N2[:, 0].mean()),
    )


def _target_log_probabilities(
    logits_SV: Tensor, target_S: Tensor, softcap: float | None, errors_SV: Tensor | None = None
) -> Tensor:
    """Log-probability of each row's target, shape S; `errors_SV` (it may be the logits) takes the errors.

    The upcast matters: log-softmax in bfloat16 shifts an average by -0.017, that is 0.17 in reward at beta 10. An error
    is rounded once, after the subtraction, so a probability close to 1 leaves an exact gradient. The result is float64
    for the sums over hundreds of tokens that follow: one after another in float32 they would lose 1e-5 of an average.
    """
    logp_S = torch.empty(len(target_S), dtype=torch.float64, device=logits_SV.device)
    rows_at_once = max(1, SOFTMAX_ENTRIES // logits_SV.shape[1]) if logits_SV.device.type == "cpu" else len(target_S)
    for first in range(0, len(target_S), rows_at_once):
        rows = slice(first, first + rows_at_once)
        logits, target = _capped(logits_SV[rows].float(), softcap), target_S[rows, None]
        errors = torch.softmax(logits, dim=-1)
        probability = errors.gather(1, target)
        rare = torch.logsumexp(logits, dim=-1, keepdim=True) if bool((probability < RARE).any()) else None
        logp = probability.log() if rare is None else logits.gather(1, target) - rare
        logp_S[rows] = logp[:, 0]
        if errors_SV is not None:
            errors.scatter_(1, target, probability - 1)
            if softcap is not None:
                errors.mul_(1 - (logits / softcap).square_())
            errors_SV[rows] = errors
    return logp_S


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    """cap * tanh(logits / cap), Gemma-2's soft cap of the head (arXiv 2408.00118, section 2)."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap
