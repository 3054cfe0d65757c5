"""Edits of a running sweep: what a person may ask for, as one numbered file each in `<run dir>/control`. Light.

Written by anybody who may write there (the command line, the service), read by the attempt of the moment
(`sweeps.desk`), which answers each in its journal: `control.applied`, or `control.refused` with field and remedy. The
spec stays as it was; edits are a layer above it, and the journal holds where in the search each took effect, so that a
resumed attempt asks the same questions.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from simpo.errors import ConfigError
from sweeps.faults import SpecError, faults_of
from sweeps.recorded import accepted_records
from sweeps.run_dir import Attempt, Record, RunDir
from sweeps.spaces import Axis, Scalar
from sweeps.strict import Strict

APPLIED, REFUSED = "control.applied", "control.refused"
MOST_BYTES = 2**20
"""A longer file is no edit."""

TrialId = Annotated[str, Field(pattern=r"^trl_\d{4,}$")]


class Pause(Strict):
    """No further trial starts, and running ones hold before their next step. The wall clock's budget stands still."""

    action: Literal["pause"] = "pause"


class Resume(Strict):
    """Lifts a pause."""

    action: Literal["resume"] = "resume"


class Cancel(Strict):
    """Ends the sweep for good, without finals and without a result. What its trials wrote stays."""

    action: Literal["cancel"] = "cancel"


class Extend(Strict):
    """Raises limits of the budget. Each value is the new total, no addition: what is sent twice counts once."""

    action: Literal["extend"] = "extend"
    trials: Annotated[int, Field(ge=1, le=10_000)] | None = None
    wall_clock_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds of the attempt, as in the spec; time in a pause is not counted."""
    total_steps: Annotated[int, Field(ge=1)] | None = None
    accelerator_hours: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _some(self) -> "Extend":
        if not self.model_dump(exclude={"action"}, exclude_none=True):
            raise ConfigError("name a limit to raise", "trials")
        return self


class ChangeSpace(Strict):
    """Other ranges, choices or constants for axes of the space, from the next trial on that nobody has asked yet."""

    action: Literal["space"] = "space"
    axes: Annotated[dict[str, Axis], Field(min_length=1)]
    """By name. Axes that are not named stay as they are."""

    @field_validator("axes", mode="before")
    @classmethod
    def _none_removed(cls, axes: Any) -> Any:
        for key, axis in axes.items() if isinstance(axes, Mapping) else ():
            if axis is None:
                raise ConfigError("cannot be removed, earlier trials have it: give a plain value to hold it", str(key))
        return axes


class StopTrial(Strict):
    """Ends one running trial before its next step, as PRUNED."""

    action: Literal["stop_trial"] = "stop_trial"
    trial_id: TrialId


class CloneTrial(Strict):
    """Trains the point of a trial once more, as a trial of its own, in the place of the next trial of the budget."""

    action: Literal["clone_trial"] = "clone_trial"
    trial_id: TrialId
    params: dict[str, Scalar] = Field(default_factory=dict)
    """What is to be different."""


class AddPoint(Strict):
    """Trains a point of one's own choice in the place of the next trial of the budget. It may lie outside the space;
    the sampler then learns nothing from it."""

    action: Literal["add_point"] = "add_point"
    params: Annotated[dict[str, Scalar], Field(min_length=1)]
    """A value for every axis; constants of the space may be left out."""


Edit = Annotated[
    Pause | Resume | Cancel | Extend | ChangeSpace | StopTrial | CloneTrial | AddPoint, Field(discriminator="action")
]
EDITS: Mapping[str, type[Strict]] = {
    kind.model_fields["action"].default: kind
    for kind in (Pause, Resume, Cancel, Extend, ChangeSpace, StopTrial, CloneTrial, AddPoint)
}
"""By action."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file in `control`."""

    name: str
    """The file's, which is what is answered."""
    seq: int | None
    """None: the file is not named by a number."""
    edit: Any = None
    """One of EDITS; None for what is no edit."""
    fault: ConfigError | None = None
    """Why it is none."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """An edit that was accepted, and the place in the search where it takes effect."""

    seq: int
    """Its number."""
    edit: Any
    """One of EDITS."""
    after: int = 0
    """Trials that had been asked."""
    told: int = 0
    """Trials that the sampler had been told of, at least."""
    number: int | None = None
    """Of the trial that it puts in by hand: a clone, or a point."""
    params: dict[str, Scalar] | None = None
    """That trial's whole point."""

    def as_dict(self) -> dict[str, Any]:
        """JSON form, with the action in the open."""
        values = {**vars(self), "action": self.edit.action, "edit": self.edit.model_dump(mode="json")}
        return {key: value for key, value in values.items() if value is not None}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Change":
        """The inverse of `as_dict`; other keys are passed over."""
        known = {key: values[key] for key in ("seq", "after", "told", "number", "params") if key in values}
        return Change(edit=parse_edit(values["edit"]), **known)


def trial_id(number: int) -> str:
    """What a trial is called."""
    return f"trl_{number:04d}"


def parse_edit(values: Any) -> Any:
    """One of EDITS from JSON values. Raises SpecError."""
    action = values.get("action") if isinstance(values, Mapping) else None
    if not isinstance(action, str) or action not in EDITS:
        raise SpecError((("action", f"must be one of {', '.join(EDITS)}, not {action!r}"),))
    try:
        return EDITS[action].model_validate(values)
    except ValidationError as error:
        raise SpecError(faults_of(error)) from error


def write_edit(run: RunDir, edit: Any) -> int:
    """Publish one of EDITS for whichever attempt runs, or runs next; returns its number."""
    return run.add_edit(edit.model_dump(mode="json"))


def read_edits(run: RunDir, known: Collection[str] = ()) -> list[Found]:
    """Every file in `control` whose name is not `known`, in the order of their numbers. Raises UnwritableRunDir."""
    run.refresh_edits()
    try:
        names = {path.name for path in run.control.iterdir()}
    except OSError:
        return []
    # A file whose name begins with a dot is one that is being written.
    found = [_read(run.control / name) for name in names.difference(known) if not name.startswith(".")]
    return sorted(found, key=lambda each: (each.seq is None, each.seq or 0, each.name))


def answers(run: RunDir, *, below: int | None = None) -> dict[str, Record]:
    """By file name: how the attempts (those under `below`) answered, as far as their successors have read them."""
    return answers_in(accepted_records(run, below=run.highest() + 1 if below is None else below))


def answers_in(journals: Iterable[tuple[Attempt, Iterable[Record]]]) -> dict[str, Record]:
    """By file name: how some attempts' records answered; the first answer counts."""
    told: dict[str, Record] = {}
    for _, records in journals:
        for record in records:
            if record["type"] in (APPLIED, REFUSED):
                told.setdefault(str(record["data"]["file"]), record)
    return told


def applied(told: Mapping[str, Record]) -> list[Change]:
    """The accepted ones among answers, in the order in which they were given."""
    return [Change.from_dict(record["data"]) for record in told.values() if record["type"] == APPLIED]


def edits_told(run: RunDir) -> list[dict[str, Any]]:
    """What people did to a sweep: seq, action, state (applied or refused), at, after, message."""
    return [
        {
            "seq": record["data"]["seq"],
            "action": record["data"]["action"],
            "state": record["type"].partition(".")[2],
            "at": record["at"],
            "after": record["data"].get("after"),
            "message": record["message"],
        }
        for record in answers(run).values()
    ]


def paused_by(changes: Iterable[Change]) -> bool:
    """Whether these, one after another, leave a sweep paused."""
    paused = False
    for change in changes:
        if isinstance(change.edit, Pause | Resume):
            paused = isinstance(change.edit, Pause)
    return paused


def _read(path: Path) -> Found:
    seq = int(path.stem) if path.stem.isdecimal() and path.suffix == ".json" else None
    if seq is None:
        fault = ConfigError("is not named by a number: use `python -m sweeps control`, or 00000001.json", path.name)
        return Found(name=path.name, seq=None, fault=fault)
    try:
        if not path.is_file():  # to open a pipe would wait for ever
            raise ConfigError("is no file: remove it", path.name)
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ConfigError(f"is longer than {MOST_BYTES} bytes: one edit a file", path.name)
        return Found(name=path.name, seq=seq, edit=parse_edit(json.loads(text)))
    except ConfigError as error:
        return Found(name=path.name, seq=seq, fault=error)
    except (ValueError, RecursionError) as error:
        fault = ConfigError(f"is not valid JSON ({error}): write the file whole, then rename it", path.name)
        return Found(name=path.name, seq=seq, fault=fault)
    except OSError as error:
        return Found(name=path.name, seq=seq, fault=ConfigError(f"cannot be read ({error.strerror})", path.name))
