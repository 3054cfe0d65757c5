"""The length-controlled win rate on made judgements. No quick tests: scikit-learn takes a second to import."""

import numpy as np
import pytest
from scipy.special import expit, logit

from simpo.errors import ConfigError, DataError
from simpo.evaluation.length_control import Regularisers, length_controlled

RNG = np.random.default_rng(0)


def judged(
    n: int, w_length: float, w_difficulty: float, w_model: float
) -> tuple[list[float], list[float], list[float]]:
    """(preferences, length differences, difficulties) that follow the regression exactly."""
    delta_N, difficulty_N = RNG.normal(-200, 300, n), RNG.normal(0, 1, n)
    z_N = w_length * np.tanh(delta_N / delta_N.std(ddof=1)) + w_difficulty * difficulty_N + w_model
    return (1 + expit(z_N)).tolist(), delta_N.tolist(), difficulty_N.tolist()


def test_weights_and_win_rate_are_recovered() -> None:
    preferences, delta, difficulty = judged(400, -1.5, 0.7, 0.4)
    found = length_controlled(preferences, delta, difficulty, strength=1e4)
    assert (found.w_length, found.w_difficulty, found.w_model) == pytest.approx((-1.5, 0.7, 0.4), abs=0.02)
    assert found.win_rate == pytest.approx(100 * expit(0.7 * np.array(difficulty) + 0.4).mean(), abs=0.2)
    assert found.strengths == (1e4,)


def test_without_a_length_difference_it_is_the_plain_win_rate() -> None:
    preferences = [1.9, 1.2, 1.6, 1.5, 1.9, 1.1, 1.8, 1.3]
    found = length_controlled(preferences, [0.0] * 8, strength=1e4)
    assert found.win_rate == pytest.approx(100 * (np.mean(preferences) - 1), abs=0.05)
    assert (found.w_length, found.w_difficulty) == (0.0, 0.0)


def test_ties_give_fifty_whatever_the_lengths() -> None:
    assert length_controlled([1.5] * 10, list(range(10)), strength=1.0).win_rate == pytest.approx(50.0, abs=1e-6)


def test_exchanging_the_two_sides_exchanges_the_win_rate() -> None:
    preferences, delta, _ = judged(60, -1.0, 0.0, 0.8)
    one = length_controlled(preferences, delta, strength=10.0)
    other = length_controlled([3 - each for each in preferences], [-each for each in delta], strength=10.0)
    assert one.win_rate + other.win_rate == pytest.approx(100, abs=0.05)


def test_failed_judgements_are_not_fitted_but_their_prompts_are_predicted() -> None:
    preferences, delta, difficulty = judged(100, -1.0, 0.5, 0.0)
    holes = [None if i % 10 == 0 else each for i, each in enumerate(preferences)]
    found, whole = (length_controlled(each, delta, difficulty, strength=1e4) for each in (holes, preferences))
    assert found.win_rate == pytest.approx(whole.win_rate, abs=0.1)


def test_regularisers_pull_the_length_weight_and_leave_the_model_weight_alone() -> None:
    preferences, delta, difficulty = judged(100, 0.0, 0.0, float(logit(0.8)))
    rows = 200
    std_delta_N = RNG.normal(0, 1, rows)
    gamed = Regularisers(
        std_delta_len_N=std_delta_N, difficulty_N=np.zeros(rows), preference_N=expit(-2 * np.tanh(std_delta_N))
    )
    alone = length_controlled(preferences, delta, difficulty, strength=1e3)
    pulled = length_controlled(preferences, delta, difficulty, strength=1e3, regularisers=gamed)
    assert abs(alone.w_length) < 0.05 and pulled.w_length < -0.1
    assert abs(pulled.w_model - alone.w_model) < 0.3


def test_cross_validation_chooses_from_the_official_grid_and_repeats() -> None:
    preferences, delta, difficulty = judged(60, -1.0, 0.5, 0.3)
    first, again = (length_controlled(preferences, delta, difficulty) for _ in range(2))
    assert first == again and len(first.strengths) == 5
    assert set(first.strengths) <= set(np.logspace(-4, 4, 10).tolist())


def test_a_model_that_always_wins_has_a_finite_fit() -> None:
    found = length_controlled([2.0] * 12, list(range(12)), strength=2.78)
    assert 80 < found.win_rate <= 100 and np.isfinite(found.w_model)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(DataError, match="1 of 3 prompts are judged"):
        length_controlled([1.5, None, None], [1, 2, 3])
    with pytest.raises(DataError, match="2 preferences but 3 length differences"):
        length_controlled([1.5, 1.5], [1, 2, 3])
    with pytest.raises(ConfigError, match="C must be above 0"):
        length_controlled([1.5, 1.5], [1, 2], strength=0.0)
