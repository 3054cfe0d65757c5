"""What the API shows and takes of registry, evaluations and promotions. Requests refuse unknown fields."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from service.clock import rfc3339
from service.models import Sweep
from service.models_registry import ModelVersion, Promotion, RegistryModel
from service.schemas import NAME, Json
from sweeps.gates import Gate

# Taken as it comes and validated by the route, so that faults are told in the gate's own words.
GateBody = Annotated[
    Any, WithJsonSchema({"anyOf": [{"const": "default", "type": "string"}, Gate.model_json_schema()]})
]


class ModelIn(BaseModel):
    """A name for the registry."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=NAME)]


class VersionIn(BaseModel):
    """A checkpoint to be registered."""

    model_config = ConfigDict(extra="forbid")

    sweep: str
    """Id of a SUCCEEDED sweep or run."""
    checkpoint: str = "winner"
    """winner, base, or the id of a trial."""


class ModelOut(BaseModel):
    """A registered model."""

    id: str
    """Its name: what paths and promotions use."""
    object: Literal["registry.model"] = "registry.model"
    name: str
    versions: int
    """How many; they count from 1."""
    aliases: dict[str, int]
    """candidate and production -> version, where set. A promotion moves them, nothing else does."""
    created_at: str


class VersionOut(BaseModel):
    """One version of a model."""

    id: str
    object: Literal["registry.model_version"] = "registry.model_version"
    model: str
    version: int
    sweep: str
    """Or the comparison."""
    checkpoint: str
    """Of a comparison: the method whose winner it is."""
    aliases: list[str]
    """Those that point at it."""
    created_at: str


class EvaluationIn(BaseModel):
    """A wish to compare a checkpoint with a model's champion, or with its own base."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=NAME)]
    sweep: str
    """Id of a SUCCEEDED sweep or run."""
    checkpoint: str = "winner"
    """winner, base, or the id of a trial."""
    against: str | None = None
    """MODEL@production or MODEL@candidate. None: the base of the sweep."""
    gate: GateBody = "default"


class EvaluationOut(BaseModel):
    """One evaluation: a Ray job that compares two checkpoints."""

    id: str
    object: Literal["evaluation"] = "evaluation"
    name: str
    state: str
    reason: str
    message: str
    stale_since: str | None
    """While Ray does not answer: since when the state may be older than the facts."""
    desired: str
    progress: float | None
    attempt: int
    candidate: str
    reference: str
    """What it is compared with, in words."""
    against: str
    """base or champion"""
    gate: Json
    decision: Json | None
    """What the gate says; of a SUCCEEDED one, and only when read by its id, as the evidence."""
    evidence: Json | None
    error: Json | None
    created_at: str
    started_at: str | None
    ended_at: str | None


class PromotionIn(BaseModel):
    """A wish that a checkpoint take the champion's place."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(pattern=NAME)]
    """Name in the registry; made when it is new."""
    sweep: str | None = None
    """Id of a SUCCEEDED sweep or run whose checkpoint becomes a version, unless it is one already."""
    checkpoint: str = "winner"
    """winner, base, or the id of a trial."""
    comparison: str | None = None
    """Instead of a sweep: id of a SUCCEEDED comparison, whose winner of `method` becomes a version."""
    method: str | None = None
    """As the comparison calls it. None: the one that leads."""
    version: Annotated[int, Field(ge=1, lt=10**9)] | None = None
    """Instead of a sweep: a registered version."""
    gate: GateBody = "default"
    approval: Literal["manual", "auto"] = "manual"
    """auto: production moves as soon as the gate passes."""


class PromotionOut(BaseModel):
    """One promotion."""

    id: str
    object: Literal["promotion"] = "promotion"
    model: str
    version: int
    champion: int | None
    """In production when it began; null: the base was the rival."""
    approval: str
    gate: Json
    state: str
    reason: str
    message: str
    desired: str
    evaluation: str | None
    """Id; null where the sweep's own finals were evidence enough."""
    decision: Json | None
    evidence: Json | None
    """Only when read by its id."""
    created_at: str
    ended_at: str | None


def model_json(row: RegistryModel, aliases: Mapping[str, int]) -> Json:
    """One model."""
    return ModelOut(
        id=row.name,
        name=row.name,
        versions=row.versions,
        aliases=dict(aliases),
        created_at=rfc3339(row.created_at),
    ).model_dump(mode="json")


def version_json(model: RegistryModel, row: ModelVersion, aliases: Mapping[str, int]) -> Json:
    """One version. Its path stays inside."""
    return VersionOut(
        id=str(row.n),
        model=model.name,
        version=row.n,
        sweep=row.sweep_id,
        checkpoint=row.checkpoint,
        aliases=[alias for alias, n in aliases.items() if n == row.n],
        created_at=rfc3339(row.created_at),
    ).model_dump(mode="json")


def evaluation_json(row: Sweep, *, whole: bool) -> Json:
    """`whole`: with decision and evidence."""
    result = (row.result or {}) if whole else {}
    return EvaluationOut(
        id=row.id,
        name=row.name,
        state=row.state,
        reason=row.reason,
        message=row.message,
        stale_since=rfc3339(row.stale_since) if row.stale_since else None,
        desired=row.desired,
        progress=row.progress,
        attempt=row.attempt,
        candidate=row.spec["candidate"]["label"],
        reference=row.spec["reference"]["label"],
        against=row.spec["against"],
        gate=row.spec["gate"],
        decision=result.get("decision"),
        evidence=result.get("evidence"),
        error=row.error,
        created_at=rfc3339(row.created_at),
        started_at=rfc3339(row.started_at) if row.started_at else None,
        ended_at=rfc3339(row.ended_at) if row.ended_at else None,
    ).model_dump(mode="json")


def promotion_json(row: Promotion, model: str, *, whole: bool) -> Json:
    """`whole`: with the evidence."""
    return PromotionOut(
        id=row.id,
        model=model,
        version=row.n,
        champion=row.champion,
        approval=row.approval,
        gate=row.gate,
        state=row.state,
        reason=row.reason,
        message=row.message,
        desired=row.desired,
        evaluation=row.evaluation_id,
        decision=row.decision,
        evidence=row.evidence if whole else None,
        created_at=rfc3339(row.created_at),
        ended_at=rfc3339(row.ended_at) if row.ended_at else None,
    ).model_dump(mode="json")
