"""Response log-probabilities: float32, response tokens only, the head in tiles, its gradient made in the forward.

Legend: B pairs, S scored response tokens, V vocabulary, h width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simpo.attention import PairLayout
from simpo.errors import ConfigError
from simpo.packing import MicroBatch

TILE_ROWS = 512
"""Least rows of a head tile (whole pairs are merged up to it): smaller products leave the processor idle."""
SOFTMAX_ROWS = 64
"""Rows of logits that are in float32 at one time."""


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


def hidden_rows(model: Any, batch: MicroBatch) -> Tensor:
    """The S hidden states that predict response tokens, shape (S, h), after the final norm."""
    layout = PairLayout.of(batch, batch.input_ids_T.device)
    output = model.get_decoder()(
        input_ids=batch.input_ids_T[None],
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
    sums_2B = torch.zeros(2 * batch.num_pairs, dtype=torch.float32, device=hidden_Sh.device)
    for tile in tiles(batch):
        rows = slice(tile.first_row, tile.end_row)
        logits_SV = hidden_Sh[rows] @ weight_Vh.t()
        _, logp_S = _log_probabilities(logits_SV, batch.target_S[rows], softcap)
        sums_2B.index_add_(0, batch.owner_S[rows], logp_S)
    return sums_2B


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
    logits that are still at hand: dLoss/dlogit_tv = coefficient_t * ([v = target_t] - softmax_tv), times the slope
    1 - tanh^2(logit_tv / softcap) where the model has a soft cap.

    Returns (sums_2B float32, gradient of shape (S, h)). `grad_weight_Vh` (float32) collects the head's own gradient,
    or is None when the head is frozen. No autograd graph is made.
    """
    sums_2B = torch.zeros(2 * batch.num_pairs, dtype=torch.float32, device=hidden_Sh.device)
    grad_Sh = torch.empty_like(hidden_Sh)
    for tile in tiles(batch):
        rows, sides = slice(tile.first_row, tile.end_row), slice(2 * tile.pairs[0], 2 * tile.pairs[-1] + 2)
        hidden, target, owner = hidden_Sh[rows], batch.target_S[rows], batch.owner_S[rows]
        logits_SV = hidden @ weight_Vh.t()
        lse_S, logp_S = _log_probabilities(logits_SV, target, softcap)
        sums_2B.index_add_(0, owner, logp_S)
        coefficient_S = coefficients(sums_2B[sides], tile.pairs)[owner - sides.start]
        dlogits_SV = _softmax_gradient_(logits_SV, lse_S, target, coefficient_S, softcap)
        torch.mm(dlogits_SV, weight_Vh, out=grad_Sh[rows])
        if grad_weight_Vh is not None:
            if dlogits_SV.dtype == grad_weight_Vh.dtype:
                grad_weight_Vh.addmm_(dlogits_SV.t(), hidden)
            else:
                grad_weight_Vh += dlogits_SV.t() @ hidden
    return sums_2B, grad_Sh


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


def _log_probabilities(logits_SV: Tensor, target_S: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """(log-sum-exp, log-probability of the target), both float32 of shape S.

    The upcast matters: log-softmax in bfloat16 shifts an average by -0.017, that is 0.17 in reward at beta 10.
    """
    chunks = torch.split(logits_SV, SOFTMAX_ROWS)
    lse_S = torch.cat([torch.logsumexp(_capped(chunk.float(), softcap), dim=-1) for chunk in chunks])
    target_logit_S = _capped(logits_SV.gather(1, target_S[:, None])[:, 0].float(), softcap)
    return lse_S, target_logit_S - lse_S


def _softmax_gradient_(
    logits_SV: Tensor, lse_S: Tensor, target_S: Tensor, coefficient_S: Tensor, softcap: float | None
) -> Tensor:
    """Overwrite logits with coefficient_t * ([v = target_t] - softmax_tv) * slope_tv, computed in float32."""
    for first in range(0, len(lse_S), SOFTMAX_ROWS):
        rows = slice(first, first + SOFTMAX_ROWS)
        chunk = logits_SV[rows].float()  # the buffer itself when the logits are float32
        bent = None
        if softcap is not None:
            bent = torch.tanh(chunk / softcap)
            torch.mul(bent, softcap, out=chunk)
        chunk.sub_(lse_S[rows, None]).exp_().mul_(-coefficient_S[rows, None])
        chunk.scatter_add_(1, target_S[rows, None], coefficient_S[rows, None])
        if bent is not None:
            chunk.mul_(1 - bent * bent)
        if chunk.dtype != logits_SV.dtype:
            logits_SV[rows] = chunk
    return logits_SV


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    """cap * tanh(logits / cap), Gemma-2's soft cap of the head (arXiv 2408.00118, section 2)."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap
