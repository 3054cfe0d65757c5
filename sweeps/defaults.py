"""Defaults that depend on the work: a model made here is small, the practice judge is cheap. Light.

They are filled in before validation, so that the stored spec says everything.
"""

from collections.abc import Mapping
from typing import Any

from simpo.methods import METHODS
from sweeps.spaces import default_space

PRACTICE = "practice"
"""The word that stands for the built-in task, wherever a model, a data set or a judge is named."""

_JUDGED_CONSTRAINTS = {"empty_rate": "<=0.1", "length_ratio": "<=2.0", "repetition": "<=0.3", "eos_rate": ">=0.5"}
# Free text may rightly be longer than max_new_tokens or than the data's own answers: only collapse is refused.
_OPEN_CONSTRAINTS = {"empty_rate": "<=0.2", "repetition": "<=0.5"}


def scores_answers(judge: Any) -> bool:
    """Whether this judge (validated or not) scores single answers here, and so can be asked at every rung."""
    kind = judge.get("type") if isinstance(judge, Mapping) else getattr(judge, "type", None)
    return judge == PRACTICE or kind == "reward_model"


def with_task_defaults(values: Mapping[str, Any], *, searches: bool) -> dict[str, Any]:
    """Absent keys, filled by what the work is. `searches`: a sweep, which has a space and an objective."""
    filled = dict(values)
    dataset = filled.get("dataset", PRACTICE)
    train = dataset.get("train") if isinstance(dataset, Mapping) else dataset
    small = filled.get("base_model", PRACTICE) == PRACTICE
    practice = train == PRACTICE
    filled.setdefault("judge", PRACTICE if practice else None)
    judged = filled["judge"] is not None
    if small:
        _default_within(filled, "train", batch_pairs=32, token_budget=4096)
    if practice:
        _default_within(filled, "tokens", max_length=512)
    _default_within(filled, "evaluation", rung_prompts=200 if judged else 64)
    evaluation = filled["evaluation"]
    generates = not isinstance(evaluation, Mapping) or bool(evaluation["rung_prompts"])
    constraints = _JUDGED_CONSTRAINTS if filled["judge"] == PRACTICE else _OPEN_CONSTRAINTS
    filled.setdefault("constraints", constraints if generates else {})
    if searches:
        filled.setdefault("objective", "win_rate" if scores_answers(filled["judge"]) else "accuracy")
        method, space = filled.get("method", "simpo"), filled.get("space", {})
        if isinstance(method, str) and method in METHODS and isinstance(space, Mapping):
            adapters = isinstance(training := filled.get("train"), Mapping) and training.get("lora") is not None
            axes = default_space(method, small_model=small, adapters=adapters)
            if "gamma" in space:
                axes.pop("gamma_beta_ratio", None)  # so that the refusal speaks of what was written
            filled["space"] = {**axes, **space}
    return filled


def _default_within(values: dict[str, Any], key: str, **defaults: Any) -> None:
    given = values.get(key, {})
    if isinstance(given, Mapping):
        values[key] = {**defaults, **given}
