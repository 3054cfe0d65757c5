"""Every objective as a pure function of `Scores`, and the one table that knows them by name.

To add a method: a config class in `methods.py`, one function here with its equation and source, one row in OBJECTIVES,
one vector in `tests/simpo/test_objectives.py`.

Notation: S summed response log-probability, n counted response tokens, a = S / n, R the sum under the reference model;
w chosen, l rejected; sigma the logistic function. Shapes: B pairs. All arithmetic is in the dtype of the scores
(float32 in training, float64 in the oracle tests); no device, no model, no state in here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, sigmoid
from torch.nn.functional import logsigmoid, relu

from simpo.errors import ConfigError
from simpo.methods import (
    CPO,
    DPO,
    IPO,
    KTO,
    METHODS,
    ORPO,
    RDPO,
    RRHF,
    SFT,
    AlphaPO,
    Method,
    Nll,
    SimPO,
    SLiC,
)
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


def sft(scores: Scores, hp: SFT) -> Loss:
    """Supervised fine-tuning: NLL of the chosen tokens, averaged over all chosen tokens of the global batch.

    The rewards reported are mean log-probabilities; a row without a rejected side has a rejected reward of 0.
    """
    rejected_B = scores.rejected_sum_B / scores.rejected_len_B.clamp(min=1)
    return Loss(_nll(scores, "token_mean"), scores.chosen_mean_B, rejected_B)


def rrhf(scores: Scores, hp: RRHF) -> Loss:
    """RRHF (Yuan et al. 2023) as in Table 3 of the SimPO paper: L = max(0, a_l - a_w) + lambda * NLL."""
    chosen_B, rejected_B = scores.chosen_mean_B, scores.rejected_mean_B
    return Loss(relu(rejected_B - chosen_B) + hp.sft_weight * _nll(scores, hp.nll), chosen_B, rejected_B)


def slic(scores: Scores, hp: SLiC) -> Loss:
    """SLiC-HF (Zhao et al. 2023): L = max(0, delta - S_w + S_l) + lambda * NLL. Sums, not averages."""
    chosen_B, rejected_B = scores.chosen_sum_B, scores.rejected_sum_B
    loss_B = relu(hp.delta - chosen_B + rejected_B) + hp.sft_weight * _nll(scores, hp.nll)
    return Loss(loss_B, chosen_B, rejected_B)


def dpo(scores: Scores, hp: DPO) -> Loss:
    """DPO, Eq. 7 of Rafailov et al. 2023 (arXiv 2305.18290): L = -log sigma(beta * h), h = (S_w - R_w) - (S_l - R_l).

    label smoothing e: conservative -(1 - e) log sigma(beta h) - e log sigma(-beta h);
    robust (Chowdhury et al. 2024, arXiv 2403.00409): [-(1 - e) log sigma(beta h) + e log sigma(-beta h)] / (1 - 2e)
    length_normalised (Tulu 3, arXiv 2411.15124): h = (S_w - R_w) / n_w - (S_l - R_l) / n_l
    Other loss_types: `_DPO_LOSSES`.
    """
    chosen_B, rejected_B = _log_ratios(scores)
    if hp.length_normalised:
        chosen_B, rejected_B = chosen_B / scores.chosen_len_B, rejected_B / scores.rejected_len_B
    chosen_B, rejected_B = hp.beta * chosen_B, hp.beta * rejected_B
    return Loss(_DPO_LOSSES[hp.loss_type](chosen_B, rejected_B, hp), chosen_B, rejected_B)


def _dpo_sigmoid(chosen_B: Tensor, rejected_B: Tensor, hp: DPO) -> Tensor:
    d_B, e = chosen_B - rejected_B, hp.label_smoothing
    if not e:
        return -logsigmoid(d_B)
    if hp.robust:
        return (-(1.0 - e) * logsigmoid(d_B) + e * logsigmoid(-d_B)) / (1.0 - 2.0 * e)
    return -(1.0 - e) * logsigmoid(d_B) - e * logsigmoid(-d_B)


def _dpo_exo(chosen_B: Tensor, rejected_B: Tensor, hp: DPO) -> Tensor:
    """EXO for pairs (Ji et al. 2024, arXiv 2402.00856): KL(q, (1 - e, e)), q = sigma(d)."""
    d_B, e = chosen_B - rejected_B, hp.label_smoothing
    q_B = sigmoid(d_B)
    return q_B * (logsigmoid(d_B) - math.log(1.0 - e)) + (1.0 - q_B) * (logsigmoid(-d_B) - math.log(e))


def _dpo_nca(chosen_B: Tensor, rejected_B: Tensor, hp: DPO) -> Tensor:
    """NCA for pairs (Chen et al. 2024, arXiv 2402.05369)."""
    return -logsigmoid(chosen_B) - 0.5 * logsigmoid(-chosen_B) - 0.5 * logsigmoid(-rejected_B)


def _dpo_sppo(chosen_B: Tensor, rejected_B: Tensor, hp: DPO) -> Tensor:
    """SPPO with hard labels (Wu et al. 2024, arXiv 2405.00675): (lw - 1/(2 beta))^2 + (ll + 1/(2 beta))^2."""
    return ((chosen_B - 0.5) / hp.beta) ** 2 + ((rejected_B + 0.5) / hp.beta) ** 2


def _dpo_discopop(chosen_B: Tensor, rejected_B: Tensor, hp: DPO) -> Tensor:
    """DiscoPOP (Lu et al. 2024, arXiv 2406.08414): logistic and exponential loss, blended by m = sigma(d / tau)."""
    d_B = chosen_B - rejected_B
    m_B = sigmoid(d_B / hp.tau)
    return (1.0 - m_B) * -logsigmoid(d_B) + m_B * torch.exp(-d_B)


_DPO_LOSSES: Mapping[str, Callable[[Tensor, Tensor, DPO], Tensor]] = {
    "sigmoid": _dpo_sigmoid,
    "hinge": lambda won, lost, hp: relu(1.0 - (won - lost)),  # Liu et al. 2023 (RSO), arXiv 2309.06657
    "exo": _dpo_exo,
    "nca": _dpo_nca,
    "apo_zero": lambda won, lost, hp: 1.0 - sigmoid(won) + sigmoid(lost),  # D'Oosterlinck 2024, arXiv 2408.06266
    "apo_down": lambda won, lost, hp: sigmoid(won) + 1.0 - sigmoid(won - lost),  # the same paper
    "bco": lambda won, lost, hp: -logsigmoid(won) - logsigmoid(-lost),  # Jung 2024, arXiv 2404.04656, without its shift
    "sppo": _dpo_sppo,
    "discopop": _dpo_discopop,
}
"""Losses of (beta times chosen log-ratio, beta times rejected log-ratio)."""


def ipo(scores: Scores, hp: IPO) -> Loss:
    """IPO, Eq. 17 of Azar et al. 2023 (arXiv 2310.12036): L = (h - 1 / (2 tau))^2, h per token with `average`."""
    chosen_B, rejected_B = _log_ratios(scores)
    if hp.average:
        chosen_B, rejected_B = chosen_B / scores.chosen_len_B, rejected_B / scores.rejected_len_B
    return Loss((chosen_B - rejected_B - 1.0 / (2.0 * hp.tau)) ** 2, chosen_B, rejected_B)


def cpo(scores: Scores, hp: CPO) -> Loss:
    """CPO, Eq. 5 of Xu et al. 2024 (arXiv 2401.08417): L = -log sigma(beta * (S_w - S_l)) + lambda * NLL."""
    chosen_B, rejected_B = hp.beta * scores.chosen_sum_B, hp.beta * scores.rejected_sum_B
    return Loss(-logsigmoid(chosen_B - rejected_B) + hp.sft_weight * _nll(scores, hp.nll), chosen_B, rejected_B)


def kto(scores: Scores, hp: KTO) -> Loss:
    """KTO, Eq. 8 of Ethayarajh et al. 2024 (arXiv 2402.01306), both responses of the pair; the mean over responses.

    L = 1/2 [lambda_w (1 - sigma(beta (S_w - R_w - z))) + lambda_l (1 - sigma(beta (z - S_l + R_l)))]
    z = max(0, mean log-ratio of the batch's mismatched pairs), detached.
    """
    if scores.kl is None:
        raise ConfigError("kto needs the batch's KL estimate: scores.kl", "kl")
    chosen_B, rejected_B = _log_ratios(scores)
    desirable_B = hp.desirable_weight * (1.0 - sigmoid(hp.beta * (chosen_B - scores.kl)))
    undesirable_B = hp.undesirable_weight * (1.0 - sigmoid(hp.beta * (scores.kl - rejected_B)))
    return Loss(0.5 * (desirable_B + undesirable_B), hp.beta * chosen_B, hp.beta * rejected_B)


def orpo(scores: Scores, hp: ORPO) -> Loss:
    """ORPO, Eq. 6 of Hong, Lee, Thorne 2024 (arXiv 2403.07691), on averages.

    L = NLL - lambda * log sigma(logodds(a_w) - logodds(a_l)),  logodds(a) = a - log(1 - e^a)
    """
    chosen_B, rejected_B = _log_odds(scores.chosen_mean_B), _log_odds(scores.rejected_mean_B)
    loss_B = _nll(scores, hp.nll) - hp.odds_weight * logsigmoid(chosen_B - rejected_B)
    return Loss(loss_B, hp.odds_weight * scores.chosen_mean_B, hp.odds_weight * scores.rejected_mean_B)


def rdpo(scores: Scores, hp: RDPO) -> Loss:
    """R-DPO, Eq. 9 of Park et al. 2024 (arXiv 2403.19159): L = -log sigma(beta * h + alpha * (n_w - n_l)).

    The sign is +: with alpha > 0 a longer winner has less left to gain. Some published tables misprint it.
    """
    chosen_B, rejected_B = _log_ratios(scores)
    chosen_B = hp.beta * chosen_B + hp.alpha * scores.chosen_len_B
    rejected_B = hp.beta * rejected_B + hp.alpha * scores.rejected_len_B
    return Loss(-logsigmoid(chosen_B - rejected_B), chosen_B, rejected_B)


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
        loss_B = loss_B + hp.sft_weight * _nll(scores, "token_mean")
    return Loss(loss_B, chosen_B, rejected_B)


def alphapo(scores: Scores, hp: AlphaPO) -> Loss:
    """AlphaPO (arXiv 2501.03884): r(a) = (1 - e^(-alpha a)) / alpha, L = -log sigma(beta * (r_w - r_l) - gamma).

    By expm1, which keeps small alpha exact; alpha -> 0 gives SimPO.
    """
    chosen_B = -hp.beta * torch.expm1(-hp.alpha * scores.chosen_mean_B) / hp.alpha
    rejected_B = -hp.beta * torch.expm1(-hp.alpha * scores.rejected_mean_B) / hp.alpha
    return Loss(-logsigmoid(chosen_B - rejected_B - hp.margin), chosen_B, rejected_B)


def _log_ratios(scores: Scores) -> tuple[Tensor, Tensor]:
    """(S_w - R_w, S_l - R_l)."""
    ref_chosen_B, ref_rejected_B = scores.reference()
    return scores.chosen_sum_B - ref_chosen_B, scores.rejected_sum_B - ref_rejected_B


def _log_odds(mean_B: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = e^a; 1 - e^a by expm1, kept off 0 where a response is all but certain."""
    return mean_B - torch.log(-torch.expm1(mean_B.clamp(max=-1e-7)))


def _nll(scores: Scores, normalisation: Nll) -> Tensor:
    """Negative log-likelihood of the chosen responses, one value a pair (see `methods.Nll`)."""
    if normalisation == "sum":
        return -scores.chosen_sum_B
    if normalisation == "mean":
        return -scores.chosen_mean_B
    return -scores.chosen_sum_B / scores.mean_chosen_len  # its mean over the batch's pairs is the token mean


OBJECTIVES: Mapping[str, Objective] = {
    SFT.name: Objective(sft, SFT, chosen_only=True),
    RRHF.name: Objective(rrhf, RRHF),
    SLiC.name: Objective(slic, SLiC),
    DPO.name: Objective(dpo, DPO, needs_reference=True),
    IPO.name: Objective(ipo, IPO, needs_reference=True),
    CPO.name: Objective(cpo, CPO),
    KTO.name: Objective(kto, KTO, needs_reference=True, needs_kl_batch=True),
    ORPO.name: Objective(orpo, ORPO),
    RDPO.name: Objective(rdpo, RDPO, needs_reference=True),
    SimPO.name: Objective(simpo, SimPO),
    AlphaPO.name: Objective(alphapo, AlphaPO),
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
