"""Arena-Hard v0.1: a judge's verdicts on two games a question -> battles -> the inputs of `bradley_terry.rate`.

Source: lm-sys/arena-hard-auto, `gen_judgment.py` (`get_score`), `show_result.py` (`get_battles_from_row`) and
`utils/markdown` (style counts). Each question is judged twice: the baseline is assistant A in game 1, B in game 2.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from simpo.errors import DataError
from simpo.evaluation.bradley_terry import Battle, Winner

Verdict = Literal["A>>B", "A>B", "A=B", "B>A", "B>>A"]

STRONG = 3
"""Battles that a verdict of "significantly better" counts for."""

_LABEL = re.compile(r"\[\[([AB<>=]+)\]\]")
_CODE = re.compile(r"```([^`]*)```")
_WINNER: Mapping[Verdict, tuple[Winner, int]] = {
    "A>>B": ("model_a", STRONG),
    "A>B": ("model_a", 1),
    "A=B": ("tie", 1),
    "B>A": ("model_b", 1),
    "B>>A": ("model_b", STRONG),
}
_SWAPPED: Mapping[Winner, Winner] = {"model_a": "model_b", "model_b": "model_a", "tie": "tie"}


class Games(NamedTuple):
    """What the games on one question gave."""

    battles: list[Battle]
    """Strong verdicts STRONG times. model_a is the baseline."""
    missing: int
    """Games without a valid verdict: 0, 1 or 2."""


def parse_verdict(judgment: str | None) -> Verdict | None:
    """The verdict in a judge's text, or None: no label, labels that contradict each other, or one that is no verdict.

    The official expression lets [[A>>A]] or [[B<A]] through; neither is among the five labels the judge was offered.
    """
    labels = set(_LABEL.findall(judgment or ""))
    return as_verdict(labels.pop()) if len(labels) == 1 else None


def as_verdict(label: object) -> Verdict | None:
    """A stored label ("A>>B") as a verdict, None for anything else."""
    return next((verdict for verdict in get_args(Verdict) if verdict == label), None)


def battles_of(question: str, model: str, baseline: str, games: Sequence[Verdict | None]) -> Games:
    """The battles of one question's games, in the order played; a game that is not there is missing too.

    Raises DataError: more than two games.
    """
    if len(games) > 2:
        raise DataError(f"question {question} of {model} has {len(games)} games: there are two, with the sides changed")
    battles: list[Battle] = []
    for game, verdict in enumerate(games):
        if verdict is not None:
            winner, weight = _WINNER[verdict]
            battles += [Battle(question, baseline, model, _SWAPPED[winner] if game else winner)] * weight
    return Games(battles, 2 - sum(verdict is not None for verdict in games))


def baseline_of(battles: Sequence[Battle]) -> str:
    """The model that all others were judged against.

    It is the one that takes part in every battle, or, of two such, the one that is always model_a.
    Raises DataError: there is no such model.
    """
    common: set[str] = set(battles[0][1:3]) if battles else set()
    for battle in battles:
        common &= {battle.model_a, battle.model_b}
    if len(common) > 1:
        common &= {battle.model_a for battle in battles} - {battle.model_b for battle in battles}
    if len(common) != 1:
        raise DataError("the battles do not show against which model all others were judged: name the baseline")
    return common.pop()


def markdown_counts(answer: str) -> tuple[int, int, int]:
    """Headers, list items and bold spans of an answer, outside code blocks (the official style features)."""
    text = answer
    for block in _CODE.findall(answer):  # as the official code: what stands in a block goes wherever it stands
        text = text.replace(block, "")
    headers = len(re.findall(r"^#{1,6}\s", text, re.MULTILINE))
    lists = len(re.findall(r"^\s*(?:\d+\.|[-*+])\s", text, re.MULTILINE))
    bold = len(re.findall(r"\*\*[^*\n]+\*\*", text)) + len(re.findall(r"__[^_\n]+__", text))
    return headers, lists, bold
