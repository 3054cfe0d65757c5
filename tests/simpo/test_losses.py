"""Every worked value of losses.json (float64, correctly rounded), to 1e-8: losses, rewards and gradients."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from simpo.methods import CPO, DPO, IPO, KTO, ORPO, RDPO, RRHF, AlphaPO, Method, SimPO, SLiC
from simpo.objectives import _log_odds, loss_and_sum_gradients, objective_of
from simpo.packing import PairStore, TokenPair
from simpo.scores import Scores, head_with_gradient

pytestmark = pytest.mark.quick

VALUES: dict[str, Any] = json.loads((Path(__file__).parent / "losses.json").read_text())
PAIRS = [pair["id"] for pair in VALUES["pairs"]]

OURS: dict[str, Method] = {
    "dpo": DPO(beta=0.1),
    "cdpo": DPO(beta=0.1, label_smoothing=0.1),
    "robust_dpo": DPO(beta=0.1, label_smoothing=0.1, robust=True),
    "dpo_hinge": DPO(beta=0.1, loss_type="hinge"),
    "sigmoid_norm": DPO(beta=5.0, length_normalised=True),
    "exo_pair": DPO(beta=0.1, label_smoothing=0.1, loss_type="exo"),
    "nca_pair": DPO(beta=0.1, loss_type="nca"),
    "apo_zero": DPO(beta=0.1, loss_type="apo_zero"),
    "apo_down": DPO(beta=0.1, loss_type="apo_down"),
    "bco_pair": DPO(beta=0.1, loss_type="bco"),
    "sppo_hard": DPO(beta=0.1, loss_type="sppo"),
    "discopop": DPO(beta=0.1, loss_type="discopop", tau=0.05),
    "ipo_sum": IPO(tau=0.1, average=False),
    "ipo_avg": IPO(tau=0.1),
    "r_dpo": RDPO(beta=0.1, alpha=0.05),
    "cpo_preference": CPO(beta=0.1, sft_weight=0.0),
    "cpo_paper": CPO(beta=0.1, nll="sum", sft_weight=1.0),
    "slic_hf": SLiC(delta=1.0, sft_weight=0.1, nll="sum"),
    "rrhf_nll_sum": RRHF(sft_weight=1.0, nll="sum"),
    "rrhf_nll_avg": RRHF(sft_weight=1.0, nll="mean"),
    "orpo_nll_avg": ORPO(odds_weight=0.1, nll="mean"),
    "alphapo": AlphaPO(alpha=0.25, beta=2.5, gamma=0.1),
}
TRAPS = {"r_dpo_wrong_sign": RDPO(beta=0.1, alpha=0.05), "trl_cpo_hinge_on_sums": SimPO(beta=2.0, loss_type="hinge")}


def scores(pairs: list[dict[str, Any]] = VALUES["pairs"]) -> Scores:
    def column(key: str) -> torch.Tensor:
        return torch.tensor([pair.get(key, 0.0) for pair in pairs], dtype=torch.float64)

    return Scores(
        chosen_sum_B=column("sum_w"),
        rejected_sum_B=column("sum_l"),
        chosen_len_B=column("len_w"),
        rejected_len_B=column("len_l"),
        mean_chosen_len=float(column("len_w").mean()),
        ref_chosen_sum_B=column("ref_sum_w"),
        ref_rejected_sum_B=column("ref_sum_l"),
        kl=VALUES["kto"]["z"],
    )


def exactly(expected: Any) -> Any:
    return pytest.approx(expected, abs=1e-8, rel=0)


def test_no_value_is_left_out() -> None:
    ids = {entry["id"] for entry in VALUES["methods"]}
    assert ids == {*OURS, *TRAPS, "orpo_log_odds"}


@pytest.mark.parametrize("entry", VALUES["methods"], ids=lambda entry: str(entry["id"]))
def test_methods(entry: dict[str, Any]) -> None:
    expected = [entry["value"][pair] for pair in PAIRS]
    if entry["id"] == "orpo_log_odds":
        difference = _log_odds(scores().chosen_mean_B) - _log_odds(scores().rejected_mean_B)
        assert difference.tolist() == exactly(expected)
        return
    method = OURS.get(entry["id"]) or TRAPS[entry["id"]]
    loss_B = objective_of(method).fn(scores(), method).per_pair_B
    if entry["id"] in TRAPS:  # a known mistake's values
        assert loss_B.tolist() != pytest.approx(expected, abs=1e-3)
        return
    assert loss_B.tolist() == exactly(expected)
    assert float(loss_B.mean()) == exactly(entry["mean"])


@pytest.mark.parametrize("case", VALUES["simpo"], ids=lambda case: str(case["id"]))
def test_simpo(case: dict[str, Any]) -> None:
    by_gamma = SimPO(**{key: case[key] for key in ("beta", "gamma", "loss_type", "label_smoothing")})
    by_ratio = SimPO(**{key: case[key] for key in ("beta", "gamma_beta_ratio", "loss_type", "label_smoothing")})
    for method in (by_gamma, by_ratio):
        loss, grad_chosen_B, grad_rejected_B = loss_and_sum_gradients(scores(), method)
        rows = [case["per_pair"][pair] for pair in PAIRS]
        assert loss.per_pair_B.tolist() == exactly([row["loss"] for row in rows])
        assert float(loss.per_pair_B.mean()) == exactly(case["mean_loss"])
        if "grad_token_w" in rows[0]:
            assert loss.chosen_reward_B.tolist() == exactly([row["reward_w"] for row in rows])
            assert loss.rejected_reward_B.tolist() == exactly([row["reward_l"] for row in rows])
            assert grad_chosen_B.tolist() == exactly([row["grad_token_w"] for row in rows])
            assert grad_rejected_B.tolist() == exactly([row["grad_token_l"] for row in rows])
            margins_B = loss.chosen_reward_B - loss.rejected_reward_B
            assert (margins_B - method.margin).tolist() == exactly([row["d"] for row in rows])
            assert float((margins_B > 0).double().mean()) == exactly(case["accuracy"])
            assert float(margins_B.mean()) == exactly(case["mean_margin"])


def test_the_sft_term_is_a_token_mean() -> None:
    case = VALUES["sft_term"]["with_simpo"]
    method = SimPO(beta=case["beta"], gamma=case["gamma"], sft_weight=case["sft_weight"])
    assert float(objective_of(method).fn(scores(), method).per_pair_B.mean()) == exactly(case["loss"])


@pytest.mark.parametrize("case", VALUES["loss_extremes"]["cases"], ids=lambda case: str(case["d"]))
def test_extremes(case: dict[str, float]) -> None:
    d = case["d"]
    one = Scores(*(torch.tensor([x], dtype=torch.float64) for x in (d - 2e4, -2e4, 1.0, 1.0)), mean_chosen_len=1.0)
    method = SimPO(beta=1.0, gamma=0.0)
    loss = float(objective_of(method).fn(one, method).per_pair_B)
    assert loss == pytest.approx(case["loss"], rel=1e-8, abs=0)


def test_kto() -> None:
    case = VALUES["kto"]
    method = KTO(beta=case["beta"], desirable_weight=case["lambda_w"], undesirable_weight=case["lambda_l"])
    loss_B = objective_of(method).fn(scores(), method).per_pair_B
    assert loss_B.tolist() == exactly([(case["loss_w"][pair] + case["loss_l"][pair]) / 2 for pair in PAIRS])
    assert float(loss_B.mean()) == exactly(case["mean_of_six"])
    double = KTO(beta=case["beta"], desirable_weight=2.0)
    more_B = 2 * (objective_of(double).fn(scores(), double).per_pair_B - loss_B)
    assert more_B.tolist() == exactly([case["loss_w"][pair] for pair in PAIRS])


def test_rrhf_counts_a_pair_in_the_wrong_order() -> None:
    case = VALUES["rrhf_hinge_active"]
    method = RRHF(sft_weight=0.0)
    loss_B = objective_of(method).fn(scores([case["pair"]]), method).per_pair_B
    assert float(loss_B) == exactly(case["hinge"])


@pytest.mark.parametrize("case", VALUES["logit_level"]["cases"], ids=lambda case: f"gamma {case['gamma']}")
def test_gradients_at_the_logits(case: dict[str, Any]) -> None:
    """The head with the identity for its weight: hidden states are logits."""
    level = VALUES["logit_level"]
    pair = TokenPair(level["prompt_ids"], level["chosen_ids"], level["rejected_ids"])
    batch = PairStore.of([pair]).micro_batch([0])
    logits_SV = torch.tensor(level["probabilities_at_every_position"], dtype=torch.float32).log().repeat(5, 1)
    method = SimPO(beta=case["beta"], gamma=case["gamma"])
    losses: list[float] = []

    def coefficients(sums_2b: torch.Tensor, pairs: Any) -> torch.Tensor:
        sums = sums_2b.double()
        one = Scores(sums[:1], sums[1:], *(torch.tensor([n], dtype=torch.float64) for n in (3, 2)), mean_chosen_len=3.0)
        loss, chosen_B, rejected_B = loss_and_sum_gradients(one, method)
        losses.append(float(loss.per_pair_B))
        return torch.cat((chosen_B, rejected_B)).float()

    sums_2B, grad_SV = head_with_gradient(logits_SV, torch.eye(4), batch, coefficients, None)
    assert (sums_2B / torch.tensor([3, 2])).tolist() == pytest.approx([level["avg_w"], level["avg_l"]], abs=1e-6)
    assert losses == pytest.approx([case["loss"]], abs=1e-6)  # the head's arithmetic is float32
    expected = torch.tensor([*case["grad_logits_w"][1:4], *case["grad_logits_l"][1:3]])
    assert torch.allclose(grad_SV, expected, atol=1e-6)
