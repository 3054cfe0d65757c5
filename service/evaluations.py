"""An evaluation as an order: which two checkpoints, on which sweep's judge and prompts, under which gate."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from service.datasets import datasets_of
from service.errors import Invalid, invalid, pointer_of
from service.models import EVALUATION
from service.origins import Origin, origin_of
from service.rows import Order
from service.run_dirs import place_in_bucket
from service.settings import Settings
from service.winners import Chosen
from simpo.errors import ConfigError
from sweeps.defaults import PRACTICE
from sweeps.evaluation_spec import EvaluationSpec, evaluation_hash
from sweeps.faults import faults_of
from sweeps.gates import Gate, gate_for
from sweeps.spec import SweepSpec


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A checkpoint and what people call it."""

    chosen: Chosen
    label: str
    """E.g. chat@3, or a sweep's trial."""


def gate_of(given: Any) -> Gate:
    """`gate:` of a request. Raises Invalid (422) with one pointer per fault."""
    try:
        gate = Gate.model_validate({} if given == "default" else given)
    except ValidationError as error:
        raise _refused(faults_of(error)) from error
    path = gate.capability
    if path not in (None, "auto", PRACTICE):
        plain = "\0" not in path and "\\" not in path and ".." not in Path(path).parts and Path(path).is_absolute()
        if not plain or not Path(path).is_file():
            raise invalid([("/gate/capability", f"there is no file {path!r} here: give the absolute path of a .jsonl")])
    return gate


def gate_on(gate: Gate, sweep: Origin) -> Gate:
    """Written out for the candidate's sweep. Raises Invalid (422) for what cannot be measured there."""
    try:
        return gate_for(gate, SweepSpec.model_validate(sweep.plan))
    except ConfigError as error:
        raise _refused([(error.field or "", error.message)]) from error


def evaluation_order(
    session: Session, settings: Settings, name: str, candidate: Contender, champion: Contender | None, gate: Any
) -> Order:
    """The order to compare the candidate with the champion, or with its own base where there is none."""
    sweep = origin_of(session, settings, candidate.chosen.sweep_id, candidate.chosen.checkpoint)
    base = {"path": _base_of(settings, sweep), "label": f"base of {sweep.name}"}
    spec = EvaluationSpec.model_validate(
        {
            "name": name,
            "candidate": _subject(candidate),
            "reference": base if champion is None else _subject(champion),
            "against": "base" if champion is None else "champion",
            "base": base,
            "sweep": sweep.plan,
            "gate": gate,
        }
    )
    body = spec.model_dump(mode="json")
    held = datasets_of(session, sweep.id)
    return Order(kind=EVALUATION, name=name, spec=body, plan=body, spec_hash=evaluation_hash(spec), datasets=held)


def _subject(contender: Contender) -> Mapping[str, str]:
    return {"path": contender.chosen.path, "label": contender.label}


def _base_of(settings: Settings, sweep: Origin) -> str:
    """Its directory, its place in a bucket, or the hub id that the driver has found."""
    given = str(((sweep.result or {}).get("base") or {}).get("checkpoint"))
    if place := place_in_bucket(settings, sweep.id, given):
        return place
    path = (settings.run_dir(sweep.id) / given).resolve()
    return str(path) if (path / "config.json").is_file() else given


def _refused(faults: Any) -> Invalid:
    return invalid([(pointer_of(["gate", *(field.split(".") if field else [])]), text) for field, text in faults])
