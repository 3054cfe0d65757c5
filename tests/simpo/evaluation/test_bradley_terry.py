"""Bradley-Terry scores against closed forms and under relabelling."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpo.errors import ConfigError, DataError
from simpo.evaluation.bradley_terry import Battle, Winner, rate

pytestmark = pytest.mark.quick


def battles(a: str, b: str, won: int, tied: int, lost: int) -> list[Battle]:
    """Battles of a against b, from a's side."""
    counts: dict[Winner, int] = {"model_a": won, "tie": tied, "model_b": lost}
    return [Battle(f"q{i}", a, b, winner) for winner, count in counts.items() for i in range(count)]


@given(won=st.integers(0, 20), tied=st.integers(0, 20), lost=st.integers(0, 20))
@settings(max_examples=30)
def test_two_players_score_their_share_of_wins(won: int, tied: int, lost: int) -> None:
    if won + tied + lost:
        scores = rate(battles("base", "new", won, tied, lost), "base", rounds=20).scores
        assert scores["new"].estimate == pytest.approx(100 * (lost + tied / 2) / (won + tied + lost), abs=1e-4)
        assert scores["base"].estimate == 50.0 and scores["base"].low == scores["base"].high == 50.0
        assert scores["new"].low <= scores["new"].high


def test_ties_give_fifty() -> None:
    found = rate(battles("base", "new", 0, 30, 0), "base", rounds=50).scores["new"]
    assert (found.estimate, found.low, found.high, found.n) == pytest.approx((50.0, 50.0, 50.0, 30))


def test_a_chain_multiplies_odds() -> None:
    # base : x = 1 : 2 and x : y = 1 : 3, so base : y = 1 : 6.
    chain = [*battles("base", "x", 10, 0, 20), *battles("x", "y", 10, 0, 30)]
    scores = rate(chain, "base", rounds=10).scores
    assert scores["x"].estimate == pytest.approx(200 / 3, abs=1e-4)
    assert scores["y"].estimate == pytest.approx(600 / 7, abs=1e-4)
    assert list(scores) == ["y", "x", "base"] and scores["x"].n == 70


def test_names_sides_and_order_mean_nothing() -> None:
    some = [*battles("base", "x", 7, 2, 5), *battles("base", "y", 3, 1, 9), *battles("x", "y", 4, 0, 4)]
    swapped: dict[Winner, Winner] = {"model_a": "model_b", "model_b": "model_a", "tie": "tie"}
    turned = [Battle(b.question, b.model_b, b.model_a, swapped[b.winner]) for b in reversed(some)]
    named = [Battle(b.question, "z" + b.model_a, "z" + b.model_b, b.winner) for b in some]
    plain, other, renamed = (
        rate(given, base, rounds=5).scores for given, base in ((some, "base"), (turned, "base"), (named, "zbase"))
    )
    for model, found in plain.items():
        assert other[model].estimate == pytest.approx(found.estimate, abs=1e-5)
        assert renamed["z" + model].estimate == pytest.approx(found.estimate, abs=1e-5)


def test_the_interval_is_the_binomial_one_and_follows_the_seed() -> None:
    some = battles("base", "new", 60, 0, 40)
    found, again, other = (rate(some, "base", rounds=500, seed=seed).scores["new"] for seed in (1, 1, 2))
    assert found == again and found != other
    half = 196 * math.sqrt(0.4 * 0.6 / 100)
    assert (found.low, found.high) == pytest.approx((40 - half, 40 + half), abs=1.5)


def test_style_that_explains_the_wins_leaves_equal_models_equal() -> None:
    """The longer answer mostly wins; x is longer than the baseline on 80 % of the questions, y on 20 %."""
    rng = np.random.default_rng(0)
    style, some = {}, []
    for i in range(300):
        style["base", f"q{i}"] = [200.0]
        for model, share in (("x", 0.8), ("y", 0.2)):
            longer = rng.random() < share
            style[model, f"q{i}"] = [300.0 if longer else 100.0]
            won = longer if rng.random() < 0.8 else not longer
            some.append(Battle(f"q{i}", "base", model, "model_b" if won else "model_a"))
    plain, controlled = rate(some, "base", rounds=10), rate(some, "base", style=style, rounds=10)
    assert plain.scores["x"].estimate - plain.scores["y"].estimate > 25 and plain.style == ()
    assert controlled.scores["x"].estimate == pytest.approx(controlled.scores["y"].estimate, abs=10)
    assert controlled.style[0] > 1


def test_style_that_never_differs_changes_little() -> None:
    some = battles("base", "new", 30, 10, 60)
    style = {(model, battle.question): [10.0, 0.0] for battle in some for model in ("base", "new")}
    found = rate(some, "base", style=style, rounds=10)
    # The ridge of the official code pulls the ratings together a little; the style itself explains nothing.
    assert found.style == pytest.approx((0, 0)) and found.scores["new"].estimate == pytest.approx(65, abs=0.5)


def test_a_model_of_one_battle_has_an_interval() -> None:
    found = rate([*battles("base", "x", 20, 0, 20), *battles("base", "rare", 0, 0, 1)], "base", rounds=50).scores
    assert found["rare"].estimate > 99.9 and found["x"].n == 40


@pytest.mark.parametrize(
    ("given_battles", "baseline", "reason"),
    [
        ([], "base", "no battle with a valid verdict"),
        (battles("a", "b", 1, 0, 1), "c", "'c' fights no battle"),
        ([*battles("base", "a", 1, 0, 1), *battles("x", "y", 1, 0, 1)], "base", "no chain of battles joins x, y"),
    ],
)
def test_scores_that_would_be_arbitrary_are_refused(given_battles: list[Battle], baseline: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        rate(given_battles, baseline)


def test_missing_style_and_no_rounds_are_refused() -> None:
    some = battles("base", "new", 1, 0, 1)
    with pytest.raises(DataError, match="no style counts of new on question q0"):
        rate(some, "base", style={("base", "q0"): [1.0]})
    with pytest.raises(ConfigError, match="at least one bootstrap round"):
        rate(some, "base", rounds=0)
    assert Counter(battle.winner for battle in some) == {"model_a": 1, "model_b": 1}
