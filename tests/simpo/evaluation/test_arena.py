"""Arena-Hard's verdicts: what is one, and which battles it makes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo.errors import DataError
from simpo.evaluation.arena import STRONG, Verdict, as_verdict, baseline_of, battles_of, markdown_counts, parse_verdict
from simpo.evaluation.bradley_terry import Battle

pytestmark = pytest.mark.quick

VERDICTS: list[Verdict] = ["A>>B", "A>B", "A=B", "B>A", "B>>A"]


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_five_labels_are_verdicts(verdict: Verdict) -> None:
    assert parse_verdict(f"My own answer ...\n\nMy final verdict is: [[{verdict}]].") == verdict
    assert parse_verdict(f"[[{verdict}]] as said, [[{verdict}]]") == verdict
    assert as_verdict(verdict) == verdict


@pytest.mark.parametrize(
    "judgment",
    [
        *("", None, "A is better", "[[A>>A]]", "[[A]]", "[[B<A]]", "[A>B]", "[[a>b]]", "[[ A>B ]]", "[[A>>>B]]"),
        *("[[Tie]]", "$ERROR$", "[[A>B]] or rather [[B>A]]", "[[A>B]] [[A>>A]]"),
    ],
)
def test_anything_else_is_missing(judgment: str | None) -> None:
    assert parse_verdict(judgment) is None


@given(st.text(alphabet="AB<>=[] x", max_size=30))
def test_no_text_gives_a_verdict_that_is_none(text: str) -> None:
    assert parse_verdict(text) in [*VERDICTS, None]


def test_strong_verdicts_count_three_and_sides_change_in_game_two() -> None:
    games = battles_of("q", "new", "base", ["A>>B", "A>B"])
    assert Counter(battle.winner for battle in games.battles) == {"model_a": STRONG, "model_b": 1}
    assert {battle[:3] for battle in games.battles} == {("q", "base", "new")} and games.missing == 0
    assert [battle.winner for battle in battles_of("q", "new", "base", ["A=B", "B>A"]).battles] == ["tie", "model_a"]


def test_missing_games_make_no_battle() -> None:
    assert battles_of("q", "new", "base", [None, "B>>A"]) == ([Battle("q", "base", "new", "model_a")] * STRONG, 1)
    assert battles_of("q", "new", "base", [None]) == ([], 2)
    assert battles_of("q", "new", "base", ["A=B"]).missing == 1
    with pytest.raises(DataError, match="q of new has 3 games"):
        battles_of("q", "new", "base", ["A=B"] * 3)


def test_the_baseline_is_the_model_of_every_battle() -> None:
    assert baseline_of([Battle("q", "x", "base", "tie"), Battle("q", "base", "y", "tie")]) == "base"
    assert baseline_of([Battle("q", "base", "x", "tie")]) == "base"  # of two, the one that is always model_a
    for unclear in (
        [Battle("q", "x", "y", "tie"), Battle("q", "z", "v", "tie")],
        [Battle("q", "x", "y", "tie"), Battle("q", "y", "x", "tie")],
        [],
    ):
        with pytest.raises(DataError, match="name the baseline"):
            baseline_of(unclear)  # type: ignore[arg-type]


def test_markdown_is_counted_outside_code() -> None:
    text = "# One\n## Two\n#no header\n- a\n* b\n  + c\n1. d\n2. e\n**bold** __too__\n```\n# no\n- no\n**no**\n```\n"
    assert markdown_counts(text) == (2, 5, 2)
    assert markdown_counts("") == (0, 0, 0)
