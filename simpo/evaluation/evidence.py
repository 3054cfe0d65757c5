"""What a promotion is decided on: figures of a candidate beside the model that it would replace, each with an interval.

    win_rate         preference for the candidate's answers over the reference's, both orders of a pair
    accuracy_gain    share of held-out pairs ranked right, candidate - reference
    capability       share of a capability set answered right, candidate - reference
    length_ratio     tokens of the candidate's answers / tokens of the data's own chosen answers
    repetition       mean share of repeated 4-grams in an answer (`probes.repetition`)
    eos_rate         share of answers that ended by themselves
    truncation_rate  share of answers that were cut off at the longest allowed length
    empty_rate       share of answers without visible text
    chosen_drop      nats a token by which the chosen answers became less likely than under the candidate's own base

Reference: the champion, or the base model where nothing is in production yet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from simpo.errors import DataError
from simpo.evaluation.intervals import (
    LEVEL,
    Estimate,
    mean_interval,
    paired_share_interval,
    preference_interval,
    ratio_interval,
    share_interval,
)
from simpo.evaluation.judged import JudgedWinRate
from simpo.evaluation.preference import PairScores, averages
from simpo.evaluation.probes import Generated, repetition

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What one model did on held-out data. Sequences of two models on the same data have the same order."""

    generations: Sequence[Generated]
    """Its answers; may be empty."""
    scores: PairScores | None = None
    """Its log-probabilities of held-out pairs."""
    right: Sequence[bool] | None = None
    """Per item of the capability set; None without one."""


def figures_of(
    candidate: Behaviour,
    reference: Behaviour,
    base: Behaviour,
    *,
    reference_lengths: Sequence[int],
    judged: JudgedWinRate | None,
    level: float = LEVEL,
) -> dict[str, Estimate]:
    """Every figure that these allow, by the names above; what was not measured is absent.

    reference_lengths: tokens of the data's chosen answers, end token included, one a generation.
    Raises DataError: sequences of the models do not have the same length.
    """
    figures: dict[str, Estimate] = {}
    had = [] if judged is None else [p for p in judged.preferences if p is not None]
    if judged is not None and had:
        share = preference_interval(had, level=level)
        figures["win_rate"] = _missing(share, len(judged.preferences) - len(had))
    if len(candidate.generations) > 1:
        figures |= _probes(candidate.generations, reference_lengths, level)
    if candidate.scores is not None and base.scores is not None:
        drops = [b - c for c, b in _aligned(averages(candidate.scores)[0], averages(base.scores)[0])]
        figures["chosen_drop"] = mean_interval(drops, level=level)
    if candidate.scores is not None and reference.scores is not None:
        figures["accuracy_gain"] = _gain(_ranked(candidate.scores), _ranked(reference.scores), level)
    if candidate.right is not None and reference.right is not None:
        figures["capability"] = _gain(candidate.right, reference.right, level)
    return figures


def evidence_of(
    figures: Mapping[str, Estimate], judged: JudgedWinRate | None, *, level: float = LEVEL, **facts: Any
) -> dict[str, Any]:
    """Plain JSON: the figures, whether to believe them, and what they rest on. `facts`: of the caller."""
    return {
        "state": "VALID" if judged is None else judged.state,
        "reasons": [] if judged is None else list(judged.reasons),
        "figures": {name: estimate.as_dict() for name, estimate in figures.items()},
        "level": level,
        "judge": None if judged is None else judged.as_dict(),
        **facts,
    }


def _probes(generations: Sequence[Generated], lengths: Sequence[int], level: float) -> dict[str, Estimate]:
    n = len(generations)
    ended = sum(each.finish_reason == "stop" for each in generations)
    empty = sum(not each.text.strip() for each in generations)
    return {
        "length_ratio": ratio_interval([len(each.token_ids) for each in generations], lengths, level=level),
        "repetition": mean_interval([repetition(each.token_ids) for each in generations], level=level),
        "eos_rate": share_interval(ended, n, level=level),
        "truncation_rate": share_interval(n - ended, n, level=level),
        "empty_rate": share_interval(empty, n, level=level),
    }


def _ranked(scores: PairScores) -> list[bool]:
    """Strict, as in `preference_accuracy`."""
    return [w > r for w, r in zip(*averages(scores), strict=True)]


def _gain(candidate: Sequence[bool], reference: Sequence[bool], level: float) -> Estimate:
    """Difference of two shares over the same items: twice a win rate of yes over no, less one."""
    both = _aligned(candidate, reference)
    wins, losses = sum(a > b for a, b in both), sum(a < b for a, b in both)
    share = paired_share_interval(wins, len(both) - wins - losses, losses, level=level)
    return Estimate(2 * share.estimate - 1, 2 * share.low - 1, 2 * share.high - 1, share.n)


def _aligned(first: Sequence[T], second: Sequence[T]) -> list[tuple[T, T]]:
    if len(first) != len(second):
        raise DataError(f"{len(first)} values against {len(second)}: compare two models on the same data")
    return list(zip(first, second, strict=True))


def _missing(estimate: Estimate, missing: int) -> Estimate:
    return Estimate(estimate.estimate, estimate.low, estimate.high, estimate.n, missing)
