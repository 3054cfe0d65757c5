"""Tuning curves: the estimators against enumeration, the bands against simulation, verdicts by hand."""

import itertools
import math
import statistics

import numpy as np
import pytest

from simpo.errors import DataError
from sweeps.tuning_curve import cdf_bounds, first_separation, horizon, median_bounds, tuning_curve

pytestmark = pytest.mark.quick

SCORES = [0.3, 0.9, 0.1, 0.5, 0.5, 0.7]


@pytest.mark.parametrize("n", range(1, 7))
def test_the_estimates_are_those_of_all_subsets(n: int) -> None:
    best = [max(subset) for subset in itertools.combinations(SCORES, n)]
    curve = tuning_curve(SCORES)
    assert curve.expected[n - 1] == pytest.approx(statistics.fmean(best))
    assert curve.median[n - 1] == statistics.median_low(best)


@pytest.mark.parametrize("count", [8, 16])
def test_the_band_of_the_median_covers_at_all_budgets_at_once(count: int) -> None:
    level, runs = 0.9, 20_000
    draws = np.sort(np.random.default_rng(count).random((runs, count)), axis=1)
    ends = np.concatenate([np.zeros((runs, 1)), draws, np.ones((runs, 1))], axis=1)
    low, high = np.array(median_bounds(count, level)).T
    truth = 0.5 ** (1 / np.arange(1, count + 1))  # of uniform scores
    covered = ((ends[:, low] <= truth) & (truth <= ends[:, high])).all(axis=1).mean()
    assert covered >= level - 3 * math.sqrt(level * (1 - level) / runs)
    assert covered <= level + 0.06, "far too wide: the order statistics are discrete, but not so coarse"

    stairs, truth = np.ceil(ends * 5) / 5, np.ceil(truth * 5) / 5  # five values: ties only make it safer
    assert ((stairs[:, low] <= truth) & (truth <= stairs[:, high])).all(axis=1).mean() >= covered


def test_the_bounds_of_the_distribution_hold_with_their_level() -> None:
    level, runs, count = 0.9, 20_000, 8
    least, most = cdf_bounds(count, level)
    draws = np.sort(np.random.default_rng(1).random((runs, count)), axis=1)
    held = np.all((least <= draws) & (draws <= most), axis=1)
    covered = float(np.mean(held))
    assert covered == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / runs))
    # Hence the expected best's band: of uniform scores it is n / (n + 1).
    for row in draws[:200][np.flatnonzero(held[:200])]:
        curve = tuning_curve(row.tolist(), scale=(0.0, 1.0), level=level)
        assert all(low <= n / (n + 1) <= high for n, (low, high) in enumerate(curve.expected_band, 1))


def test_a_trial_without_a_model_is_the_worst_draw() -> None:
    assert tuning_curve([-math.inf, 0.6], scale=(0.0, 1.0)).expected == pytest.approx((0.3, 0.6))
    unbounded = tuning_curve([-math.inf, 0.6, 0.8])
    assert unbounded.expected[0] is None
    assert unbounded.expected[1:] == pytest.approx((2 / 3 * 0.8 + 1 / 3 * 0.6, 0.8))
    assert unbounded.as_dict()["scores"] == [None, 0.6, 0.8]
    assert unbounded.as_dict()["high"] == [None, None, None], "three draws say nothing from above"


def test_what_n_draws_can_say_is_known_before_they_are_made() -> None:
    assert [horizon(count) for count in (4, 8, 16, 24, 32)] == [0, 1, 2, 3, 4]
    curve = tuning_curve([k / 16 for k in range(16)], scale=(0.0, 1.0))
    assert curve.horizon == 2
    assert curve.band[curve.horizon - 1][1] < 1.0
    assert curve.band[curve.horizon][1] == 1.0


def test_a_verdict_needs_bands_apart_up_to_the_horizon() -> None:
    good = tuning_curve([0.80 + k / 1000 for k in range(16)])
    bad = tuning_curve([0.50 + k / 1000 for k in range(16)])
    late = tuning_curve([0.1] * 6 + [0.9] * 10)  # often poor, but the best of two is good
    assert first_separation(good, bad) == 1
    assert first_separation(bad, good) is None
    assert first_separation(late, bad) == 2
    assert first_separation(good, good) is None
    assert first_separation(tuning_curve([0.9] * 4), tuning_curve([0.1] * 4)) is None, "four draws decide nothing"


def test_scores_that_are_no_scores_are_refused() -> None:
    with pytest.raises(DataError, match="random_stratum"):
        tuning_curve([])
    with pytest.raises(DataError, match="between 0 and 1"):
        tuning_curve([1.2], scale=(0.0, 1.0))
