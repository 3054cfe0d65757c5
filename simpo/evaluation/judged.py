"""One model's answers against another's under a pairwise judge, with the controls that say whether to believe it."""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simpo.evaluation.controls import Control, ControlResult, State, check_controls, faults_of
from simpo.evaluation.intervals import Estimate, preference_interval
from simpo.evaluation.verdicts import (
    Both,
    Comparison,
    JudgeCounts,
    JudgeIdentity,
    PairwiseJudge,
    counts_of,
    judge_both_orders,
)


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What says whether a judge's figures may be believed."""

    counts: JudgeCounts
    """Of the real pairs."""
    control_counts: JudgeCounts
    """Of the controls."""
    controls: tuple[ControlResult, ...]
    reasons: tuple[str, ...]
    """Why the figures are INVALID; empty when they are VALID."""

    @property
    def state(self) -> State:
        """INVALID: the figures may be looked at, and nothing may be decided on them."""
        return "INVALID" if self.reasons else "VALID"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "state": self.state,
            "reasons": list(self.reasons),
            "counts": self.counts.as_dict(),
            "control_counts": self.control_counts.as_dict(),
            "controls": [each.as_dict() for each in self.controls],
        }


@dataclass(frozen=True, kw_only=True)
class JudgedWinRate(Trust):
    """A win rate and all that it rests on."""

    judge: JudgeIdentity
    win_rate: Estimate | None
    """Of answer_a over answer_b: mean preference over both orders. None: nothing could be judged."""
    preferences: tuple[float | None, ...]
    """By pair; None where it is missing."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the single preferences."""
        return {
            **super().as_dict(),
            "judge": self.judge.as_dict(),
            "win_rate": None if self.win_rate is None else self.win_rate.as_dict(),
        }


def judge_with_controls(
    judge: PairwiseJudge, comparisons: Sequence[Comparison], controls: Sequence[Control], *, seed: int = 0
) -> JudgedWinRate:
    """Judge real pairs with controls hidden among them."""
    real, checks = judge_mixed(judge, comparisons, controls, seed=seed)
    results = check_controls(controls, checks)
    preferences = tuple(both.preference for both in real)
    had = [preference for preference in preferences if preference is not None]
    estimate = preference_interval(had) if had else None
    return JudgedWinRate(
        judge=judge.identity,
        win_rate=estimate and dataclasses.replace(estimate, missing=len(real) - len(had)),
        preferences=preferences,
        counts=counts_of(real),
        control_counts=counts_of(checks),
        controls=tuple(results),
        reasons=tuple(faults_of(results, real)),
    )


def judge_mixed(
    judge: PairwiseJudge, comparisons: Sequence[Comparison], controls: Sequence[Control], *, seed: int = 0
) -> tuple[list[Both], list[Both]]:
    """(the pairs, the controls), judged in one batch in an order that tells nobody which is which."""
    everything = [*comparisons, *(control.comparison for control in controls)]
    order = list(range(len(everything)))
    random.Random(f"batch/{seed}").shuffle(order)
    shuffled = judge_both_orders(judge, [everything[place] for place in order])
    judged = [both for _, both in sorted(zip(order, shuffled, strict=True), key=lambda each: each[0])]
    return judged[: len(comparisons)], judged[len(comparisons) :]
