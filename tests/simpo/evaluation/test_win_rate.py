"""Win rates and the judge's promise: ties count half, failures count for nobody."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo.errors import DataError
from simpo.evaluation.intervals import paired_share_interval
from simpo.evaluation.judge import Judge, judge_answers
from simpo.evaluation.win_rate import Tally, tally, win_rate

pytestmark = pytest.mark.quick

SCORES = st.lists(
    st.tuples(st.none() | st.sampled_from([0.0, 0.25, 1.0, math.nan]), st.none() | st.sampled_from([0.0, 0.25, 1.0]))
)


class ScriptedJudge:
    """Returns what it was told to."""

    name = "scripted"

    def __init__(self, scores: list[float | None]) -> None:
        self.scores = scores

    def score(self, prompts: list[str], answers: list[str]) -> list[float | None]:
        assert isinstance(prompts, list) and isinstance(answers, list)
        return self.scores


def test_ties_count_half_and_missing_counts_for_nobody() -> None:
    a = [1.0, 1.0, 0.5, 0.0, None, 1.0, math.nan]
    b = [0.0, 0.5, 0.5, 1.0, 0.0, None, 0.0]
    assert tally(a, b) == Tally(wins=2, ties=1, losses=1, missing=3)
    estimate = win_rate(a, b)
    assert (estimate.estimate, estimate.n, estimate.missing) == (2.5 / 4, 4, 3)
    assert (estimate.low, estimate.high) == (paired_share_interval(2, 1, 1).low, paired_share_interval(2, 1, 1).high)


def test_a_missing_judgement_is_not_a_tie() -> None:
    assert win_rate([1.0] * 3 + [None] * 97, [0.0] * 100).estimate == 1.0


@given(pairs=SCORES)
def test_win_rates_of_the_two_sides_sum_to_one(pairs: list[tuple[float | None, float | None]]) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    counts = tally(a, b)
    assert sum(counts) == len(pairs)
    if counts.missing == len(pairs):
        with pytest.raises(DataError, match=f"all of {counts.missing} judgements are missing"):
            win_rate(a, b)
    else:
        assert win_rate(a, b).estimate + win_rate(b, a).estimate == pytest.approx(1.0)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="2 scores against 1"):
        win_rate([1.0, 0.0], [1.0])


def test_a_judge_is_held_to_its_promise() -> None:
    judge: Judge = ScriptedJudge([1.0, None, math.nan])
    assert judge_answers(judge, ["p"] * 3, ["a"] * 3) == [1.0, None, None]
    with pytest.raises(DataError, match="judge scripted returned 3 scores for 2 answers"):
        judge_answers(judge, ["p"] * 2, ["a"] * 2)
    with pytest.raises(DataError, match="2 prompts but 3 answers"):
        judge_answers(judge, ["p"] * 2, ["a"] * 3)
