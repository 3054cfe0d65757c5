"""What an evaluation of one checkpoint against another is asked to do: its spec.json. Light.

Written by the service, or by hand for `python -m sweeps evaluate`. Judge, prompts and settings of generation are those
of the sweep that the candidate comes from.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from simpo.errors import ConfigError
from sweeps.faults import SpecError, faults_of
from sweeps.gates import Gate, gate_for
from sweeps.spec import SweepSpec, read_spec_file
from sweeps.strict import Strict


class Subject(Strict):
    """A model to be evaluated."""

    path: Annotated[str, Field(min_length=1)]
    """Checkpoint directory, s3://BUCKET/PREFIX of one that is fetched, or the hub id of a base model."""
    label: str
    """What people call it: a registered version, or a sweep's winner."""


class EvaluationSpec(Strict):
    """One evaluation: candidate against reference, under a gate."""

    name: str
    candidate: Subject
    reference: Subject
    """The champion, or the candidate's own base where nothing is in production."""
    against: Literal["base", "champion"]
    base: Subject
    """The model that the candidate was trained from."""
    sweep: SweepSpec
    """Of the candidate: its judge, its held-out prompts, its settings."""
    gate: Gate = Gate()

    @model_validator(mode="after")
    def _measurable(self) -> "EvaluationSpec":
        try:
            gate = gate_for(self.gate, self.sweep)
        except ConfigError as error:
            raise ConfigError(error.message, f"gate.{error.field}" if error.field else "gate") from error
        object.__setattr__(self, "gate", gate)  # written out, so that the stored record says everything
        return self


def parse_evaluation(values: Any, *, source: str | None = None) -> EvaluationSpec:
    """A validated evaluation from JSON values. Raises SpecError."""
    if not isinstance(values, Mapping):
        raise SpecError((("", "an evaluation is a mapping of keys to values"),), source)
    try:
        return EvaluationSpec.model_validate(values)
    except ValidationError as error:
        raise SpecError(faults_of(error), source) from error


def load_evaluation(path: Path) -> EvaluationSpec:
    """An evaluation from a .json or .yaml file. Raises SpecError: no file, malformed text, faults."""
    return parse_evaluation(read_spec_file(path), source=str(path))


def evaluation_hash(spec: EvaluationSpec) -> str:
    """sha256 of the canonical JSON, as `spec_hash` of a sweep."""
    canonical = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
