"""MT-Bench: which prompt a judge gets, its rating read strictly, and the averages.

Source: lm-sys/FastChat, `llm_judge/common.py` and `show_result.py`; Zheng et al. 2023, arXiv 2306.05685. A model
answers two turns a question; each answer is rated 1 to 10.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from simpo.errors import DataError

REFERENCE_CATEGORIES = frozenset({"math", "reasoning", "coding"})
"""Categories whose answers are right or wrong: the judge sees a reference answer."""

_RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")


class JudgePrompt(NamedTuple):
    """Which template of `judge_prompts.jsonl` fits."""

    name: str
    needs_reference: bool
    """Its placeholders ref_answer_1 (and, in turn 2, ref_answer_2) take the reference answers."""


class Rating(NamedTuple):
    """One judged answer."""

    turn: int
    """1 or 2."""
    score: float | None
    """1..10; None where the judgement failed."""
    category: str | None = None


class MTBenchScore(NamedTuple):
    """Mean ratings of one model; None where no judgement is left."""

    first_turn: float | None
    second_turn: float | None
    average: float | None
    """Over all ratings of both turns: not the mean of the two means where judgements failed."""
    failed: int
    """Judgements that failed: in no mean."""
    n: int
    """Judgements that count."""
    categories: dict[str, float | None]
    """Mean over both turns by category, in alphabetical order; empty where no row names one."""


def judge_prompt(category: str, turn: int, *, pairwise: bool = False) -> JudgePrompt:
    """The official template for an answer: by category (with a reference or without) and by turn.

    pairwise: two answers are compared instead of one being rated.
    Raises DataError: a turn other than 1 or 2.
    """
    if turn not in (1, 2):
        raise DataError(f"MT-Bench has turns 1 and 2, not {turn}")
    needs_reference = category in REFERENCE_CATEGORIES
    if pairwise:
        name = "pair-math-v1" if needs_reference else "pair-v2"
    else:
        name = "single-math-v1" if needs_reference else "single-v1"
    return JudgePrompt(name if turn == 1 else f"{name}-multi-turn", needs_reference)


def parse_rating(judgment: str | None) -> float | None:
    """The rating in a judge's text, e.g. "Rating: [[7.5]]", or None.

    None: no [[number]], numbers that contradict each other, or one outside 1..10. The official code falls back on
    any single-bracketed number, which finds footnotes and array indices; this does not.
    """
    found = {float(text) for text in _RATING.findall(judgment or "")}
    return as_rating(found.pop()) if len(found) == 1 else None


def as_rating(score: float | None) -> float | None:
    """A stored score as a rating; None for what is outside the scale, such as the official -1 for a failed parse."""
    return score if score is not None and 1 <= score <= 10 else None


def mt_bench_score(ratings: Sequence[Rating]) -> MTBenchScore:
    """Means over the ratings of one model. Several judgements of one answer (repeated runs) all count.

    Raises DataError: no rating at all.
    """
    if not ratings:
        raise DataError("there is no judgement to average")
    valid = [rating for rating in ratings if rating.score is not None]
    categories = sorted({rating.category for rating in ratings if rating.category is not None})
    return MTBenchScore(
        first_turn=_mean(valid, turn=1),
        second_turn=_mean(valid, turn=2),
        average=_mean(valid),
        failed=len(ratings) - len(valid),
        n=len(valid),
        categories={category: _mean(valid, category=category) for category in categories},
    )


def _mean(valid: Sequence[Rating], **of: object) -> float | None:
    wanted: Mapping[str, object] = of
    scores = [
        rating.score
        for rating in valid
        if rating.score is not None and all(getattr(rating, field) == value for field, value in wanted.items())
    ]
    return math.fsum(scores) / len(scores) if scores else None
