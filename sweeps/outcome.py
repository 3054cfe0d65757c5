"""What a trial is asked, how it ended, what is known of it from before: the words between study, ledger and trial.

Plain data, JSON both ways. Light.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sweeps.spaces import Scalar

State = Literal["COMPLETE", "PRUNED", "FAILED", "INFEASIBLE"]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A trial to run."""

    number: int
    """Its place in the search, from 0."""
    trial_id: str
    """The same over all attempts."""
    params: dict[str, Scalar]
    """learning_rate and hyperparameters, constants included."""
    cutoffs: dict[int, float]
    """Step of a rung -> objective value that must be reached to go on."""
    control: bool = False
    """Whether it belongs to the control group, which is never stopped."""
    parent: int | None = None
    """Number of the trial whose checkpoint it goes on from (population-based training)."""
    start: int = 0
    """Step of that checkpoint."""
    edit: int | None = None
    """Number of the edit that put it in by hand."""
    until: int | None = None
    """Step at which it hands on to the next generation; None: it goes to full budget."""
    peers: int | None = None
    """Trials of its generation, itself included; None: of the first, which is drawn and not inherited."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    state: State
    """COMPLETE: full budget. PRUNED: stopped early. FAILED: no usable value. INFEASIBLE: broke a constraint."""
    step: int = 0
    """Optimiser steps taken."""
    value: float | None = None
    """The last measured objective."""
    rungs: dict[int, float] = field(default_factory=dict)
    """Step -> objective, at every rung reached."""
    constraints: dict[str, float] = field(default_factory=dict)
    """Probe -> violation at the last measurement, at most 0 when the constraint holds."""
    others: dict[str, float] = field(default_factory=dict)
    """Metric -> value of the other objectives, where there are several."""
    reason: str = ""
    """Why it ended, for people."""

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Outcome":
        """The inverse of `as_dict`; JSON has made the steps text."""
        known = {key: values[key] for key in Outcome.__dataclass_fields__ if key in values}
        return Outcome(**{**known, "rungs": {int(step): value for step, value in known.get("rungs", {}).items()}})


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a predecessor's journal knows of a trial."""

    params: dict[str, Scalar]
    """Its point, as it was suggested."""
    outcome: Outcome | None = None
    """None: it was running when the attempt died."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A finished trial of an earlier sweep."""

    params: dict[str, Scalar]
    """Its point, constants included."""
    outcome: Outcome
    """COMPLETE, PRUNED with a value, or INFEASIBLE."""


def honest(outcome: Outcome) -> Outcome:
    """An outcome that Optuna can be told: what is missing or not finite makes the trial FAILED, with a reason."""
    numbers = [outcome.value, *outcome.rungs.values(), *outcome.constraints.values(), *outcome.others.values()]
    if outcome.state == "FAILED":
        return Outcome(state="FAILED", step=outcome.step, reason=outcome.reason)
    if outcome.value is None and outcome.state == "PRUNED":
        return outcome
    if any(number is None or not math.isfinite(number) for number in numbers):
        return Outcome(state="FAILED", step=outcome.step, reason="a measured value is missing or not finite")
    if outcome.state == "INFEASIBLE" and not any(value > 0 for value in outcome.constraints.values()):
        raise ValueError("an infeasible trial must name a violated constraint")
    return outcome
