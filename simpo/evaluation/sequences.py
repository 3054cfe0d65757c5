"""Intervals that hold at every moment, so that one may look after each judgement and stop when one likes.

Estimating a bounded mean by betting (Waudby-Smith and Ramdas 2024, J. R. Stat. Soc. B 86:1, arXiv 2010.09686): if the
mean of d is at most 0 given the past, then for a fixed bet 0 <= l < 1 and d >= -1 the capital K_t = prod_i (1 + l
d_i) is a non-negative supermartingale that starts at 1, and by Ville's inequality it ever reaches 1/alpha with
probability at most alpha. A mean over several bets is such a capital too: it needs no guess of the right bet, and it
does not depend on the order of the judgements of a batch.

Assumed: judgements of prompts that are drawn at random, which is why prompts are shuffled before they are judged.
"""

import numpy as np
from numpy.typing import NDArray

from simpo.errors import DataError
from simpo.evaluation.intervals import Estimate

Floats = NDArray[np.float64]

BETS_L = np.geomspace(0.05, 0.9, 8)
"""Shares of the capital that are bet at once. The best fixed bet is near mean/variance: from a difference of 0.01 to a
separation so plain that a dozen judgements show it."""

GRID = 400
"""Candidate means in (0, 1) that an interval is made of; its ends are rounded outwards by one step."""


def log_gains(differences: Floats) -> Floats:
    """log(1 + l d) for each bet l, shape (..., L); d >= -1, and NaN (missing) moves no capital."""
    known = np.nan_to_num(differences, nan=0.0)
    return np.asarray(np.log1p(known[..., None] * BETS_L))


def log_capital(gains: Floats) -> Floats:
    """log of the mean capital over the bets, from gains summed over the judgements, (..., L) -> (...)."""
    peak = gains.max(axis=-1, keepdims=True)
    return np.asarray(peak[..., 0] + np.log(np.exp(gains - peak).mean(axis=-1)))


def anytime_interval(values: Floats, *, level: float = 0.05) -> Estimate:
    """The mean of values in [0, 1] with an interval that covers it at all times at once, with probability 1 - level.

    A candidate mean m is refused once the mean of two capitals, one betting above m and one below, reaches 1/level. NaN
    is missing. Without a value the interval is [0, 1] around 1/2.
    Raises DataError: a value outside [0, 1].
    """
    known = values[~np.isnan(values)]
    missing = len(values) - len(known)
    if not len(known):
        return Estimate(0.5, 0.0, 1.0, 0, missing)
    if known.min() < 0.0 or known.max() > 1.0:
        raise DataError("preferences lie in [0, 1]")
    # Verdicts take few different values: each is evaluated once and weighted by how often it was seen.
    seen, times = np.unique(known, return_counts=True)
    means_M = (np.arange(GRID) + 0.5) / GRID
    # Scaled so that no bet can lose more than all: (x - m) / m >= -1 and (m - x) / (1 - m) >= -1.
    above = np.tensordot(times, log_gains((seen[:, None] - means_M) / means_M), axes=(0, 0))
    below = np.tensordot(times, log_gains((means_M - seen[:, None]) / (1.0 - means_M)), axes=(0, 0))
    both = np.logaddexp(log_capital(above), log_capital(below)) - np.log(2.0)
    kept = means_M[both < -np.log(level)]
    mean, step = float(known.mean()), 1.0 / GRID
    low, high = (float(kept[0]) - step, float(kept[-1]) + step) if len(kept) else (mean - step, mean + step)
    return Estimate(mean, max(0.0, min(low, mean)), min(1.0, max(high, mean)), len(known), missing)
