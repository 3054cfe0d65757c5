"""An estimate and its 95 % interval. Every figure that is reported about a model has this form."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from simpo.errors import DataError

LEVEL = 0.95
"""Of every interval that says nothing else."""
Z = statistics.NormalDist().inv_cdf(0.975)
"""1.96: half the width of a 95 % interval in standard errors."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    estimate: float
    low: float
    high: float
    n: int
    """Observations that the figure rests on."""
    missing: int = 0
    """Observations that were wanted but could not be had; they count for neither side."""

    def as_dict(self) -> dict[str, float | int]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        text = f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n}"
        return f"{text}, {self.missing} missing)" if self.missing else f"{text})"


def share_interval(successes: int, n: int, *, level: float = LEVEL) -> Estimate:
    """A share of yes/no observations, with Wilson's score interval (Wilson 1927; Brown, Cai, DasGupta 2001).

    It keeps its coverage at shares near 0 and 1, where the usual p +- 1.96 s.e. collapses to a point.
    """
    if n < 1:
        raise DataError("a share of no observations is not a number: evaluate at least one")
    z = _normal(level)
    share, z2 = successes / n, z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the ends the bound equals the share exactly; rounding must not put the estimate outside.
    return Estimate(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)), n)


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """A mean of real values, with Student's t interval (Student 1908)."""
    n = len(values)
    if n < 2:
        raise DataError(f"the spread of {n} observations is not known: evaluate at least two")
    mean = math.fsum(values) / n
    half = float(stdtrit(n - 1, (1 + level) / 2)) * statistics.stdev(values, mean) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def paired_share_interval(wins: int, ties: int, losses: int, *, level: float = LEVEL) -> Estimate:
    """The share of wins with ties counted half, over paired comparisons.

    wins/n - losses/n is a difference of matched proportions, and the share is 1/2 + half of it. Interval: Agresti and
    Min (2005, Stat. Med. 24:729), the Wald interval after adding 1/2 to each cell of the matched 2x2 table (so 1/2 to
    wins, 1/2 to losses, 1 to ties). Ties narrow it, as they should; all ties or all wins do not collapse it to a point.
    The estimate itself is the plain share.
    """
    n = wins + ties + losses
    if n < 1:
        raise DataError("a win rate of no comparison is not a number: judge at least one")
    more, fewer, total = wins + 0.5, losses + 0.5, n + 2
    difference = (more - fewer) / total
    error = math.sqrt(more + fewer - (more - fewer) ** 2 / total) / total
    z = _normal(level)
    low, high = (0.5 + (difference + sign * z * error) / 2 for sign in (-1, 1))
    return Estimate((wins + ties / 2) / n, max(0.0, low), min(1.0, high), n)


def preference_interval(values: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """The mean of preferences in [0, 1] over paired comparisons: a win rate whose verdicts may be shades.

    `paired_share_interval` for any value: half an observation at 0, half at 1 and one at 1/2 join the mean and the
    variance of the interval, so that equal values do not collapse it to a point. On 0, 1/2 and 1 the two agree exactly.
    Raises DataError: no value, or one outside [0, 1].
    """
    n = len(values)
    if n < 1:
        raise DataError("a win rate of no comparison is not a number: judge at least one")
    if not all(0.0 <= value <= 1.0 for value in values):
        raise DataError("preferences lie in [0, 1]")
    total = n + 2
    centre = (math.fsum(values) + 1.0) / total
    variance = max(0.0, (math.fsum(value * value for value in values) + 0.75) / total - centre * centre)
    half = _normal(level) * math.sqrt(variance / total)
    mean = math.fsum(values) / n
    # All wins of a few: the mean itself must not stand outside its interval.
    return Estimate(mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)), n)


def ratio_interval(above: Sequence[float], below: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """mean(above) / mean(below) over paired observations, with the interval of its linearisation.

    The residuals above - R * below have the spread that R inherits (Cochran 1977, Sampling Techniques, section 6.4).
    Raises DataError: unequal lengths, fewer than two pairs, or a mean below that is not above 0.
    """
    if len(above) != len(below):
        raise DataError(f"{len(above)} values over {len(below)}: a ratio is of pairs")
    base = math.fsum(below) / len(below) if below else 0.0
    if base <= 0:
        raise DataError("a ratio to a mean that is not above 0 is not a number")
    ratio = math.fsum(above) / len(above) / base
    spread = mean_interval([a - ratio * b for a, b in zip(above, below, strict=True)], level=level)
    half = (spread.high - spread.low) / 2 / base
    return Estimate(ratio, ratio - half, ratio + half, len(above))


def _normal(level: float) -> float:
    """Half the width of a normal interval of that level, in standard errors."""
    return Z if level == LEVEL else statistics.NormalDist().inv_cdf((1 + level) / 2)
