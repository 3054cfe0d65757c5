"""Both orders of a pair, and what is counted."""

import pytest

from simpo.errors import DataError
from simpo.evaluation.judge import Judge
from simpo.evaluation.verdicts import (
    Comparison,
    JudgeIdentity,
    ScoringJudge,
    Verdict,
    counts_of,
    judge_both_orders,
    merge_orders,
)
from tests.simpo.evaluation.judges_double import RuleJudge, by_score

pytestmark = pytest.mark.quick

PAIRS = [Comparison("p", "long answer", "short"), Comparison("p", "x", "longer"), Comparison("p", "same", "same")]


@pytest.mark.parametrize(
    ("first", "second", "preference", "flipped"),
    [
        (1.0, 0.0, 1.0, False),
        (0.0, 1.0, 0.0, False),
        (1.0, 1.0, 0.5, True),  # whatever stood first
        (0.0, 0.0, 0.5, True),
        (1.0, 0.5, 0.75, False),
        (0.5, 0.5, 0.5, False),
        (0.8, 0.3, 0.75, False),
        (0.8, 0.6, 0.6, True),
    ],
)
def test_two_orders_say_this_together(first: float, second: float, preference: float, flipped: bool) -> None:
    both = merge_orders(Verdict(preference=first), Verdict(preference=second))
    assert both.preference == pytest.approx(preference)
    assert both.flipped is flipped
    assert both.lean == pytest.approx(first + second - 1)


def test_one_order_alone_is_missing_never_a_win_and_never_a_tie() -> None:
    both = merge_orders(Verdict(preference=1.0), Verdict(reason="refused"))
    assert (both.preference, both.flipped, both.lean) == (None, False, None)
    counts = counts_of([both])
    assert (counts.judged, counts.missing, counts.flip_rate) == (0, {"refused": 1}, None)


def test_identical_answers_tie_and_are_not_sent() -> None:
    judge = by_score(lambda prompt, answer: len(answer))
    judged = judge_both_orders(judge, PAIRS)
    assert [both.preference for both in judged] == [1.0, 0.0, 0.5]
    assert len(judge.seen) == 4
    counts = counts_of(judged)
    assert (counts.pairs, counts.judged, counts.identical, counts.flips, counts.flip_rate) == (3, 3, 1, 0, 0.0)


def test_a_judge_of_positions_says_nothing_about_answers() -> None:
    counts = counts_of(judge_both_orders(RuleJudge(lambda prompt, first, second: 1.0), PAIRS))
    assert (counts.flips, counts.flip_rate, counts.position_lean) == (2, 1.0, 1.0)
    assert counts.as_dict()["flips"] == 2


def test_a_judge_that_loses_verdicts_is_refused() -> None:
    judge = RuleJudge(lambda prompt, first, second: 0.5)
    judge.compare = lambda comparisons: []  # type: ignore[method-assign]
    with pytest.raises(DataError, match="0 verdicts for 4 comparisons"):
        judge_both_orders(judge, PAIRS)


def test_a_verdict_is_a_preference_or_a_reason() -> None:
    for wrong in ({}, {"preference": 1.0, "reason": "error"}, {"preference": 1.5}, {"preference": float("nan")}):
        with pytest.raises(DataError):
            Verdict(**wrong)  # type: ignore[arg-type]


class _Lengths:
    name = "lengths"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(self, prompts: list[str], answers: list[str]) -> list[float | None]:
        self.asked += answers
        return [None if answer == "x" else float(len(answer)) for answer in answers]


def test_a_scoring_judge_compares_scores_and_scores_each_answer_once() -> None:
    scores = _Lengths()
    judge: Judge = scores
    judged = judge_both_orders(ScoringJudge(judge, JudgeIdentity(type="practice", model="lengths")), PAIRS)
    assert [both.preference for both in judged] == [1.0, None, 0.5]
    assert sorted(scores.asked) == ["long answer", "longer", "short", "x"]
