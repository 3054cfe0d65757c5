"""Tuning curves: how good the best of n randomly drawn trials is, as n grows, with bands that hold exactly.

From N independent draws of a method's space, trained to full budget and scored, this gives for a budget of n trials

* the expected best score, by the unbiased estimator: the mean of the maximum over all subsets of n of the N scores
  (Tang et al. 2020, arXiv 2004.13705; Dodge et al. 2019, arXiv 1909.03004, is the biased form), and
* the median best score, after Lourie, Cho, He 2024, "Show Your Work with Confidence" (arXiv 2311.09480).

Both have bands that cover the true curve at all n at once, whatever the scores' distribution. The median best of n is
the quantile q = 2^(-1/n) of the scores, so how many of the N lie below it is binomial: order statistics bound it. The
expected best needs bounds of the whole distribution function, and a scale with ends. Where scores tie both are
conservative. Of n above `Curve.horizon`, N draws bound the median best from below alone: that is no flaw of this band,
for all N lie below q with probability 2^(-N/n). Pure functions; a score of -inf is a draw that left no model.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv, gammaln

from simpo.errors import DataError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

BAND_LEVEL = 0.975
"""Of one method's band: two bands hold together, and so a verdict, with 95 % (Bonferroni)."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One method's tuning curve over n = 1, 2, ..., N random trials. Bounds of -inf or inf say nothing."""

    scores: tuple[float, ...]
    """The N scores in the order of the trials, larger is better; -inf: the trial left no model."""
    expected: tuple[float | None, ...]
    """Expected best of n; None where it needs a bound of the scale that there is not."""
    expected_band: tuple[tuple[float, float], ...]
    """Of the expected best, holding at all n at once; needs the scale's ends."""
    median: tuple[float, ...]
    """Median best of n: half of all searches of n random trials do at least this well."""
    band: tuple[tuple[float, float], ...]
    """Of the median best, holding at all n at once."""
    level: float
    """Probability that a band holds everywhere."""
    horizon: int
    """Largest n at which `band` has an upper end; a function of N and level alone."""

    def as_dict(self) -> dict[str, Any]:
        """JSON form: what is not finite is null."""
        return {
            "random_trials": len(self.scores),
            "horizon": self.horizon,
            "level": self.level,
            "scores": [_finite(score) for score in self.scores],
            "expected": list(self.expected),
            "expected_low": [_finite(low) for low, _ in self.expected_band],
            "expected_high": [_finite(high) for _, high in self.expected_band],
            "median": [_finite(value) for value in self.median],
            "low": [_finite(low) for low, _ in self.band],
            "high": [_finite(high) for _, high in self.band],
        }


def tuning_curve(
    scores: Sequence[float], *, scale: tuple[float, float] = (-math.inf, math.inf), level: float = BAND_LEVEL
) -> Curve:
    """The curve of N scores. `scale`: the least and the largest possible score; a trial without a model has the least.

    Raises DataError without scores, or for a score that is NaN or off the scale.
    """
    if not scores:
        raise DataError("a tuning curve needs random trials: raise random_stratum")
    if any(math.isnan(score) or (score > -math.inf and not scale[0] <= score <= scale[1]) for score in scores):
        raise DataError(f"scores must be numbers between {scale[0]:g} and {scale[1]:g}")
    ordered = np.sort(np.maximum(np.asarray(scores, dtype=np.float64), scale[0]))
    cdf = cdf_bounds(len(scores), level)
    ends = np.concatenate([[scale[0]], ordered, [scale[1]]])
    budgets = range(1, len(scores) + 1)
    return Curve(
        scores=tuple(float(score) for score in scores),
        expected=tuple(_expected_best(ordered, n) for n in budgets),
        expected_band=tuple(_expected_band(ordered, n, cdf, scale) for n in budgets),
        median=tuple(_median_best(ordered, n) for n in budgets),
        band=tuple((float(ends[low]), float(ends[high])) for low, high in median_bounds(len(scores), level)),
        level=level,
        horizon=horizon(len(scores), level),
    )


def horizon(count: int, level: float = BAND_LEVEL) -> int:
    """The largest n of which `count` draws bound the median best from above: about an eighth of `count`."""
    return sum(high <= count for _, high in median_bounds(count, level))


def first_separation(above: Curve, below: Curve) -> int | None:
    """The n from which on, up to both horizons, all of `above`'s band lies over `below`'s; None: there is none.

    With two bands of 97.5 % each this errs for a pair of methods, in either direction, with at most 5 %.
    """
    until = min(above.horizon, below.horizon)
    first = None
    for n in range(until, 0, -1):
        if above.band[n - 1][0] <= below.band[n - 1][1]:
            break
        first = n
    return first


@functools.cache
def median_bounds(count: int, level: float) -> tuple[tuple[int, int], ...]:
    """For n = 1 ... count the (i, j) with Y_(i) <= median best of n <= Y_(j), all holding at once with `level`.

    i = 0 or j = count + 1: no such order statistic. Each tail of each binomial may miss with the same probability, as
    large as the joint probability allows; the joint probability is computed, not bounded.
    """
    _check(count, level)
    budgets = np.arange(1, count + 1)
    q = 0.5 ** (1 / budgets)
    places = np.arange(count + 1)
    below = bdtr(places[:, None], count, q[None, :])  # P(at most k of the scores lie below the quantile)

    def bounds(tail: float) -> tuple[Counts, Counts]:
        return (below <= tail).sum(axis=0), (1 - below > tail).sum(axis=0)  # fewest, most below the quantile

    held, refused = 0.0, 1.0 - level
    for _ in range(40):
        middle = (held + refused) / 2
        held, refused = (middle, refused) if _joint(q, *bounds(middle), count) >= level else (held, middle)
    fewest, most = bounds(held)
    return tuple((int(low), int(high) + 1) for low, high in zip(fewest, most, strict=True))


@functools.cache
def cdf_bounds(count: int, level: float) -> tuple[Floats, Floats]:
    """(least, most) of F at each order statistic, holding for all of them at once with probability `level`.

    F(Y_(i)) of a continuous F is the i-th of `count` ordered uniforms, a Beta(i, count + 1 - i): the bounds are that
    Beta's shortest interval at one common level (Learned-Miller, DeSalvo 2008, arXiv 1111.1684), chosen so that all
    hold together with `level`, exactly.
    """
    _check(count, level)
    held, refused = 0.0, 1.0 - level  # what each interval may miss
    for _ in range(30):
        middle = (held + refused) / 2
        least, most = _shortest_intervals(count, middle)
        points = np.unique(np.concatenate([least, most]))
        points = points[(points > 0) & (points < 1)]
        fewest, largest = ((points[:, None] >= most).sum(axis=1), (points[:, None] > least).sum(axis=1))
        holds = _joint(points, fewest, largest, count) >= level
        held, refused = (middle, refused) if holds else (held, middle)
    return _shortest_intervals(count, held)


def _check(count: int, level: float) -> None:
    if count < 1 or not 0 < level < 1:
        raise DataError("bounds need at least one draw and a level between 0 and 1")


def _joint(points: Floats, fewest: Counts, most: Counts, count: int) -> float:
    """P(fewest_k <= number of `count` uniforms below points_k <= most_k for all k), points rising in (0, 1).

    Noe's recursion: the number below the next point is the number below this one, plus a binomial of the others.
    """
    places = np.arange(count + 1)
    left, more = count - places[:, None], places[None, :] - places[:, None]  # from j below (rows) to k (columns)
    possible = more >= 0
    more, stay = np.where(possible, more, 0), np.where(possible, left - more, 0)
    ways = np.where(possible, gammaln(left + 1) - gammaln(more + 1) - gammaln(stay + 1), -np.inf)
    chance = np.zeros(count + 1)
    chance[0] = 1.0
    now = 0.0
    for point, least, largest in zip(points, fewest, most, strict=True):
        share = (point - now) / (1 - now)
        chance = chance @ np.exp(ways + more * math.log(share) + stay * math.log1p(-share))
        chance[(places < least) | (places > largest)] = 0.0
        now = point
    return float(chance.sum())


def _shortest_intervals(count: int, miss: float) -> tuple[Floats, Floats]:
    """The shortest interval of each order statistic's Beta that misses it with probability `miss`."""
    first = np.arange(1, count + 1, dtype=np.float64)
    second = count + 1 - first
    low, high = np.zeros(count), np.full(count, miss)  # of the probability below the interval
    for _ in range(30):
        below = (low + high) / 2
        left, right = betaincinv(first, second, below), betaincinv(first, second, below + 1 - miss)
        with np.errstate(divide="ignore", invalid="ignore"):
            rises = (first - 1) * np.log(left) + (second - 1) * np.log1p(-left) < (
                (first - 1) * np.log(right) + (second - 1) * np.log1p(-right)
            )
        low, high = np.where(rises, below, low), np.where(rises, high, below)
    # The densities of the first and the last order statistic are monotone: their intervals reach an end.
    low[first == 1], low[second == 1] = 0.0, miss
    return betaincinv(first, second, low), betaincinv(first, second, np.minimum(low + 1 - miss, 1.0))


def _expected_best(ordered: Floats, n: int) -> float | None:
    """sum over i of C(i - 1, n - 1) / C(N, n) * Y_(i): the i-th is the best of so many subsets of n."""
    count = len(ordered)
    weights = [math.comb(i, n - 1) / math.comb(count, n) for i in range(count)]
    terms = [weight * value for weight, value in zip(weights, ordered, strict=True) if weight]
    total = math.fsum(terms) if all(map(math.isfinite, terms)) else -math.inf
    return total if math.isfinite(total) else None


def _expected_band(
    ordered: Floats, n: int, cdf: tuple[Floats, Floats], scale: tuple[float, float]
) -> tuple[float, float]:
    """E[best of n] = top - integral of F^n over the scale, with F at its largest and at its least."""
    bottom, top = scale
    if not (math.isfinite(bottom) and math.isfinite(top)):
        return (-math.inf, math.inf)
    steps = np.diff(np.concatenate([[bottom], ordered, [top]]))
    largest, smallest = np.append(cdf[1], 1.0), np.concatenate([[0.0], cdf[0]])
    return float(top - steps @ largest**n), float(top - steps @ smallest**n)


def _median_best(ordered: Floats, n: int) -> float:
    """The least score that the best of n does not exceed in half of all subsets of n: C(i, n) / C(N, n) >= 1/2."""
    count = len(ordered)
    place = next(i for i in range(1, count + 1) if 2 * math.comb(i, n) >= math.comb(count, n))
    return float(ordered[place - 1])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
