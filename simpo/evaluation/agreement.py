"""Whether two judges say the same of the same pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simpo.errors import DataError
from simpo.evaluation.intervals import Estimate, Z, share_interval

SIDES = 3
"""Answer a, answer b, a tie."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two judges on one subsample."""

    raw: Estimate
    """Share of pairs that both give to the same side, or both call a tie. Wilson's interval."""
    kappa: Estimate | None
    """Cohen's kappa: agreement above what two judges with these habits reach by chance, 1 at most (Cohen 1960). None
    where both gave every pair to one and the same side: then chance alone would agree as well."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"raw": self.raw.as_dict(), "kappa": None if self.kappa is None else self.kappa.as_dict()}


def agreement(first: Sequence[float | None], second: Sequence[float | None]) -> Agreement:
    """Compare preferences in [0, 1] over the same pairs; above 1/2 is side a, below is side b, 1/2 is a tie.

    A pair that either judge did not judge is counted as missing. The interval of kappa is that of its large-sample
    standard error (Fleiss, Cohen and Everitt 1969, Psychol. Bull. 72:323, equation 13).
    Raises DataError: unequal lengths, or no pair that both judged.
    """
    if len(first) != len(second):
        raise DataError(f"{len(first)} judgements against {len(second)}: compare judges on the same pairs")
    sides = [(_side(a), _side(b)) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    n, missing = len(sides), len(first) - len(sides)
    if not n:
        raise DataError("no pair was judged by both judges: there is nothing to compare")
    raw = share_interval(sum(a == b for a, b in sides), n)
    return Agreement(raw=_with_missing(raw, missing), kappa=_kappa(sides, missing))


def _side(preference: float) -> int:
    return (preference > 0.5) - (preference < 0.5) + 1


def _kappa(sides: Sequence[tuple[int, int]], missing: int) -> Estimate | None:
    n = len(sides)
    cells = [[sum(pair == (i, j) for pair in sides) / n for j in range(SIDES)] for i in range(SIDES)]
    rows = [sum(row) for row in cells]
    columns = [sum(row[j] for row in cells) for j in range(SIDES)]
    observed = sum(cells[i][i] for i in range(SIDES))
    chance = sum(rows[i] * columns[i] for i in range(SIDES))
    if chance >= 1.0 - 1e-12:
        return None
    kappa = (observed - chance) / (1 - chance)
    on = sum(cells[i][i] * (1 - (rows[i] + columns[i]) * (1 - kappa)) ** 2 for i in range(SIDES))
    off = sum(cells[i][j] * (columns[i] + rows[j]) ** 2 for i in range(SIDES) for j in range(SIDES) if i != j)
    variance = on + (1 - kappa) ** 2 * off - (kappa - chance * (1 - kappa)) ** 2
    half = Z * math.sqrt(max(0.0, variance) / n) / (1 - chance)
    return Estimate(kappa, max(-1.0, kappa - half), min(1.0, kappa + half), n, missing)


def _with_missing(estimate: Estimate, missing: int) -> Estimate:
    return Estimate(estimate.estimate, estimate.low, estimate.high, estimate.n, missing)
