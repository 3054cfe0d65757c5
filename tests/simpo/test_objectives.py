"""Worked numbers of every objective (float64, correctly rounded), and the properties they must have."""

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

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
    SimPO,
    SLiC,
    method_from_dict,
)
from simpo.objectives import loss_and_sum_gradients, objective_of
from simpo.scores import Scores

pytestmark = pytest.mark.quick

# Three pairs (S_w, n_w, S_l, n_l, R_w, R_l). P1: the sums rank the loser first, the averages the winner.
PAIRS = [(-20.0, 20, -12.0, 10, -22.0, -11.0), (-9.0, 12, -30.0, 24, -9.5, -28.0), (-16.0, 16, -16.0, 16, -16.0, -16.0)]


def scores(pairs: Any = PAIRS) -> Scores:
    columns = torch.tensor(pairs, dtype=torch.float64).T
    return Scores(
        chosen_sum_B=columns[0],
        chosen_len_B=columns[1],
        rejected_sum_B=columns[2],
        rejected_len_B=columns[3],
        ref_chosen_sum_B=columns[4],
        ref_rejected_sum_B=columns[5],
        mean_chosen_len=float(columns[1].mean()),
        kl=0.5,
    )


LOSSES = [
    (SimPO(beta=2.0, gamma=1.0), (1.0374879505, 0.6931471806, 1.3132616875)),
    (SimPO(beta=2.5, gamma_beta_ratio=0.55), (1.2234445810, 0.7575990353, 1.6004126516)),
    (SimPO(beta=10.0, gamma=3.0), (1.3132616875, 0.1269280110, 3.0485873516)),
    (SimPO(beta=2.0, gamma=0.0), (0.5130152524, 0.3132616875, 0.6931471806)),
    (SimPO(beta=2.0, gamma=1.0, label_smoothing=0.1), (0.9774879505, 0.6931471806, 1.2132616875)),
    (SimPO(beta=2.0, gamma=1.0, loss_type="hinge"), (1.6, 1.0, 2.0)),
    (DPO(beta=0.1), (0.5543552445, 0.5759394199, 0.6931471806)),
    (DPO(beta=0.1, label_smoothing=0.1), (0.5843552445, 0.6009394199, 0.6931471806)),
    (DPO(beta=0.1, label_smoothing=0.1, robust=True), (0.5168552445, 0.5446894199, 0.6931471806)),
    (DPO(beta=5.0, length_normalised=True), (0.3132616875, 0.4287006783, 0.6931471806)),
    (IPO(tau=0.1, average=False), (4.0, 6.25, 25.0)),
    (IPO(tau=0.1), (23.04, 23.765625, 25.0)),
    (RDPO(beta=0.1, alpha=0.05), (0.3711006659, 0.8833821554, 0.6931471806)),
    (CPO(beta=0.1, sft_weight=0.0), (1.1711006659, 0.1155195232, 0.6931471806)),
    (CPO(beta=0.1, nll="sum"), (21.1711006659, 9.1155195232, 16.6931471806)),
    (CPO(beta=0.1), (1.1711006659 + 20 / 16, 0.1155195232 + 9 / 16, 0.6931471806 + 1.0)),
    (SLiC(), (11.0, 0.9, 2.6)),
    (RRHF(), (20.0, 9.0, 16.0)),
    (RRHF(nll="mean"), (1.0, 0.75, 1.0)),
    (ORPO(), (1.0554230683, 0.7870551048, 1.0693147181)),
    (AlphaPO(alpha=0.25, beta=2.5, gamma=0.1), (0.4524514517, 0.2003074435, 0.7443966601)),
    (KTO(beta=0.1), ((0.4625701547 + 0.4625701547) / 2, (0.5 + 0.4378234991) / 2, (0.5124973965 + 0.4875026035) / 2)),
    (SFT(), (20 / 16, 9 / 16, 16 / 16)),  # their mean is the token mean 45/48
]


@pytest.mark.parametrize(("method", "expected"), LOSSES, ids=lambda value: str(value)[:60])
def test_worked_numbers(method: Any, expected: tuple[float, ...]) -> None:
    loss = objective_of(method).fn(scores(), method)
    assert loss.per_pair_B.tolist() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (SimPO(beta=2.0, gamma=1.0), (-1.2913126125, -1.0, -1.4621171573)),
        (SimPO(beta=2.5, gamma=1.375), (-1.7644625696, -1.3280234334, -1.9954669443)),
        (SimPO(beta=10.0, gamma=3.0), (-7.3105857863, -1.1920292202, -9.5257412682)),
        (SimPO(beta=2.0, gamma=1.0, label_smoothing=0.1), (-1.0913126125, -0.8, -1.2621171573)),
    ],
    ids=str,
)
def test_gradients_by_the_averages(method: SimPO, expected: tuple[float, ...]) -> None:
    s = scores()
    _, by_chosen_B, by_rejected_B = loss_and_sum_gradients(s, method)
    assert (by_chosen_B * s.chosen_len_B).tolist() == pytest.approx(expected, abs=1e-9)
    assert (by_rejected_B * s.rejected_len_B).tolist() == pytest.approx([-g for g in expected], abs=1e-9)


def test_rewards_are_length_normalised_and_a_tie_is_no_success() -> None:
    loss = objective_of(SimPO()).fn(scores(), SimPO(beta=2.0, gamma=1.0))
    assert loss.chosen_reward_B.tolist() == pytest.approx([-2.0, -1.5, -2.0])
    assert loss.rejected_reward_B.tolist() == pytest.approx([-2.4, -2.5, -2.0])
    assert (loss.chosen_reward_B > loss.rejected_reward_B).double().mean() == pytest.approx(2 / 3)


def test_the_sft_term_is_a_token_mean() -> None:
    plain = objective_of(SimPO()).fn(scores(), SimPO(beta=2.0, gamma=1.0)).per_pair_B.mean()
    with_sft = objective_of(SimPO()).fn(scores(), SimPO(beta=2.0, gamma=1.0, sft_weight=0.05)).per_pair_B.mean()
    assert float(with_sft) == pytest.approx(1.0615072729, abs=1e-9)
    assert float(with_sft - plain) == pytest.approx(0.05 * 0.9375, abs=1e-12)


def test_the_hinge_of_rrhf_counts_pairs_in_the_wrong_order() -> None:
    method = RRHF(sft_weight=0.0)
    wrong_order = (-15.0, 10, -10.0, 10, 0.0, 0.0)
    assert objective_of(method).fn(scores([wrong_order]), method).per_pair_B.tolist() == [0.5]


def test_a_longer_winner_gets_a_smaller_gradient_from_rdpo() -> None:
    method = RDPO(beta=0.1, alpha=0.05)
    short, long = (scores([(-20.0, n, -20.0, 10, -20.0, -20.0)]) for n in (10, 40))
    gradients = [float(loss_and_sum_gradients(s, method)[1].abs()) for s in (short, long)]
    assert gradients[1] < gradients[0]


def test_limits_that_link_the_methods() -> None:
    def loss(method: Any) -> list[float]:
        return list(objective_of(method).fn(scores(), method).per_pair_B.tolist())

    assert loss(AlphaPO(alpha=1e-6, beta=2.0, gamma=1.0)) == pytest.approx(loss(SimPO(beta=2.0, gamma=1.0)), abs=1e-5)
    assert loss(RDPO(beta=0.1, alpha=0.0)) == loss(DPO(beta=0.1))
    assert loss(SimPO(gamma=0.0, loss_type="hinge", beta=1.0)) == [
        max(0.0, 1.0 - (w / n - m / k)) for w, n, m, k, _, _ in PAIRS
    ]
    with_zero_reference = [(*p[:4], 0.0, 0.0) for p in PAIRS]
    normalised = DPO(beta=5.0, length_normalised=True)
    assert objective_of(normalised).fn(scores(with_zero_reference), normalised).per_pair_B.tolist() == pytest.approx(
        loss(SimPO(beta=5.0, gamma=0.0))
    )
    slic, delta = SLiC(delta=4.0, sft_weight=0.0), 4.0
    assert loss(slic) == pytest.approx([delta * max(0.0, 1.0 - (w - m) / delta) for w, _, m, _, _, _ in PAIRS])


def test_a_method_that_needs_a_reference_says_so() -> None:
    without = Scores(*(torch.ones(1) for _ in range(4)), mean_chosen_len=1.0)
    with pytest.raises(ConfigError, match="reference"):
        objective_of(DPO()).fn(without, DPO())
    with pytest.raises(ConfigError, match="KL"):
        objective_of(KTO()).fn(without, KTO())


sums = st.floats(-200.0, -0.01)
lengths = st.integers(1, 400)
means = st.floats(-6.0, -0.05)
pair = st.tuples(sums, lengths, sums, lengths, sums, sums)
betas = st.floats(0.1, 20.0)
ratios = st.floats(0.0, 2.0)


@given(pair, betas, ratios, st.floats(-50.0, 0.0))
def test_simpo_is_unmoved_by_a_shift_of_both_averages(p: Any, beta: float, ratio: float, shift: float) -> None:
    method = SimPO(beta=beta, gamma_beta_ratio=ratio)
    moved = (p[0] + shift * p[1], p[1], p[2] + shift * p[3], p[3], p[4], p[5])
    one, other = (float(objective_of(method).fn(scores([row]), method).per_pair_B) for row in (p, moved))
    assert other == pytest.approx(one, rel=1e-6, abs=1e-9)


@given(pair, betas, ratios, st.floats(0.01, 1.0))
def test_simpo_rises_with_the_margin(p: Any, beta: float, ratio: float, more: float) -> None:
    low, high = SimPO(beta=beta, gamma_beta_ratio=ratio), SimPO(beta=beta, gamma_beta_ratio=ratio + more)
    assert float(objective_of(high).fn(scores([p]), high).per_pair_B) >= float(
        objective_of(low).fn(scores([p]), low).per_pair_B
    )


@given(pair, betas)
def test_without_a_margin_swapping_the_sides_mirrors_the_loss(p: Any, beta: float) -> None:
    method = SimPO(beta=beta, gamma=0.0)
    swapped = (p[2], p[3], p[0], p[1], p[5], p[4])
    loss, mirror = (objective_of(method).fn(scores([row]), method) for row in (p, swapped))
    d = float(loss.chosen_reward_B - loss.rejected_reward_B)
    assert float(loss.per_pair_B - mirror.per_pair_B) == pytest.approx(-d, rel=1e-6, abs=1e-9)


@given(pair, betas)
def test_doubling_a_response_leaves_simpo_and_doubles_dpo(p: Any, beta: float) -> None:
    doubled = (2 * p[0], 2 * p[1], *p[2:4], 2 * p[4], p[5])
    method = SimPO(beta=beta)
    one, two = (objective_of(method).fn(scores([row]), method).chosen_reward_B for row in (p, doubled))
    assert float(two) == pytest.approx(float(one))
    dpo = DPO(beta=beta)
    one, two = (objective_of(dpo).fn(scores([row]), dpo).chosen_reward_B for row in (p, doubled))
    assert float(two) == pytest.approx(2 * float(one), abs=1e-9)


@given(st.floats(-1e4, 1e4))
def test_the_loss_is_finite_for_any_difference(d: float) -> None:
    method = SimPO(beta=1.0, gamma=0.0)
    loss, by_chosen_B, _ = loss_and_sum_gradients(scores([(d, 1, 0.0, 1, 0.0, 0.0)]), method)
    assert math.isfinite(float(loss.per_pair_B))
    assert math.isfinite(float(by_chosen_B))
    if d == 40.0:
        assert float(loss.per_pair_B) == pytest.approx(4.25e-18, rel=1e-2)


@given(st.tuples(means, lengths, means, lengths, means, means), st.sampled_from(sorted(METHODS)))
def test_autograd_equals_central_differences(averages: Any, name: str) -> None:
    method = method_from_dict({"name": name})
    w, n, m, k, ref_w, ref_l = averages
    p = (w * n, n, m * k, k, ref_w * n, ref_l * k)
    _, by_chosen_B, by_rejected_B = loss_and_sum_gradients(scores([p]), method)
    for column, gradient in ((0, by_chosen_B), (2, by_rejected_B)):
        step = 1e-5
        down, here, up = (
            float(objective_of(method).fn(scores([(*p[:column], p[column] + h, *p[column + 1 :])]), method).per_pair_B)
            for h in (-step, 0.0, step)
        )
        assume(up - here == pytest.approx(here - down, rel=1e-3, abs=1e-9))  # not at the kink of a hinge
        assert float(gradient) == pytest.approx((up - down) / (2 * step), rel=1e-3, abs=1e-5)
