"""What OpenAI's fine-tuning request means here: a run where every hyperparameter is a number, else a small sweep.

`auto`, or leaving it out, searches an axis of the method's default space: 4 trials, and 4 more for each such axis.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.datasets import located
from service.errors import BadRequest, Invalid
from service.models import Deployment
from service.models_data import Dataset
from service.orders import run_order, sweep_order
from service.reach import check_reach
from service.rows import Order
from service.run_dirs import check_kept
from service.settings import Settings
from service.states import DatasetState, DeploymentState
from simpo.errors import ConfigError
from simpo.methods import METHODS, SFT, Method, hyperparameters, method_from_dict, method_to_dict
from sweeps.defaults import PRACTICE
from sweeps.spaces import default_space

AUTO = "auto"
TYPES: Mapping[str, type[Method]] = {"supervised": SFT, **METHODS}
"""`method.type` -> method: OpenAI's word for one, and every name of our own."""
TRIALS_AT_LEAST, TRIALS_AN_AXIS = 4, 4

_AUTO_STEPS = 120  # at least so many where n_epochs is auto: small files are gone through several times
_FEW_STEPS = 20  # below it a trial is over before anything tells it from another
_SHARED = ("n_epochs", "batch_size", "learning_rate_multiplier", "learning_rate")
_RATIO, _MARGIN = "gamma_beta_ratio", "gamma"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request whose fields are known to be of the right kind."""

    model: str
    training_file: Dataset
    validation_file: Dataset | None
    type: str
    """`method.type`."""
    given: Mapping[str, Any]
    """Its hyperparameters."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What will be done."""

    order: Order
    hyperparameters: dict[str, Any]
    """As the job shows them: number, or auto."""


def file_id(dataset_id: str) -> str:
    """The dataset under the name that OpenAI's routes show."""
    return dataset_id.replace("dst_", "file-", 1)


def dataset_id(file_id: str) -> str:
    """The inverse; the id of a dataset is one too."""
    return "dst_" + file_id.removeprefix("file-") if file_id.startswith("file-") else file_id


def file_named(session: Session, id: str, param: str) -> Dataset:
    """The dataset of a file. Raises BadRequest (400)."""
    row = session.get(Dataset, dataset_id(id))
    if row is None or row.state == DatasetState.DELETED:
        raise refused(param, f"there is no file {id}", code="file_not_found")
    return row


def tuning(session: Session, settings: Settings, name: str, request: Request) -> Tuning:
    """The order of a job called `name`. Raises BadRequest (400), with the field of the request that is wrong."""
    cls = TYPES.get(request.type)
    if cls is None:
        raise refused("method.type", f"{request.type!r} is none of: {', '.join(TYPES)}", code="unsupported_method")
    where = f"method.{request.type}.hyperparameters"
    base = _base(session, request.model)
    axes = default_space(cls.name, small_model=base == PRACTICE)
    shown = _shown(cls, axes, request.given, where)
    fixed, auto = _divided(cls, axes, shown, where)
    body: dict[str, Any] = {
        "name": name,
        "base_model": base,
        "dataset": {"train": request.training_file.id},
        "seed": request.seed,
    }
    if request.validation_file is not None:
        body["dataset"]["eval"] = request.validation_file.id
    if shown["batch_size"] != AUTO:
        body["train"] = {"batch_pairs": shown["batch_size"]}

    def ordered(steps: int) -> Order:
        if not auto:
            point = {key: value for key, value in fixed.items() if key != "learning_rate"}
            method = {"name": cls.name, **point}
            whole = {**body, "method": method, "learning_rate": fixed["learning_rate"], "steps": steps}
            return run_order(whole, lambda id: located(session, settings, id))
        trials = TRIALS_AT_LEAST + TRIALS_AN_AXIS * len(auto)
        space = {**{axis: axes[axis] for axis in auto}, **fixed}
        whole = {**body, "method": cls.name, "space": space, "budget": {"trials": trials, "steps": steps}}
        if steps < _FEW_STEPS:
            whole["scheduler"] = "none"
        return sweep_order(whole, lambda id: located(session, settings, id))

    try:
        check_reach(session, settings, {"base_model": request.model})
        order = ordered(_AUTO_STEPS)
        order = ordered(_steps(order, request.training_file, shown["n_epochs"]))
        check_kept(settings, order)
    except Invalid as error:
        faults = [(_param(pointer, where), message) for pointer, message in error.errors]
        param, message = faults[0] if faults else ("", error.detail)
        raise refused(param, message) from error
    return Tuning(order=order, hyperparameters=shown)


def refused(param: str, message: str, *, code: str = "invalid_value") -> BadRequest:
    """400 with the field that is wrong."""
    pointer = "/" + param.replace(".", "/")
    return BadRequest(f"{param}: {message}" if param else message, code=code, errors=[(pointer, message)])


def _base(session: Session, model: str) -> str:
    """A deployed model's directory, or the name as it is."""
    wanted = select(Deployment).where(Deployment.name == model, Deployment.state != DeploymentState.DELETED)
    deployed = session.scalar(wanted) if model != PRACTICE else None
    return model if deployed is None else deployed.model_path


def _shown(cls: type[Method], axes: Mapping[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Every hyperparameter that counts, each a value or auto. Raises BadRequest (400)."""
    known = (*_SHARED, *hyperparameters(cls))
    for key, value in given.items():
        if key not in known:
            raise refused(f"{where}.{key}", f"is not known: there are {', '.join(known)}", code="unsupported_field")
        if value is None:
            raise refused(f"{where}.{key}", "must be a value or auto; leave it out for its default")
        if value == AUTO and key in hyperparameters(cls) and key not in axes:
            raise refused(f"{where}.{key}", "has no range to search: give a value, or leave it out")
    for key in ("n_epochs", "batch_size"):
        count = given.get(key, AUTO)
        if count != AUTO and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise refused(f"{where}.{key}", "must be a whole number of at least 1, or auto")
    rate, times = given.get("learning_rate", AUTO), given.get("learning_rate_multiplier", AUTO)
    if times != AUTO:
        if rate != AUTO:
            raise refused(f"{where}.learning_rate", "give it or learning_rate_multiplier, not both")
        if not isinstance(times, int | float) or isinstance(times, bool) or not 0 < times < 1e6:
            raise refused(f"{where}.learning_rate_multiplier", "must be a number greater than 0, or auto")
    shown = {"n_epochs": AUTO, "batch_size": AUTO, **dict.fromkeys(axes, AUTO), **given}
    if _MARGIN in given:
        if given.get(_RATIO, AUTO) != AUTO:
            raise refused(f"{where}.{_MARGIN}", f"give it or {_RATIO}, not both")
        shown.pop(_RATIO, None)
        if given[_MARGIN] != AUTO and shown["beta"] == AUTO:
            raise refused(f"{where}.{_MARGIN}", f"needs a number for beta: give {_RATIO} where beta is searched")
    return shown


def _divided(
    cls: type[Method], axes: Mapping[str, Any], shown: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], list[str]]:
    """(what has a value, the axes to be searched). Raises BadRequest (400)."""
    fixed = {key: value for key, value in shown.items() if value != AUTO and key not in _SHARED}
    auto = [axis for axis in axes if axis in shown and shown[axis] == AUTO and axis not in _SHARED]
    if _MARGIN in fixed:
        try:
            settled = method_to_dict(method_from_dict({"name": cls.name, **fixed}))
        except ConfigError as error:
            raise refused(f"{where}.{_MARGIN}", error.message) from error
        fixed = {key: value for key, value in fixed.items() if key != _MARGIN} | {_RATIO: settled[_RATIO]}
    if shown["learning_rate"] != AUTO:
        fixed["learning_rate"] = shown["learning_rate"]
    elif shown.get("learning_rate_multiplier", AUTO) != AUTO:
        # Times the middle, on the logarithmic scale, of the rates that a search would try.
        middle = math.sqrt(axes["learning_rate"]["low"] * axes["learning_rate"]["high"])
        fixed["learning_rate"] = float(f"{middle * shown['learning_rate_multiplier']:.6g}")
    else:
        auto = ["learning_rate", *auto]
    return fixed, auto


def _steps(order: Order, rows: Dataset, epochs: Any) -> int:
    """Optimiser steps for so many passes through the rows that are trained on."""
    trained = rows.rows * (1 - order.plan["dataset"]["validation_fraction"])
    one: int = math.ceil(trained / order.plan["train"]["batch_pairs"])
    return max(_AUTO_STEPS, one) if epochs == AUTO else max(1, one * int(epochs))


def _param(pointer: str, where: str) -> str:
    """Place in our spec -> field of OpenAI's request."""
    first, _, rest = pointer.strip("/").replace("/", ".").partition(".")
    places = {
        "base_model": "model",
        "dataset.train": "training_file",
        "dataset.eval": "validation_file",
        "train.batch_pairs": f"{where}.batch_size",
        "budget.steps": f"{where}.n_epochs",
        "steps": f"{where}.n_epochs",
        "learning_rate": f"{where}.learning_rate",
    }
    whole = f"{first}.{rest}" if rest else first
    if first in ("space", "method"):
        return f"{where}.{rest}" if rest else where
    return places.get(whole, places.get(first, whole))
