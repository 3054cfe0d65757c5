"""MT-Bench: templates, ratings, averages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo.errors import DataError
from simpo.evaluation.mt_bench import JudgePrompt, Rating, as_rating, judge_prompt, mt_bench_score, parse_rating

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("category", "turn", "pairwise", "expected"),
    [
        ("writing", 1, False, JudgePrompt("single-v1", False)),
        ("stem", 2, False, JudgePrompt("single-v1-multi-turn", False)),
        ("math", 1, False, JudgePrompt("single-math-v1", True)),
        ("coding", 2, False, JudgePrompt("single-math-v1-multi-turn", True)),
        ("reasoning", 1, True, JudgePrompt("pair-math-v1", True)),
        ("humanities", 2, True, JudgePrompt("pair-v2-multi-turn", False)),
        ("a category of your own", 1, False, JudgePrompt("single-v1", False)),
    ],
)
def test_the_template_follows_category_and_turn(
    category: str, turn: int, pairwise: bool, expected: JudgePrompt
) -> None:
    assert judge_prompt(category, turn, pairwise=pairwise) == expected


def test_there_are_two_turns() -> None:
    with pytest.raises(DataError, match="turns 1 and 2, not 3"):
        judge_prompt("math", 3)


@pytest.mark.parametrize(
    ("text", "rating"),
    [("Rating: [[5]]", 5.0), ("[[8.5]]. As said: [[8.5]]", 8.5), ("so [[10]]", 10.0), ("[[7.]]", 7.0), ("[[1]]", 1.0)],
)
def test_ratings_are_read(text: str, rating: float) -> None:
    assert parse_rating(text) == rating


@pytest.mark.parametrize(
    "text",
    [None, "", "Rating: 5", "see [3]", "[[rating]]", "[[0]]", "[[11]]", "[[-1]]", "[[5]] or [[6]]", "[[8/10]]"],
)
def test_what_is_no_rating_is_missing(text: str | None) -> None:
    assert parse_rating(text) is None


@pytest.mark.parametrize("score", [None, -1, 0, 10.5, 100])
def test_scores_outside_the_scale_are_missing(score: float | None) -> None:
    assert as_rating(score) is None


def test_averages_by_hand() -> None:
    ratings = [
        Rating(1, 8.0, "math"),
        Rating(1, 6.0, "stem"),
        Rating(1, 7.0, "stem"),
        Rating(2, 3.0, "math"),
        Rating(2, None, "stem"),
    ]
    score = mt_bench_score(ratings)
    assert (score.first_turn, score.second_turn, score.average) == (7.0, 3.0, 6.0)
    assert (score.failed, score.n, score.categories) == (1, 4, {"math": 5.5, "stem": 6.5})


def test_a_turn_without_ratings_has_no_mean() -> None:
    score = mt_bench_score([Rating(1, 4.0), Rating(2, None)])
    assert (score.first_turn, score.second_turn, score.average, score.categories) == (4.0, None, 4.0, {})
    with pytest.raises(DataError, match="no judgement"):
        mt_bench_score([])


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.none() | st.integers(1, 10)), min_size=1, max_size=20))
def test_order_means_nothing_and_failures_only_count(rows: list[tuple[int, int | None]]) -> None:
    ratings = [Rating(turn, score) for turn, score in rows]
    assert mt_bench_score(ratings) == mt_bench_score(ratings[::-1])
    valid = [rating for rating in ratings if rating.score is not None]
    if valid:
        assert mt_bench_score(valid).average == mt_bench_score(ratings).average
    assert mt_bench_score(ratings).failed == len(ratings) - len(valid)
