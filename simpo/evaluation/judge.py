"""The one way to ask a judge. Judges over HTTP live above this package; here is only what they promise."""

import math
from collections.abc import Sequence
from typing import Protocol

from simpo.errors import DataError


class Judge(Protocol):
    """Scores answers, one at a time, higher is better. Scores of one judge compare with each other only."""

    name: str

    def score(self, prompts: list[str], answers: list[str]) -> list[float | None]:
        """One score an answer, in order; None where the judgement failed. A failure is never a score of 0.

        prompts: the instruction each answer responds to (`Preference.instruction`).
        """
        ...


def judge_answers(judge: Judge, prompts: Sequence[str], answers: Sequence[str]) -> list[float | None]:
    """Ask a judge and hold it to its promise: as many scores as answers, what is not a finite number is missing."""
    if len(prompts) != len(answers):
        raise DataError(f"{len(prompts)} prompts but {len(answers)} answers: give one answer a prompt")
    scores = judge.score(list(prompts), list(answers))
    if len(scores) != len(answers):
        raise DataError(f"judge {judge.name} returned {len(scores)} scores for {len(answers)} answers")
    return [None if score is None or not math.isfinite(score) else float(score) for score in scores]
