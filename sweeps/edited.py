"""A spec with an edit laid over it, and points by hand: what a search may be changed to while it runs. Light.

Everything here is a pure function that refuses by name (ConfigError); `sweeps.study` keeps the places in the search.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from simpo.errors import ConfigError
from sweeps.budget import plan_budget
from sweeps.control import AddPoint, ChangeSpace, CloneTrial, Extend
from sweeps.faults import SpecError, faults_of
from sweeps.search_spec import Grid, Halving, Pbt
from sweeps.spaces import Scalar, check_space, holds
from sweeps.spec import SweepSpec

_LIMITS = ("trials", "wall_clock_s", "total_steps", "accelerator_hours")


def edited_spec(spec: SweepSpec, edit: Extend | ChangeSpace) -> SweepSpec:
    """The spec that the search goes by from then on, checked as a whole."""
    if isinstance(edit, Extend):
        return _extended(spec, edit)
    _refuse_generations(spec, "changed space")
    if spec.sampler.keeps_notes:
        raise ConfigError(
            f"{spec.sampler.type} learns from generations drawn on one space: start another sweep, or use tpe", "axes"
        )
    if isinstance(spec.sampler, Grid):
        raise ConfigError("a grid was laid over the space before the first trial: start another sweep", "axes")
    for key in edit.axes:
        if key not in spec.space:
            raise ConfigError(
                f"is no axis of this search ({', '.join(spec.space)}), and its trials so far have no value of it: "
                "start another sweep",
                f"axes.{key}",
            )
    try:
        return _checked(spec, space={**spec.space, **edit.axes})
    except ConfigError as error:
        where = (error.field or "space").partition(".")
        raise ConfigError(error.message, f"axes.{where[2]}" if where[0] == "space" and where[2] else "axes") from error


def point_by_hand(
    spec: SweepSpec, edit: CloneTrial | AddPoint, known: Mapping[str, Mapping[str, Any]]
) -> dict[str, Scalar]:
    """The whole point of a trial that a person asks for. known: points by trial id."""
    _refuse_generations(spec, "point by hand")
    if spec.random_stratum == 1.0:
        raise ConfigError("every trial of this search is drawn at random: lower random_stratum in another sweep")
    if isinstance(edit, CloneTrial):
        if edit.trial_id not in known:
            raise ConfigError(f"no trial {edit.trial_id} was asked yet: there are {_span(known)}", "trial_id")
        point = {**known[edit.trial_id], **edit.params}
    else:
        constants = {key: axis for key, axis in spec.space.items() if isinstance(axis, Scalar)}
        point = {**constants, **edit.params}
        for key, axis in spec.space.items():
            if key not in point and holds(axis, point):
                raise ConfigError("is missing: a point has a value for every axis", f"params.{key}")
    try:
        check_space(spec.method, point)
    except ConfigError as error:
        raise ConfigError(error.message, f"params.{error.field}" if error.field else "params") from error
    return point


def most_trials(spec: SweepSpec, by_hand: int) -> int:
    """Trials that the search will ask, `by_hand` points among them: a grid that is smaller than its budget has room."""
    planned = plan_budget(spec).trials
    return min(spec.budget.trials, planned + by_hand) if isinstance(spec.sampler, Grid) else planned


def _extended(spec: SweepSpec, edit: Extend) -> SweepSpec:
    limits = {key: value for key in _LIMITS if (value := getattr(edit, key)) is not None}
    for key, value in limits.items():
        now = getattr(spec.budget, key)
        if now is None:
            raise ConfigError("has no limit to raise: leave it out", key)
        if value <= now:
            raise ConfigError(f"must be more than {now:g}, the limit of now, not {value:g}: give the new total", key)
    if "trials" in limits:
        _refuse_generations(spec, "larger number of trials")
    if isinstance(spec.sampler, Grid) and "trials" in limits and most_trials(spec, 0) < spec.budget.trials:
        raise ConfigError(f"the grid has only {most_trials(spec, 0)} points: add points by hand", "trials")
    try:
        return _checked(spec, budget={**spec.budget.model_dump(), **limits})
    except ConfigError as error:
        raise ConfigError(error.message, (error.field or "trials").removeprefix("budget.")) from error


def _checked(spec: SweepSpec, **changes: Any) -> SweepSpec:
    space = changes.pop("space", spec.space)
    values = spec.model_dump(mode="json") | changes
    values["space"] = {
        key: axis if isinstance(axis, Scalar) else axis.model_dump(mode="json") for key, axis in space.items()
    }
    try:
        return SweepSpec.model_validate(values)
    except ValidationError as error:
        raise SpecError(faults_of(error)) from error


def _refuse_generations(spec: SweepSpec, what: str) -> None:
    if isinstance(spec.scheduler, Halving | Pbt):
        raise ConfigError(
            f"{spec.scheduler.type} lays down beforehand which trial goes on from which: a {what} has no place in it; "
            "start another sweep",
            "action",
        )


def _span(known: Mapping[str, Any]) -> str:
    return f"{min(known)} to {max(known)}" if known else "none"
