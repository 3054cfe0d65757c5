"""The part of the finals that a pairwise judge decides: who is the best finalist, and by how much it beats the base.

Both stages hide controls among the pairs (`simpo.evaluation.controls`). A choice whose judge failed them is not
followed: the finalist that the search put first wins. A report whose judge failed them is INVALID.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from simpo.evaluation.adaptive import ROUND, Standings, compare_adaptively
from simpo.evaluation.agreement import Agreement, agreement
from simpo.evaluation.controls import (
    EXPECTED,
    MIN_JUDGED,
    PER_KIND,
    Control,
    State,
    check_controls,
    faults_of,
    make_controls,
)
from simpo.evaluation.judged import JudgedWinRate, Trust, judge_mixed, judge_with_controls
from simpo.evaluation.verdicts import (
    Both,
    Comparison,
    JudgeCounts,
    JudgeIdentity,
    PairwiseJudge,
    counts_of,
    judge_both_orders,
)
from sweeps.judges_http import HttpJudge
from sweeps.judges_store import Spent

SELF_PROMPTS = PER_KIND
"""Prompts that the base answers twice, for the control of it against itself."""

_CHOICE_CONTROLS = MIN_JUDGED * len(EXPECTED)
_REPORT_CONTROLS = PER_KIND * len(EXPECTED)


@dataclass(frozen=True, kw_only=True)
class AnswerSet:
    """One held-out set with answers to be compared."""

    prompts: Sequence[str]
    """As the judge reads them."""
    chosen: Sequence[str]
    """The data's own better answers: what the controls take as good."""
    base: Sequence[str]
    """The base model's answers."""
    resampled: Sequence[tuple[str, str]]
    """Two samples of the base for each of the first prompts."""


@dataclass(frozen=True, kw_only=True)
class Choice(Trust):
    """How the finalists were told apart. INVALID: the order of the search decides instead."""

    standings: Standings

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**super().as_dict(), "standings": self.standings.as_dict()}


@dataclass(frozen=True, kw_only=True)
class SecondOpinion:
    """Another judge on a part of the report's pairs."""

    judge: JudgeIdentity
    counts: JudgeCounts
    agreement: Agreement | None
    """None: there was no pair that both judged."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        together = None if self.agreement is None else self.agreement.as_dict()
        return {"judge": self.judge.as_dict(), "counts": self.counts.as_dict(), "agreement": together}


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """All that the finals' judge has said, as it stands in result.json under `judge`."""

    report: JudgedWinRate
    """The winner against the base, on data that chose nobody."""
    choice: Choice | None = None
    """Among the finalists; None where the search's own metric chose."""
    second: SecondOpinion | None = None
    spent: Spent | None = None
    """Of the first judge, over all attempts; None for a judge that costs nothing."""

    @property
    def state(self) -> State:
        """INVALID: nothing may be promoted on this evaluation."""
        return self.report.state

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: those of the report, and beside them the rest."""
        return {
            **self.report.as_dict(),
            "choice": None if self.choice is None else self.choice.as_dict(),
            "second": None if self.second is None else self.second.as_dict(),
            "spent": None if self.spent is None else self.spent.as_dict(),
        }


def shares_of(max_requests: int, *, prompts: int, finalists: int) -> tuple[int, int]:
    """(judgements for the choice, pairs for the report) of a budget; a function of the spec alone.

    A pair takes two requests, one for each order; a twentieth is left for retries. The choice gets what the report does
    not need, and half where there is too little for both. So a resumed attempt asks the same questions again, and finds
    them on record.
    """
    pairs = int(0.95 * (max_requests - 1)) // 2 - _REPORT_CONTROLS
    if finalists < 2:
        return 0, min(prompts, pairs)
    pairs -= _CHOICE_CONTROLS
    report = min(prompts, pairs // 2)
    # After the first round each brings one more control of every kind.
    return (pairs - report) * ROUND // (ROUND + len(EXPECTED)), report


def choose(
    judge: PairwiseJudge,
    answered: AnswerSet,
    answers: Sequence[Sequence[str]],
    names: Sequence[str],
    *,
    budget: int,
    seed: int,
    tell: Callable[[str], None],
) -> Choice:
    """Compare finalists adaptively on the same prompts, each against the base. answers: one row a finalist.

    The first round carries enough controls to know the judge before more is spent on it.
    """
    order = list(range(len(answered.prompts)))
    random.Random(f"choice/{seed}").shuffle(order)
    stock = _stock(answered, rounds=1 + len(order) // ROUND, seed=seed)
    controls: list[Control] = []
    judged_controls: list[Both] = []
    judged: list[Both] = []

    def ask(contenders: Sequence[int], which: range) -> list[list[float | None]]:
        fresh = stock.pop(0) if stock else []
        places = [order[place] for place in which]
        pairs = [Comparison(answered.prompts[i], answers[k][i], answered.base[i]) for k in contenders for i in places]
        both, checks = judge_mixed(judge, pairs, fresh, seed=len(judged) + seed)
        failed = not controls and faults_of(check_controls(fresh, checks), ())
        controls.extend(fresh)
        judged.extend(both)
        judged_controls.extend(checks)
        if failed:
            return [[None] * len(which) for _ in contenders]  # nothing more is spent on this judge
        tell(f"judged {len(judged)} answers, {len(contenders)} finalists left")
        values = [each.preference for each in both]
        return [values[row * len(which) : (row + 1) * len(which)] for row in range(len(contenders))]

    standings = compare_adaptively(names, ask, prompts=len(order), budget=budget)
    results = check_controls(controls, judged_controls)
    return Choice(
        standings=standings,
        counts=counts_of(judged),
        control_counts=counts_of(judged_controls),
        controls=tuple(results),
        reasons=tuple(faults_of(results, judged)),
    )


def report(
    judge: PairwiseJudge,
    answered: AnswerSet,
    answers: Sequence[str],
    *,
    pairs: int,
    seed: int,
    choice: Choice | None = None,
    second: PairwiseJudge | None = None,
    second_pairs: int = 0,
) -> Judgement:
    """The winner's answers against the base's, with a full set of controls, on `pairs` prompts drawn at random."""
    places = random.Random(f"report/{seed}").sample(range(len(answered.prompts)), min(pairs, len(answered.prompts)))
    comparisons = [Comparison(answered.prompts[i], answers[i], answered.base[i]) for i in places]
    controls = make_controls(answered.prompts, answered.chosen, resampled=answered.resampled, seed=seed)
    judged = judge_with_controls(judge, comparisons, controls, seed=seed)
    return Judgement(
        report=judged,
        choice=choice,
        second=None if second is None else _second(second, comparisons, judged, second_pairs),
        spent=judge.spent() if isinstance(judge, HttpJudge) else None,
    )


def _second(judge: PairwiseJudge, comparisons: Sequence[Comparison], first: JudgedWinRate, pairs: int) -> SecondOpinion:
    """Of the pairs that differ, for the first ones: identical answers would make any two judges agree."""
    asked = [
        (pair, preference)
        for pair, preference in zip(comparisons, first.preferences, strict=True)
        if pair.answer_a != pair.answer_b
    ][:pairs]
    both = judge_both_orders(judge, [pair for pair, _ in asked])
    ours, theirs = [preference for _, preference in asked], [each.preference for each in both]
    together = any(a is not None and b is not None for a, b in zip(ours, theirs, strict=True))
    return SecondOpinion(
        judge=judge.identity, counts=counts_of(both), agreement=agreement(ours, theirs) if together else None
    )


def _stock(answered: AnswerSet, *, rounds: int, seed: int) -> list[list[Control]]:
    """Controls by round: MIN_JUDGED of each kind for the first, then one of each."""
    made = make_controls(
        answered.prompts, answered.chosen, resampled=answered.resampled, per_kind=MIN_JUDGED + rounds, seed=seed + 1
    )
    by_kind = [[control for control in made if control.kind == kind] for kind in EXPECTED]
    first = [control for kind in by_kind for control in kind[:MIN_JUDGED]]
    later = range(MIN_JUDGED, MIN_JUDGED + rounds)
    return [first, *([kind[place] for kind in by_kind if place < len(kind)] for place in later)]
