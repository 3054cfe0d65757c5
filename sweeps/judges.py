"""Judges by the name that a spec gives them."""

from collections.abc import Callable, Mapping

from simpo.evaluation.judge import Judge
from simpo.practice import PracticeJudge
from sweeps.spec import PRACTICE

JUDGES: Mapping[str, Callable[[], Judge]] = {PRACTICE: PracticeJudge}
"""The one table of judges; `sweeps.spec` lists the same names without the weight of this module."""


def judge_of(name: str | None) -> Judge | None:
    """The judge of a valid spec, or None."""
    return None if name is None else JUDGES[name]()
