"""Intervals: figures worked by hand, and the coverage they promise."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo.errors import DataError
from simpo.evaluation.intervals import Estimate, mean_interval, paired_share_interval, share_interval

pytestmark = pytest.mark.quick


def test_wilson_by_hand() -> None:
    # z = 1.959964, z^2 = 3.841459. 5 of 10: centre 1/2, half = z / (1 + z^2/10) * sqrt(1/40 + z^2/400) = 0.263407.
    assert share_interval(5, 10) == Estimate(
        0.5, pytest.approx(0.236593, abs=1e-6), pytest.approx(0.763407, abs=1e-6), 10
    )
    # 0 of 10: from 0 to z^2 / (10 + z^2) = 3.841459 / 13.841459.
    assert share_interval(0, 10) == Estimate(0.0, 0.0, pytest.approx(0.277533, abs=1e-6), 10)
    assert share_interval(10, 10) == Estimate(1.0, pytest.approx(0.722467, abs=1e-6), 1.0, 10)


def test_student_by_hand() -> None:
    # 1..5: mean 3, s = sqrt(2.5), t(4, 0.975) = 2.776445, half = 2.776445 * sqrt(2.5 / 5) = 1.963243.
    low, high = pytest.approx(3 - 1.963243, abs=1e-6), pytest.approx(3 + 1.963243, abs=1e-6)
    assert mean_interval([1, 2, 3, 4, 5]) == Estimate(3.0, low, high, 5)


def test_agresti_min_by_hand() -> None:
    # 6 wins, 2 ties, 2 losses: (6.5 - 2.5) / 12 = 1/3; variance (9 - 16/12) / 144, s.e. 0.230740;
    # 1/3 +- 1.959964 * 0.230740 = (-0.118908, 0.785575), and 1/2 + half of that.
    low, high = pytest.approx(0.440546, abs=1e-5), pytest.approx(0.892787, abs=1e-5)
    assert paired_share_interval(6, 2, 2) == Estimate(0.7, low, high, 10)


def test_one_sided_outcomes_do_not_collapse_to_a_point() -> None:
    for wins, ties, losses in ((500, 0, 0), (0, 500, 0), (0, 0, 500), (1, 0, 0)):
        interval = paired_share_interval(wins, ties, losses)
        assert interval.low <= interval.estimate <= interval.high and interval.high - interval.low > 0.003


def test_ties_narrow_the_interval() -> None:
    decided, tied = paired_share_interval(60, 0, 40), paired_share_interval(30, 50, 20)
    assert decided.estimate == 0.6 and tied.estimate == 0.55
    assert tied.high - tied.low < decided.high - decided.low


@pytest.mark.parametrize(
    ("win", "tie"), [(0.5, 0.0), (0.34, 0.33), (0.05, 0.9), (0.45, 0.35), (0.9, 0.05), (0.62, 0.38), (0.98, 0.02)]
)
@pytest.mark.parametrize("n", [20, 60])
def test_the_win_rate_interval_covers_the_truth(n: int, win: float, tie: float) -> None:
    """Exact coverage: the probability of every outcome whose interval holds the true share."""
    loss = 1 - win - tie
    truth, covered = win + tie / 2, 0.0
    for wins in range(n + 1):
        for ties in range(n + 1 - wins):
            counts = (wins, ties, n - wins - ties)
            log = math.lgamma(n + 1) - sum(math.lgamma(count + 1) for count in counts)
            if any(p < 1e-9 and count for p, count in zip((win, tie, loss), counts, strict=True)):
                continue
            log += sum(c * math.log(p) for p, c in zip((win, tie, loss), counts, strict=True) if c)
            interval = paired_share_interval(*counts)
            covered += math.exp(log) * (interval.low <= truth <= interval.high)
    assert 0.93 <= covered <= 1.0


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.97])
def test_wilson_covers_the_truth_on_average(share: float) -> None:
    """A single n swings with the grid of whole numbers, so the mean over n = 50 .. 69 is held to the promise."""
    coverage = []
    for n in range(50, 70):
        inside = [k for k in range(n + 1) if share_interval(k, n).low <= share <= share_interval(k, n).high]
        coverage.append(sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in inside))
    assert 0.935 <= sum(coverage) / len(coverage) <= 0.985


def test_student_covers_the_truth() -> None:
    draws = np.random.default_rng(7).normal(loc=0.3, scale=2.0, size=(2000, 12))
    covered = [interval.low <= 0.3 <= interval.high for interval in map(mean_interval, draws.tolist())]
    assert 0.935 <= sum(covered) / len(covered) <= 0.965  # 0.95 +- 3 standard errors of 2000 trials


@given(wins=st.integers(0, 2000), ties=st.integers(0, 2000), losses=st.integers(0, 2000))
def test_swapping_sides_mirrors_the_interval(wins: int, ties: int, losses: int) -> None:
    if wins + ties + losses == 0:
        with pytest.raises(DataError, match="judge at least one"):
            paired_share_interval(wins, ties, losses)
        return
    here, there = paired_share_interval(wins, ties, losses), paired_share_interval(losses, ties, wins)
    assert 0 <= here.low <= here.estimate <= here.high <= 1
    assert (here.estimate, here.low) == pytest.approx((1 - there.estimate, 1 - there.high))


@given(n=st.integers(1, 5000), data=st.data())
def test_a_share_lies_in_its_interval(n: int, data: st.DataObject) -> None:
    interval = share_interval(data.draw(st.integers(0, n)), n)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1 and interval.low < interval.high


def test_too_few_observations_are_refused() -> None:
    with pytest.raises(DataError, match="at least one"):
        share_interval(0, 0)
    with pytest.raises(DataError, match="at least two"):
        mean_interval([1.0])


def test_an_estimate_reads_travels_and_prints() -> None:
    estimate = Estimate(0.62, 0.58, 0.66, 500, missing=3)
    assert estimate.as_dict() == {"estimate": 0.62, "low": 0.58, "high": 0.66, "n": 500, "missing": 3}
    assert pickle.loads(pickle.dumps(estimate)) == estimate
    assert str(estimate) == "0.620 [0.580, 0.660] (n=500, 3 missing)"
