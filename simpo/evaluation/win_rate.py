"""How often one model's answers beat another's under the same judge."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from simpo.errors import DataError
from simpo.evaluation.intervals import Estimate, paired_share_interval


class Tally(NamedTuple):
    """Paired comparisons, counted."""

    wins: int
    ties: int
    losses: int
    missing: int
    """Pairs with at least one failed judgement."""


def win_rate(scores_a: Sequence[float | None], scores_b: Sequence[float | None]) -> Estimate:
    """Share of prompts on which a beats b, ties counted half, with its 95 % interval.

    Row i of both is the same prompt under the same judge. A failed judgement (None or NaN) on either side makes the
    prompt missing: counted in `missing`, in no other figure, and never a tie.
    Raises DataError: unequal lengths, or no prompt with both judgements.
    """
    counts = tally(scores_a, scores_b)
    if counts.wins + counts.ties + counts.losses == 0:
        raise DataError(f"there is no win rate: all of {counts.missing} judgements are missing. Look at the judge")
    estimate = paired_share_interval(counts.wins, counts.ties, counts.losses)
    return dataclasses.replace(estimate, missing=counts.missing)


def tally(scores_a: Sequence[float | None], scores_b: Sequence[float | None]) -> Tally:
    """Count wins, ties and losses of a against b. Raises DataError: unequal lengths."""
    found = preferences(scores_a, scores_b)
    return Tally(*(found.count(value) for value in (1.0, 0.5, 0.0, None)))


def preferences(scores_a: Sequence[float | None], scores_b: Sequence[float | None]) -> list[float | None]:
    """By prompt: 1 where a beats b, 0.5 for a tie, 0; None where a judgement is missing. Raises DataError: lengths."""
    if len(scores_a) != len(scores_b):
        raise DataError(f"{len(scores_a)} scores against {len(scores_b)}: compare answers to the same prompts")
    return [_preference(a, b) for a, b in zip(scores_a, scores_b, strict=True)]


def _preference(a: float | None, b: float | None) -> float | None:
    if a is None or b is None or math.isnan(a) or math.isnan(b):
        return None
    return 0.5 if a == b else float(a > b)
