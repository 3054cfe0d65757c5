"""A request's body -> an order that can be stored: validated, with every path it names looked up on this machine."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.errors import Invalid, invalid, pointer_of
from service.models import COMPARISON
from service.plain_types import check_types
from service.rows import Order
from sweeps.budget import plan_budget
from sweeps.comparison_hash import comparison_hash
from sweeps.comparison_spec import ComparisonSpec
from sweeps.faults import faults_of
from sweeps.spec import PRACTICE, Dataset, Job, RunSpec, SweepSpec, hash_of

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:\S+)?")
_DATASET = re.compile(r"dst_[0-9a-z]+")
_FILE = re.compile(r"\.(jsonl?|csv|tsv|txt|parquet|arrow|gz|zip|zst|ya?ml)$", re.IGNORECASE)


Lookup = Callable[[str], Path | None]
"""Id of an uploaded dataset -> its file; None where there is none."""


def sweep_order(body: Mapping[str, Any], uploaded: Lookup) -> Order:
    """Raises Invalid (422) with one pointer per fault."""
    try:
        spec = SweepSpec.model_validate(body)
    except ValidationError as error:
        raise _refused(error) from error
    check_types(SweepSpec, body)
    return _order("sweep", spec, uploaded)


def run_order(body: Mapping[str, Any], uploaded: Lookup) -> Order:
    """Raises Invalid (422) with one pointer per fault."""
    try:
        spec = RunSpec.model_validate(body)
    except ValidationError as error:
        raise _refused(error) from error
    check_types(RunSpec, body)
    return _order("run", spec, uploaded)


def comparison_order(body: Mapping[str, Any], uploaded: Lookup) -> Order:
    """Raises Invalid (422) with one pointer per fault."""
    try:
        spec = ComparisonSpec.model_validate(body)
    except ValidationError as error:
        raise _refused(error) from error
    check_types(ComparisonSpec, body)
    held, located, faults = _located(spec, uploaded)
    if faults:
        raise invalid(faults)
    plan = spec.model_copy(update={"dataset": located}).model_dump(mode="json")
    mark = comparison_hash(plan)
    hours = spec.budget.accelerator_hours
    return Order(
        kind=COMPARISON,
        name=spec.name,
        spec=plan,
        plan=plan,
        spec_hash=mark,
        datasets=held,
        slots=spec.parallel.trials,
        hours_asked=None if hours is None else hours * len(spec.methods),
    )


def plan_of(order: Order) -> dict[str, Any]:
    """What the order would do, without doing it."""
    if order.kind == COMPARISON:
        sweeps = ComparisonSpec.model_validate(order.plan).sweeps()
        budget: Any = {name: plan_budget(sweep).as_dict() for name, sweep in sweeps.items()}
    else:
        budget = plan_budget(SweepSpec.model_validate(order.plan)).as_dict()
    return {
        "object": "plan",
        "kind": order.kind,
        "name": order.name,
        "spec": order.spec,
        "spec_hash": order.spec_hash,
        "plan": budget,
    }


def _order(kind: str, spec: SweepSpec | RunSpec, uploaded: Lookup) -> Order:
    held, located, faults = _located(spec, uploaded)
    spec = spec.model_copy(update={"dataset": located})
    plan = spec if isinstance(spec, SweepSpec) else spec.to_sweep()
    faults += [
        (f"/warm_start/{index}", f"{name!r} is no id of a sweep: here earlier sweeps are named by their ids")
        for index, name in enumerate(plan.warm_start)
        if "/" in name
    ]
    if faults:
        raise invalid(faults)
    executed = plan.model_dump(mode="json")
    return Order(
        kind=kind,
        name=spec.name,
        spec=executed if plan is spec else spec.model_dump(mode="json"),
        plan=executed,
        spec_hash=hash_of(executed),
        datasets=held,
        slots=min(plan.parallel.trials, plan_budget(plan).trials),
        hours_asked=plan.budget.accelerator_hours,
    )


def _located(spec: Job, uploaded: Lookup) -> tuple[dict[str, str], Dataset, list[tuple[str, str]]]:
    """(datasets that it names, its data by path, what cannot be found)."""
    given = {"train": spec.dataset.train, "eval": spec.dataset.eval}
    held = {role: source for role, source in given.items() if source is not None and _DATASET.fullmatch(source)}
    found = {role: path for role, source in held.items() if (path := uploaded(source)) is not None}
    faults = [
        (f"/dataset/{role}", f"there is no dataset {source}: GET /v1/datasets lists them")
        for role, source in held.items()
        if role not in found
    ]
    # The driver knows no rows: it is told the file.
    located = spec.dataset.model_copy(update={role: str(path) for role, path in found.items()})
    faults += [
        (pointer, fault)
        for pointer, source, what in (
            ("/base_model", spec.base_model, "model"),
            ("/dataset/train", None if "train" in held else spec.dataset.train, "data"),
            ("/dataset/eval", None if "eval" in held else spec.dataset.eval, "data"),
        )
        if source is not None and (fault := source_fault(source, what))
    ]
    return held, located, faults


def source_fault(source: str, what: str) -> str | None:
    """Why this source cannot be used, or None. A path must exist here; a hub id is for the driver to find."""
    if source == PRACTICE:
        return None
    if "\0" in source or "\\" in source or ".." in Path(source).parts:
        return f"{source!r} is no plain path: give an absolute one without .. or backslashes"
    if Path(source).is_absolute():
        return _path_fault(Path(source), what)
    if _HUB_ID.fullmatch(source) and not _FILE.search(source):
        return None
    uploaded = " nor the id of a dataset" if what == "data" else ""
    return f"{source!r} is neither practice{uploaded}, nor an absolute path, nor a hub id org/name: give one of these"


def _path_fault(path: Path, what: str) -> str | None:
    if what == "model":
        if (path / "config.json").is_file():
            return None
        return f"there is no model directory {path} on the service's machine (looked for config.json in it)"
    # A directory of several splits may be named with :split after it.
    stem = Path(str(path).rpartition(":")[0] or path)
    if path.is_file() or path.is_dir() or stem.is_dir():
        return None
    return f"there is no file or directory {path} on the service's machine: check the path"


def _refused(error: ValidationError) -> Invalid:
    return invalid([(pointer_of(field.split(".")) if field else "", message) for field, message in faults_of(error)])
