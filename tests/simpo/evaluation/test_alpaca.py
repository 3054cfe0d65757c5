"""AlpacaEval 2: log-probabilities to preferences, preferences to the win rate."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo.errors import DataError
from simpo.evaluation.alpaca import alpaca_score, checked_preference, preference_from_logprobs

pytestmark = pytest.mark.quick

PREFERENCES = st.lists(st.floats(1, 2), min_size=2, max_size=30)


def test_the_preference_is_the_models_share_of_the_two_tokens() -> None:
    top = {"M": math.log(0.6), "m": math.log(0.2), "The": math.log(0.1)}
    assert preference_from_logprobs(top) == pytest.approx(1.75)
    assert preference_from_logprobs(top, model_token="m", baseline_token="M") == pytest.approx(1.25)
    assert preference_from_logprobs(list(top.items())) == pytest.approx(1.75)
    openai = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in top.items()]
    assert preference_from_logprobs(openai) == pytest.approx(1.75)


def test_a_token_that_did_not_come_back_has_no_share() -> None:
    assert preference_from_logprobs([["M", -1e-6], ["MM", -14.1]]) == 2.0
    assert preference_from_logprobs([["m", -800.0]]) == 1.0  # exp would underflow
    assert preference_from_logprobs([["M", -800.0], ["m", -800.0]]) == 1.5


@pytest.mark.parametrize("top", [[], {"Based": -0.1, "MM": -3.0}, {"M": math.nan}, {"M": -math.inf, "m": -math.inf}])
def test_a_judge_that_names_neither_answer_is_missing_not_a_tie(top: object) -> None:
    assert preference_from_logprobs(top) is None  # type: ignore[arg-type]


def test_win_rate_by_hand() -> None:
    score = alpaca_score([2.0, 1.0, 1.5, 1.75, None, math.nan, -1.0, 0.0])
    assert (score.wins, score.losses, score.draws, score.n, score.missing) == (2, 1, 2, 5, 3)
    # q = 1, 0, .5, .75, .5: mean .55, squared deviations .2025 + .3025 + .0025 + .04 + .0025 = .55, s = sqrt(.55 / 4)
    assert score.win_rate == pytest.approx(55.0)
    assert score.standard_error == pytest.approx(100 * math.sqrt(0.55 / 4 / 5))


@given(preferences=PREFERENCES, missing=st.integers(0, 5))
def test_sides_sum_to_a_hundred_and_failures_move_nothing(preferences: list[float], missing: int) -> None:
    score, other = alpaca_score(preferences), alpaca_score([3 - each for each in preferences])
    assert score.win_rate + other.win_rate == pytest.approx(100)
    assert score.standard_error == pytest.approx(other.standard_error, abs=1e-9)
    more = alpaca_score([*preferences, *[None] * missing])
    assert (more.win_rate, more.standard_error, more.n) == (score.win_rate, score.standard_error, score.n)
    assert more.missing == missing


def test_all_ties_give_fifty_and_one_judgement_no_error() -> None:
    assert alpaca_score([1.5] * 4).win_rate == 50.0
    assert alpaca_score([1.5] * 4).standard_error == 0.0
    assert alpaca_score([2.0]).standard_error is None


@pytest.mark.parametrize("value", [0.7, 2.5, -2.0, 100.0])
def test_another_scale_is_refused(value: float) -> None:
    with pytest.raises(DataError, match=r"is not in 1\.\.2"):
        checked_preference(value)


def test_nothing_judged_is_no_win_rate() -> None:
    with pytest.raises(DataError, match="all of 3 judgements are missing"):
        alpaca_score([None, math.nan, -1.0])
