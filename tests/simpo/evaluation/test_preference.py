"""Length-normalised ranking of held-out pairs, on the worked pairs P1 - P3 of the objectives' tests."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from simpo.errors import DataError
from simpo.evaluation.preference import preference_accuracy, preference_by_length, spearman
from simpo.scores import Scores

pytestmark = pytest.mark.quick


@dataclass
class Sums:
    chosen_sum_B: list[float]
    chosen_len_B: list[int]
    rejected_sum_B: list[float]
    rejected_len_B: list[int]


# P1 long winner, P2 long loser, P3 tie: averages (-1.0, -1.2), (-0.75, -1.25), (-1, -1).
WORKED = Sums([-20, -9, -16], [20, 12, 16], [-12, -30, -16], [10, 24, 16])


def test_averages_decide_and_a_tie_is_wrong() -> None:
    report = preference_accuracy(WORKED)
    assert report.accuracy.estimate == pytest.approx(2 / 3) and report.accuracy.n == 3
    assert report.margin.estimate == pytest.approx((0.2 + 0.5 + 0.0) / 3)
    assert (report.chosen_mean, report.rejected_mean) == pytest.approx((-2.75 / 3, -3.45 / 3))
    # mean 0.2333, s = sqrt(0.190 / 3) = 0.251661, t(2) = 4.302653: half = 4.302653 * 0.251661 / sqrt(3) = 0.625161
    assert report.margin.high - report.margin.estimate == pytest.approx(0.625161, abs=1e-5)


def test_sums_alone_would_rank_the_long_winner_last() -> None:
    one = Sums([-20, -20], [20, 20], [-12, -12], [10, 10])
    assert preference_accuracy(one).accuracy.estimate == 1.0


def test_scores_of_the_packed_step_fit() -> None:
    columns = {name: torch.tensor(values, dtype=torch.float32) for name, values in vars(WORKED).items()}
    assert preference_accuracy(Scores(mean_chosen_len=16.0, **columns)).accuracy.estimate == pytest.approx(2 / 3)


@given(
    means=st.lists(st.tuples(st.floats(-9, -0.01), st.floats(-9, -0.01)), min_size=2, max_size=20),
    scale=st.integers(1, 50),
)
def test_longer_responses_at_the_same_average_change_nothing(means: list[tuple[float, float]], scale: int) -> None:
    def report(length: int) -> float:
        ones = [length] * len(means)
        sums = Sums([w * length for w, _ in means], ones, [r for _, r in means], [1] * len(means))
        return preference_accuracy(sums).margin.estimate

    assert report(scale) == pytest.approx(report(1))


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (Sums([-1.0], [1], [-2.0], [1]), "at least two"),
        (Sums([-1.0, 0.0], [1, 0], [-2.0, -2.0], [1, 1]), "chosen response of pair 1 is empty"),
        (Sums([-1.0, -1.0], [1, 1], [-2.0, float("nan")], [1, 1]), "rejected log-probability of pair 1 is nan"),
        (Sums([-1.0, -1.0], [1, 1], [-2.0], [1]), "2 chosen scores against 1 rejected"),
        (Sums([-1.0, -1.0], [1], [-2.0, -2.0], [1, 1]), "2 chosen sums but 1 lengths"),
    ],
)
def test_what_has_no_average_is_refused(scores: Sums, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        preference_accuracy(scores)


def test_accuracy_splits_by_which_response_is_longer() -> None:
    # averages as in WORKED, twice: longer, shorter, equal; the longer group is right, the equal group ties
    twice = Sums(*(column * 2 for column in vars(WORKED).values()))
    report = preference_by_length(twice)
    assert report.chosen_longer is not None and report.chosen_longer.accuracy.estimate == 1.0
    assert report.chosen_longer.margin.estimate == pytest.approx(0.2)
    assert report.chosen_shorter is not None and report.chosen_shorter.margin.estimate == pytest.approx(0.5)
    assert report.equal_length is not None and report.equal_length.accuracy.estimate == 0.0
    # a_w = -1, -.75, -1 against 20, 12, 16 tokens: ranks 1.5, 3, 1.5 against 3, 1, 2, so rho = -.75 / sqrt(.75) = -.866
    assert report.correlation is not None and report.correlation.estimate == pytest.approx(-math.sqrt(0.75))
    assert report.as_dict()["equal_length"]["accuracy"]["n"] == 2


def test_groups_that_are_too_small_are_none() -> None:
    report = preference_by_length(WORKED)
    assert report.as_dict() == dict.fromkeys(["chosen_longer", "chosen_shorter", "equal_length", "correlation"])


def test_spearman_by_hand() -> None:
    # d = 1, 1, 0, 1, 1: rho = 1 - 6 * 4 / (5 * 24) = 0.8; z = 1.0986, half = 1.96 * sqrt(1.32 / 2) = 1.5923
    found = spearman([1, 2, 3, 4, 5], [2, 1, 3, 5, 4])
    assert found is not None and found.estimate == pytest.approx(0.8)
    assert (found.low, found.high) == pytest.approx((math.tanh(1.0986 - 1.5923), math.tanh(1.0986 + 1.5923)), abs=1e-4)
    with pytest.raises(DataError, match="2 values against 1"):
        spearman([1, 2], [1])


@given(
    x=st.lists(st.integers(0, 5), min_size=4, max_size=30),
    y=st.lists(st.integers(0, 5), min_size=30, max_size=30),
)
def test_spearman_is_scipys_with_ties_and_turns_with_the_sign(x: list[int], y: list[int]) -> None:
    found = spearman(x, y[: len(x)])
    if found is None:
        assert len(set(x)) == 1 or len(set(y[: len(x)])) == 1
        return
    assert found.estimate == pytest.approx(spearmanr(x, y[: len(x)]).statistic, abs=1e-12)
    assert -1 <= found.low <= found.estimate <= found.high <= 1
    other = spearman([-each for each in x], y[: len(x)])
    assert other is not None and other.estimate == pytest.approx(-found.estimate, abs=1e-12)
