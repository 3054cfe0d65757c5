"""What the API takes and shows of people: projects, keys, the audit log."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.auth import Caller
from service.clock import Moment, rfc3339
from service.keys import KeyState, state_of
from service.models import ApiKey
from service.models_people import AuditEntry, Project
from service.schemas import NAME, Json
from service.scopes import ROLES, SCOPES, held

Role = Annotated[str, Field(pattern=f"^({'|'.join(ROLES)})$")]
Scope = Annotated[str, Field(pattern=f"^({'|'.join(SCOPES)})$")]
MAX_GRACE_S = 30 * 24 * 3600.0


def _whole(value: object) -> object:
    """5 for 5.0, which JSON Schema calls an integer too; what else is no int is left to be refused."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


RateLimit = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000), BeforeValidator(_whole)]


class ProjectIn(BaseModel):
    """A new project."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=NAME)]


class ProjectOut(BaseModel):
    """A project."""

    id: str
    object: Literal["project"] = "project"
    name: str
    state: Literal["ACTIVE", "ARCHIVED"]
    created_by: str
    created_at: str
    archived_at: str | None


class LimitsIn(BaseModel):
    """What a key may ask of models; null: no limit. Of a change: what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    requests_per_minute: RateLimit | None = None
    """Completions within 60 s."""
    tokens_per_minute: RateLimit | None = None
    """Tokens read and written within 60 s."""
    tokens_per_day: RateLimit | None = None
    """Within 24 h."""


class LimitsOut(BaseModel):
    """What may be asked of models; null: no limit."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    tokens_per_day: int | None


class KeyIn(BaseModel):
    """A new key: by role, by scopes, or a role narrowed to some of its scopes."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=NAME)]
    """For people to tell keys apart; several may share one."""
    role: Role | None = None
    scopes: Annotated[list[Scope], Field(max_length=16)] | None = None
    project: Annotated[str, Field(max_length=63)] | None = None
    """Id or name; another than the caller's for operators alone."""
    expires_at: Moment | None = None
    """When it ends by itself; null: it does not."""
    limits: LimitsIn = Field(default_factory=LimitsIn)
    """What it may ask of models."""


class RotateIn(BaseModel):
    """How long the old secret goes on."""

    model_config = ConfigDict(extra="forbid")

    grace_s: Annotated[float, Field(ge=0, le=MAX_GRACE_S)] = 24 * 3600.0
    """Seconds; 0: it ends at once."""


class KeyOut(BaseModel):
    """A key. Its secret is shown once, in the first answer that made it."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    prefix: str
    """How it begins."""
    project: str
    role: str | None
    scopes: list[str]
    """What it may do, its role written out."""
    state: KeyState
    created_by: str | None
    created_at: str
    expires_at: str | None
    last_used_at: str | None
    """To the minute."""
    revoked_at: str | None
    previous_until: str | None
    """As long as the secret before the last rotation still opens."""
    limits: LimitsOut
    """Its own; those of its project hold beside them."""
    key: str | None = None
    """The secret: in the first answer to the request that made it, and nowhere else."""


class MeOut(BaseModel):
    """Who is asking."""

    object: Literal["caller"] = "caller"
    key_id: str
    name: str
    project: str
    role: str | None
    scopes: list[str]


class AuditOut(BaseModel):
    """One change, or one refusal."""

    id: str
    object: Literal["audit_entry"] = "audit_entry"
    created_at: str
    project: str
    actor: str
    """Id of the key."""
    actor_name: str
    scope: str
    action: str
    """Method and route."""
    target: str | None
    """Id of what was changed."""
    outcome: Literal["done", "refused"]
    request_id: str
    before: str | None
    """SHA-256 of the row before."""
    after: str | None
    """SHA-256 of the row as committed."""


def project_json(row: Project) -> Json:
    """A project as the API shows it."""
    return ProjectOut(
        id=row.id,
        name=row.name,
        state="ACTIVE" if row.archived_at is None else "ARCHIVED",
        created_by=row.created_by,
        created_at=rfc3339(row.created_at),
        archived_at=_time(row.archived_at),
    ).model_dump(mode="json")


def key_json(row: ApiKey, now: datetime) -> Json:
    """A key as the API shows it, without its secret."""
    overlap = row.previous_until is not None and row.previous_until > now
    return KeyOut(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        project=row.project,
        role=row.role,
        scopes=_in_order(held(row.role, row.scopes)),
        state=state_of(row, now),
        created_by=row.created_by,
        created_at=rfc3339(row.created_at),
        expires_at=_time(row.expires_at),
        last_used_at=_time(row.last_used_at),
        revoked_at=_time(row.revoked_at),
        previous_until=_time(row.previous_until) if overlap else None,
        limits=LimitsOut(**{name: getattr(row, name) for name in LimitsOut.model_fields}),
    ).model_dump(mode="json")


def me_json(caller: Caller) -> Json:
    """The caller as the API shows them."""
    scopes = _in_order(caller.scopes)
    me = MeOut(key_id=caller.key_id, name=caller.name, project=caller.project, role=caller.role, scopes=scopes)
    return me.model_dump(mode="json")


def audit_json(row: AuditEntry) -> Json:
    """A row of the log as the API shows it."""
    return {
        "id": row.id,
        "object": "audit_entry",
        "created_at": rfc3339(row.created_at),
        "project": row.project,
        "actor": row.actor,
        "actor_name": row.actor_name,
        "scope": row.scope,
        "action": row.action,
        "target": row.object,
        "outcome": row.outcome,
        "request_id": row.request_id,
        "before": row.before,
        "after": row.after,
    }


def _time(value: datetime | None) -> str | None:
    return None if value is None else rfc3339(value)


def _in_order(scopes: frozenset[str] | None) -> list[str]:
    return [scope for scope in SCOPES if scopes is None or scope in scopes]
