"""What the API takes and shows of roll-outs."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.clock import rfc3339
from service.models import Deployment
from service.models_canaries import Canary, DeploymentRevision
from service.schemas import DeploymentOut
from service.serving.verdict import Guard

Json = dict[str, Any]
Weight = Annotated[int, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
_DEFAULT = Guard()


class GuardIn(BaseModel):
    """When a candidate is rolled back by itself. A limit that is null is not looked at."""

    model_config = ConfigDict(extra="forbid")

    window_s: Annotated[int, Field(ge=30, le=86400)] = _DEFAULT.window_s
    """Seconds of answers that are compared, the latest."""
    min_answers: Annotated[int, Field(ge=5, le=100_000)] = _DEFAULT.min_answers
    """Answers of both versions below which a figure decides nothing."""
    max_error_increase: Share | None = _DEFAULT.max_error_increase
    """More failed answers than the champion has, as a share of all."""
    max_error_rate: Share | None = _DEFAULT.max_error_rate
    """Share of failed answers, where the champion answers too few to compare with."""
    max_latency_ratio: Annotated[float, Field(ge=1, le=100)] | None = _DEFAULT.max_latency_ratio
    """p95 of the time to an answer, of streams to the first event, as a multiple of the champion's."""
    max_repetition_increase: Share | None = _DEFAULT.max_repetition_increase
    """More answers that repeat themselves than the champion gives, as a share."""
    max_truncation_increase: Share | None = _DEFAULT.max_truncation_increase
    """More answers cut off by their length, likewise."""


class CanaryIn(BaseModel):
    """A candidate: a checkpoint of a sweep or run, or a version of a registered model."""

    model_config = ConfigDict(extra="forbid")

    sweep: str | None = None
    """Id of a SUCCEEDED sweep or run."""
    checkpoint: str = "winner"
    """winner, base, or the id of a trial."""
    model: str | None = None
    """Instead of a sweep: name of a model in the registry."""
    model_version: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    """With `model`: which of its versions."""
    weight: Weight = 10
    """Percent of the requests that it answers."""
    sticky: bool = False
    """Requests of one `user` are all answered by one version."""
    guard: GuardIn | None = Field(default_factory=GuardIn)
    """When it is rolled back by itself; null: never."""


class WeightIn(BaseModel):
    """What a deployment's candidate answers. What is not given stays."""

    model_config = ConfigDict(extra="forbid")

    weight: Weight | None = None
    sticky: bool | None = None


class RollbackIn(BaseModel):
    """Where to go back to."""

    model_config = ConfigDict(extra="forbid")

    revision: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    """An earlier champion's. Null: a candidate is taken away; without one, the champion before comes back."""


class VersionFigures(BaseModel):
    """How one version answered lately. Null: nothing is known."""

    answers: int
    errors: int
    error_rate: float | None
    p95_first_event_s: float | None
    p95_answer_s: float | None
    probed: int
    repetition_rate: float | None
    truncation_rate: float | None


class CanaryFigures(BaseModel):
    """Both versions side by side."""

    champion: VersionFigures
    candidate: VersionFigures


class CanaryVerdict(BaseModel):
    """Why a candidate was rolled back by itself."""

    reasons: list[str]
    figures: CanaryFigures
    guard: GuardIn


class CanaryOut(BaseModel):
    """A candidate beside the champion of a deployment."""

    object: Literal["deployment.canary"] = "deployment.canary"
    deployment: str
    name: str
    revision: int
    """Answers of it carry `rev-<n>` as system_fingerprint, and in the header x-simpo-version."""
    champion: int
    """Revision of the champion."""
    sweep: str
    checkpoint: str
    model_version: int | None
    weight: int
    sticky: bool
    state: str
    message: str
    guard: GuardIn | None
    figures: CanaryFigures
    verdict: CanaryVerdict | None
    created_at: str
    ready_at: str | None
    ended_at: str | None


class CandidateOut(BaseModel):
    """What a deployment shows of its candidate; GET .../canary has the figures of both versions too."""

    revision: int
    """Answers of it carry `rev-<n>` as system_fingerprint, and in the header x-simpo-version."""
    sweep: str
    checkpoint: str
    model_version: int | None
    weight: int
    sticky: bool
    state: str
    message: str
    created_at: str
    ready_at: str | None


class DeploymentShown(DeploymentOut):
    """A deployment read by its id."""

    candidate: CandidateOut | None
    """Beside the champion now: PENDING, READY or PROMOTING. Null: nobody is."""


def candidate_json(canary: Canary, revision: DeploymentRevision) -> Json:
    """A live candidate in short."""
    return CandidateOut(**_short(canary, revision)).model_dump(mode="json")


def canary_json(row: Deployment, canary: Canary, revision: DeploymentRevision, figures: Json) -> Json:
    """One candidate. `figures`: of `service.serving.verdict.judge`."""
    guard = None if canary.guard is None else GuardIn(**canary.guard)
    return CanaryOut(
        deployment=row.id,
        name=row.name,
        champion=row.revision,
        guard=guard,
        figures=CanaryFigures.model_validate(figures),
        verdict=None if canary.verdict is None else CanaryVerdict.model_validate(canary.verdict),
        ended_at=rfc3339(canary.ended_at) if canary.ended_at else None,
        **_short(canary, revision),
    ).model_dump(mode="json")


def _short(canary: Canary, revision: DeploymentRevision) -> Json:
    """What both ways to show a candidate say."""
    return {
        "revision": canary.revision,
        "sweep": revision.sweep_id,
        "checkpoint": revision.checkpoint,
        "model_version": revision.model_version,
        "weight": canary.weight,
        "sticky": canary.sticky,
        "state": canary.state,
        "message": canary.message,
        "created_at": rfc3339(canary.created_at),
        "ready_at": rfc3339(canary.ready_at) if canary.ready_at else None,
    }


def guard_json(guard: GuardIn | None) -> Json | None:
    """As it is stored."""
    return None if guard is None else asdict(Guard(**guard.model_dump()))
