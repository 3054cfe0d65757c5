"""TRL 1.16 as an oracle: where it has the method, its arithmetic and ours agree. Never imported at run time."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simpo.methods import CPO, DPO, IPO, ORPO, AlphaPO, SimPO
from simpo.objectives import objective_of
from simpo.scores import Scores

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL's own deprecations are not ours to mend
    cpo_module = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    orpo_module = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    dpo_module = pytest.importorskip("trl.trainer.dpo_trainer")

ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)


@pytest.fixture
def scores() -> Scores:
    """Twenty random pairs in float64, sums between -60 and -1."""
    generator = torch.Generator().manual_seed(0)

    def random(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(20, generator=generator, dtype=torch.float64)

    chosen_len_B, rejected_len_B = random(1, 40).round(), random(1, 40).round()
    return Scores(
        chosen_sum_B=random(-60, -1),
        rejected_sum_B=random(-60, -1),
        chosen_len_B=chosen_len_B,
        rejected_len_B=rejected_len_B,
        ref_chosen_sum_B=random(-60, -1),
        ref_rejected_sum_B=random(-60, -1),
        mean_chosen_len=float(chosen_len_B.mean()),
    )


def trl_cpo(chosen_B: torch.Tensor, rejected_B: torch.Tensor, **settings: Any) -> torch.Tensor:
    defaults = {"alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.0, "accelerator": ACCELERATOR}
    stub = SimpleNamespace(**{**defaults, **settings})
    losses: torch.Tensor = cpo_module.CPOTrainer.cpo_loss(stub, chosen_B, rejected_B)[0]
    return losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo(scores: Scores, smoothing: float) -> None:
    method = SimPO(beta=2.5, gamma=1.375, label_smoothing=smoothing)
    theirs = trl_cpo(
        scores.chosen_mean_B,
        scores.rejected_mean_B,
        loss_type="simpo",
        beta=2.5,
        simpo_gamma=1.375,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(objective_of(method).fn(scores, method).per_pair_B, theirs, rtol=1e-7, atol=1e-7)


def test_cpo_and_alphapo(scores: Scores) -> None:
    cpo = CPO(beta=0.1, sft_weight=0.0)
    theirs = trl_cpo(scores.chosen_sum_B, scores.rejected_sum_B, loss_type="sigmoid", beta=0.1)
    torch.testing.assert_close(objective_of(cpo).fn(scores, cpo).per_pair_B, theirs, rtol=1e-7, atol=1e-7)
    alphapo = AlphaPO(beta=2.5, alpha=0.25, gamma=0.1)
    theirs = trl_cpo(
        scores.chosen_mean_B.clamp(min=-9),
        scores.rejected_mean_B.clamp(min=-9),
        loss_type="simpo",
        beta=2.5,
        alpha=0.25,
        simpo_gamma=0.1,
    )
    clamped = scores.with_sums(
        scores.chosen_mean_B.clamp(min=-9) * scores.chosen_len_B,
        scores.rejected_mean_B.clamp(min=-9) * scores.rejected_len_B,
    )
    torch.testing.assert_close(objective_of(alphapo).fn(clamped, alphapo).per_pair_B, theirs, rtol=1e-7, atol=1e-7)


def test_the_odds_ratio_of_orpo(scores: Scores) -> None:
    with_odds, without = ORPO(odds_weight=0.1), ORPO(odds_weight=0.0)
    loss_B, nll_B = (objective_of(method).fn(scores, method).per_pair_B for method in (with_odds, without))
    stub = SimpleNamespace(beta=0.1, accelerator=ACCELERATOR)
    losses = orpo_module.ORPOTrainer.odds_ratio_loss(stub, scores.chosen_mean_B, scores.rejected_mean_B)[0]
    torch.testing.assert_close(loss_B - nll_B, -losses, rtol=1e-6, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize(
    ("method", "loss_type", "smoothing"),
    [
        (DPO(beta=0.1), "sigmoid", 0.0),
        (DPO(beta=0.1, label_smoothing=0.1, robust=True), "robust", 0.1),
        (DPO(beta=5.0, length_normalised=True), "sigmoid_norm", 0.0),
        (DPO(beta=0.1, loss_type="hinge"), "hinge", 0.0),
        (DPO(beta=0.1, label_smoothing=0.1, loss_type="exo"), "exo_pair", 0.1),
        (DPO(beta=0.1, loss_type="nca"), "nca_pair", 0.0),
        (DPO(beta=0.1, loss_type="apo_zero"), "apo_zero", 0.0),
        (DPO(beta=0.1, loss_type="apo_down"), "apo_down", 0.0),
        (DPO(beta=0.1, loss_type="bco"), "bco_pair", 0.0),
        (DPO(beta=0.1, loss_type="sppo"), "sppo_hard", 0.0),
        (DPO(beta=0.1, loss_type="discopop"), "discopop", 0.0),
        (IPO(tau=0.1), "ipo", 0.0),
    ],
)
def test_the_dpo_family(scores: Scores, method: Any, loss_type: str, smoothing: float) -> None:
    beta = method.tau if isinstance(method, IPO) else method.beta
    theirs = torch.stack([_trl_dpo(scores, row, loss_type, beta, smoothing) for row in range(20)])
    torch.testing.assert_close(objective_of(method).fn(scores, method).per_pair_B, theirs, rtol=1e-6, atol=1e-6)


def _trl_dpo(scores: Scores, row: int, loss_type: str, beta: float, smoothing: float) -> torch.Tensor:
    """TRL's loss of one pair, from per-token log-probabilities that sum to ours."""
    assert scores.ref_chosen_sum_B is not None and scores.ref_rejected_sum_B is not None
    lengths = [int(scores.chosen_len_B[row]), int(scores.rejected_len_B[row])]
    width = max(lengths) + 1
    mask = torch.zeros(2, width, dtype=torch.long)
    logps = torch.zeros(2, width - 1, dtype=torch.float64)
    for side, total in enumerate((scores.chosen_sum_B[row], scores.rejected_sum_B[row])):
        mask[side, 1 : 1 + lengths[side]] = 1
        logps[side, : lengths[side]] = total / lengths[side]
    zeros = torch.zeros_like(logps)
    output = SimpleNamespace(
        log_probs=logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros, aux_loss=None
    )
    inputs = {
        "input_ids": torch.ones(2, width, dtype=torch.long),
        "attention_mask": torch.ones(2, width, dtype=torch.long),
        "completion_mask": mask,
        "ref_chosen_logps": scores.ref_chosen_sum_B[row : row + 1],
        "ref_rejected_logps": scores.ref_rejected_sum_B[row : row + 1],
    }
    lists: dict[str, Any] = {mode: _Anything() for mode in ("train", "eval")}
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=0.05),
        _metrics=lists,
        _total_train_tokens=0,
        _tp_size=1,
    )
    loss: torch.Tensor = dpo_module.DPOTrainer._compute_loss(stub, lambda **_: output, inputs, False)
    return loss


class _Anything(dict[str, list[float]]):
    """A dict of lists that makes a list for any key."""

    def __missing__(self, key: str) -> list[float]:
        self[key] = []
        return self[key]
