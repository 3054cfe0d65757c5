"""The tables. A row says what is desired and what the reconciler last knew; the run directory belongs to the job."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Float, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

EVALUATION = "eval"
"""Kind of the rows of `sweeps` that are evaluations."""
COMPARISON = "cmp"
"""Kind of the rows of `sweeps` that are comparisons of methods."""
DEFAULT_PROJECT = "default"
"""Id and name of the project that there is from the beginning: of a single person, and of rows older than projects."""


NAME_IS_TAKEN = text("sweeps.state NOT IN ('FAILED', 'CANCELLED')")
"""In the words of the index `uq_sweeps_live_name`: a partial index serves only queries that repeat its condition."""


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in Python; SQLite, which knows no zones, stores it without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        assert value.tzinfo is not None, "naive time"
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's own form)
        datetime: UtcDateTime,
        dict[str, Any]: JSON(none_as_null=True),
        list[dict[str, Any]]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
        str: Text,
        float: Float(53),
    }


class Owned:
    """A row of one project. Nobody outside it sees it: `service.tenancy` narrows every query of a request by this."""

    project: Mapped[str] = mapped_column(String(40), server_default=DEFAULT_PROJECT)


class Sweep(Owned, Base):
    """A sweep, or a run: the one-point sweep."""

    __tablename__ = "sweeps"
    __table_args__ = (
        # The name of a failed or cancelled one is free again: correcting a path must not cost the name.
        Index(
            "uq_sweeps_live_name",
            "project",
            "kind",
            "name",
            unique=True,
            sqlite_where=text("state NOT IN ('FAILED', 'CANCELLED')"),
            postgresql_where=text("state NOT IN ('FAILED', 'CANCELLED')"),
        ),
        Index("ix_sweeps_state", "state"),
        # All that a list asks of the rows it has shown before: the rows themselves are large.
        Index("ix_sweeps_listed", "project", "kind", "id", "version", "state"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    kind: Mapped[str] = mapped_column(String(8))
    """sweep, run, eval or cmp: evaluations and comparisons are submitted, watched and fenced like a search."""
    name: Mapped[str] = mapped_column(String(63))
    created_by: Mapped[str]
    priority: Mapped[int] = mapped_column(server_default="0")
    """Before others of its project: -1, 0 or 1 (`service.admission.PRIORITIES`)."""
    slots: Mapped[int] = mapped_column(server_default="1")
    """Trials that it may train at once: what it takes of the project's quota."""
    hours_asked: Mapped[float | None]
    """Accelerator-hours of its budget, of all methods for a comparison; null: no limit of its own."""
    spec: Mapped[dict[str, Any]]
    """As asked for: a SweepSpec or a RunSpec."""
    plan: Mapped[dict[str, Any]]
    """As executed: always a SweepSpec."""
    spec_hash: Mapped[str] = mapped_column(String(64))
    """Of `plan`; result.json must carry the same."""
    desired: Mapped[str] = mapped_column(String(8), default="RUN")
    """RUN or CANCEL"""
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(40))
    """One word: why it is in this state."""
    message: Mapped[str] = mapped_column(default="")
    """One sentence for a person."""
    phase: Mapped[str | None] = mapped_column(String(16))
    progress: Mapped[float | None]
    """Share of the phase that is done, 0 to 1."""
    best: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    """result.json of the attempt that succeeded."""
    error: Mapped[dict[str, Any] | None]
    """{class, code, message, log_tail} of a FAILED one."""
    attempt: Mapped[int] = mapped_column(default=0)
    """Number of the current attempt: the fence. 0 before the first."""
    version: Mapped[int] = mapped_column()
    """Rises with every UPDATE, which names the version it read: compare-and-set, and the ETag."""
    event_seq: Mapped[int] = mapped_column(default=0)
    """Number of the newest event."""
    trial_counts: Mapped[dict[str, Any] | None]
    """Trials by state of one that is over; null: count them (`service.rows.trial_counts`)."""
    stale_since: Mapped[datetime | None]
    """First look at which Ray did not answer for it; null: the newest look was answered."""
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 (SQLAlchemy's own form)


class Attempt(Base):
    """One submission of a sweep's driver to Ray."""

    __tablename__ = "attempts"
    __table_args__ = (
        # At most one attempt of a sweep is open, whatever two reconcilers believe.
        Index(
            "uq_attempts_open",
            "sweep_id",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index("ix_attempts_unreleased", "released_at"),
    )

    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    """1, 2, ...: the fencing number."""
    submission_id: Mapped[str] = mapped_column(String(63), unique=True)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(default="")
    journal_seq: Mapped[int] = mapped_column(default=0)
    """Newest journal record in the tables: the tail is idempotent by this."""
    submit_failures: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    submitted_at: Mapped[datetime | None]
    """When Ray was known to have the job."""
    ended_at: Mapped[datetime | None]
    """When this attempt stopped counting."""
    released_at: Mapped[datetime | None]
    """When Ray was known to be done with the job."""


class Trial(Base):
    """One point of the search space, as the driver's journal told."""

    __tablename__ = "trials"
    __table_args__ = (
        Index("ix_trials_number", "sweep_id", "number"),
        Index("ix_trials_state", "sweep_id", "state"),
    )

    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id"), primary_key=True)
    trial_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int]
    attempt: Mapped[int]
    """Attempt that told of it last."""
    state: Mapped[str] = mapped_column(String(16))
    params: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any]]
    """Newest value of each."""
    rungs: Mapped[list[dict[str, Any]]]
    """[{step, metrics}] in order."""
    step: Mapped[int | None]
    value: Mapped[float | None]
    """The objective."""
    reason: Mapped[str] = mapped_column(default="")
    checkpoint: Mapped[str | None]
    """Relative to the run directory."""
    seconds: Mapped[float | None]
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class Event(Owned, Base):
    """What happened, append-only: the history that people watch."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("parent_id", "attempt", "journal_seq", name="uq_events_journal"),)

    parent_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    """1, 2, ... within the parent, without gaps."""
    type: Mapped[str] = mapped_column(String(40))
    level: Mapped[str] = mapped_column(String(8))
    actor: Mapped[str] = mapped_column(String(40))
    """Id of the key of a person, `reconciler`, or `driver`."""
    message: Mapped[str]
    data: Mapped[dict[str, Any]]
    attempt: Mapped[int | None]
    journal_seq: Mapped[int | None]
    """Where the driver wrote it; null for our own."""
    created_at: Mapped[datetime]


class Deployment(Owned, Base):
    """A named model behind Ray Serve."""

    __tablename__ = "deployments"
    __table_args__ = (
        Index(
            "uq_deployments_live_name",
            "project",
            "name",
            unique=True,
            sqlite_where=text("state <> 'DELETED'"),
            postgresql_where=text("state <> 'DELETED'"),
        ),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(63))
    created_by: Mapped[str]
    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id"))
    checkpoint: Mapped[str]
    """As asked for: winner, base or the id of a trial."""
    model_path: Mapped[str]
    base_path: Mapped[str | None]
    """The base whose adapter `model_path` holds, where it is served by the base's replicas; null: by its own."""
    engine: Mapped[str] = mapped_column(String(16), server_default="transformers")
    """What generates the text: transformers or vllm."""
    idle_s: Mapped[int | None]
    """Seconds without a request after which its replicas leave; null: they stay."""
    follows: Mapped[str | None] = mapped_column(String(127))
    """MODEL@ALIAS whose moves it follows; null: one checkpoint for good."""
    model_version: Mapped[int | None]
    """Version of the followed model that is wished now."""
    ready_revision: Mapped[int | None]
    """Newest revision that was seen READY: while a later one loads, it goes on answering."""
    revision: Mapped[int] = mapped_column(default=1)
    desired: Mapped[str] = mapped_column(String(8), default="SERVE")
    """SERVE or DELETE"""
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(40))
    message: Mapped[str] = mapped_column(default="")
    stale_since: Mapped[datetime | None]
    """First look at which Serve did not answer; null: the newest look was answered."""
    version: Mapped[int] = mapped_column()
    event_seq: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    ready_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 (SQLAlchemy's own form)


class IdempotentAnswer(Base):
    """What a POST with an Idempotency-Key was answered, stored in the transaction of its effect."""

    __tablename__ = "idempotency"

    principal: Mapped[str] = mapped_column(String(40), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    """Of route and body."""
    status: Mapped[int]
    headers: Mapped[dict[str, Any]]
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(index=True)


class ApiKey(Owned, Base):
    """A key at rest is its SHA-256: 256 random bits need no slow hash."""

    __tablename__ = "api_keys"
    __table_args__ = (Index("uq_api_keys_previous_hash", "previous_hash", unique=True),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(String(16))
    """The visible beginning, to tell keys apart."""
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str] | None]
    """What it may do (`service.scopes`); null: what its role may."""
    role: Mapped[str | None] = mapped_column(String(16))
    """One of `service.scopes.ROLES`; null: its scopes say it all, and where these are null too, everything."""
    created_by: Mapped[str | None] = mapped_column(String(40))
    """Id of the key that made it; null: somebody at the machine."""
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """To the minute."""
    previous_hash: Mapped[str | None] = mapped_column(String(64))
    """Of the secret before the newest rotation."""
    previous_until: Mapped[datetime | None]
    """As long as that one still opens."""
    requests_per_minute: Mapped[int | None]
    """Of completions; null: no limit of its own, nor for the two below."""
    tokens_per_minute: Mapped[int | None]
    tokens_per_day: Mapped[int | None]


class Lease(Base):
    """Who reconciles. It only saves work: safety comes from the unique rows and the fence."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    holder: Mapped[str]
    until: Mapped[float]
    """Seconds since 1970 by the database's clock."""
