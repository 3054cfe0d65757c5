"""Every objective as a pure function of `Scores`, and the one table that knows them by name.

To add a method: a config class in `config.py`, one function here with its equation and source, one row in OBJECTIVES,
one vector in `tests/simpo/test_objectives.py`.

Notation: S summed response log-probability, n counted response tokens, a = S / n, R the sum under the reference model;
w chosen, l rejected; sigma the logistic function. Shapes: B pairs. All arithmetic is in the dtype of the scores
(float32 in training, float64 in the oracle tests); no device, no model, no state in here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from simpo.config import DPO, METHODS, SFT, Method, SimPO
from simpo.scores import Scores


@dataclass(frozen=True)
class Loss:
    """What an objective makes of B pairs. The loss of a batch is the mean of `per_pair_B` over the global batch."""

    per_pair_B: Tensor
    chosen_reward_B: Tensor
    rejected_reward_B: Tensor


ObjectiveFn = Callable[[Scores, Any], Loss]


@dataclass(frozen=True)
class Objective:
    """A row of the table: the function, and the facts about it that other code may ask for."""

    fn: ObjectiveFn
    config: type[Any]
    needs_reference: bool = False
    """Reads `Scores.ref_*`: summed log-probabilities under a frozen model."""
    needs_kl_batch: bool = False
    """Reads scores of mismatched pairs (KTO)."""
    chosen_only: bool = False
    """Never reads the rejected side, so the plan may leave it out."""


def simpo(scores: Scores, hp: SimPO) -> Loss:
    """SimPO, Eq. 6 of Meng, Xia, Chen 2024 (arXiv 2405.14734), with the options of the authors' trainer.

    r = beta * a (Eq. 4);  d = r_w - r_l - gamma;  L = -log sigma(d)  (Eq. 5, 6)
    label smoothing e: L = -(1 - e) log sigma(d) - e log sigma(-d), the margin inside both terms
    hinge: L = max(0, 1 - d);  sft_weight: + weight * NLL, the token mean over the chosen tokens of the global batch
    """
    chosen_B = hp.beta * scores.chosen_mean_B
    rejected_B = hp.beta * scores.rejected_mean_B
    d_B = chosen_B - rejected_B - hp.margin
    if hp.loss_type == "hinge":
        loss_B = relu(1.0 - d_B)
    else:
        loss_B = -(1.0 - hp.label_smoothing) * logsigmoid(d_B)
        if hp.label_smoothing:
            loss_B = loss_B - hp.label_smoothing * logsigmoid(-d_B)
    if hp.sft_weight:
        loss_B = loss_B + hp.sft_weight * _token_mean_nll(scores)
    return Loss(loss_B, chosen_B, rejected_B)


def dpo(scores: Scores, hp: DPO) -> Loss:
    """DPO, Eq. 7 of Rafailov et al. 2023 (arXiv 2305.18290): L = -log sigma(beta * ((S_w - R_w) - (S_l - R_l)))."""
    ref_chosen_B, ref_rejected_B = scores.reference()
    chosen_B = hp.beta * (scores.chosen_sum_B - ref_chosen_B)
    rejected_B = hp.beta * (scores.rejected_sum_B - ref_rejected_B)
    return Loss(-logsigmoid(chosen_B - rejected_B), chosen_B, rejected_B)


def sft(scores: Scores, hp: SFT) -> Loss:
    """Supervised fine-tuning: NLL of the chosen tokens, averaged over all chosen tokens of the global batch.

    The rewards reported are mean log-probabilities; a row without a rejected side has a rejected reward of 0.
    """
    rejected_B = scores.rejected_sum_B / scores.rejected_len_B.clamp(min=1)
    return Loss(_token_mean_nll(scores), scores.chosen_mean_B, rejected_B)


def _token_mean_nll(scores: Scores) -> Tensor:
    """Per pair, such that the mean over the pairs of the global batch is the mean over its chosen tokens."""
    return -scores.chosen_sum_B / scores.mean_chosen_len


OBJECTIVES: Mapping[str, Objective] = {
    SimPO.name: Objective(simpo, SimPO),
    DPO.name: Objective(dpo, DPO, needs_reference=DPO.needs_reference),
    SFT.name: Objective(sft, SFT, chosen_only=True),
}
assert set(OBJECTIVES) == set(METHODS)


def objective_of(method: Method) -> Objective:
    """The table's row for a method's config."""
    return OBJECTIVES[method.name]


def loss_and_sum_gradients(scores: Scores, method: Method) -> tuple[Loss, Tensor, Tensor]:
    """Evaluate an objective, and the gradient of the *sum* of its per-pair losses.

    Returns (loss, dL/dS_w of shape B, dL/dS_l of shape B). Each token of a response has its side's value as
    coefficient, since S is the plain sum of the tokens' log-probabilities.
    """
    chosen_B = scores.chosen_sum_B.detach().requires_grad_()
    rejected_B = scores.rejected_sum_B.detach().requires_grad_()
    with torch.enable_grad():
        loss = objective_of(method).fn(scores.with_sums(chosen_B, rejected_B), method)
        grad_chosen_B, grad_rejected_B = torch.autograd.grad(
            loss.per_pair_B.sum(), (chosen_B, rejected_B), materialize_grads=True
        )
    loss = Loss(loss.per_pair_B.detach(), loss.chosen_reward_B.detach(), loss.rejected_reward_B.detach())
    return loss, grad_chosen_B, grad_rejected_B
