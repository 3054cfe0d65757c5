"""The tables of the registry: models, their versions, the aliases that point at versions, and promotions."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from service.models import Base, Owned


class RegistryModel(Owned, Base):
    """A name that colleagues know, behind which versions change."""

    __tablename__ = "registry_models"
    __table_args__ = (UniqueConstraint("project", "name", name="uq_registry_models_name"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(63))
    created_by: Mapped[str]
    versions: Mapped[int] = mapped_column(default=0)
    """How many there are: they count from 1."""
    version: Mapped[int] = mapped_column()
    event_seq: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 (SQLAlchemy's own form)


class ModelVersion(Base):
    """One checkpoint of a sweep under a model's name. Never changed."""

    __tablename__ = "model_versions"
    __table_args__ = (Index("uq_model_versions_checkpoint", "model_id", "sweep_id", "checkpoint", unique=True),)

    model_id: Mapped[str] = mapped_column(ForeignKey("registry_models.id"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    """1, 2, ..."""
    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id"))
    checkpoint: Mapped[str] = mapped_column(String(63))
    """Id of the trial, or base."""
    model_path: Mapped[str]
    created_by: Mapped[str]
    created_at: Mapped[datetime]


class ModelAlias(Base):
    """Where `candidate` or `production` of a model points. Only the reconciler moves it."""

    __tablename__ = "model_aliases"

    model_id: Mapped[str] = mapped_column(ForeignKey("registry_models.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(63), primary_key=True)
    n: Mapped[int]
    """The version."""
    moved_at: Mapped[datetime]
    moved_by: Mapped[str] = mapped_column(String(40))
    """Id of the promotion."""


class Promotion(Owned, Base):
    """A wish that a version take the champion's place, and how far it has come."""

    __tablename__ = "promotions"
    __table_args__ = (
        # One at a time for a model: the champion that a candidate was compared with is the one it replaces.
        Index(
            "uq_promotions_live",
            "model_id",
            unique=True,
            sqlite_where=text("state IN ('PENDING', 'RUNNING', 'AWAITING_APPROVAL')"),
            postgresql_where=text("state IN ('PENDING', 'RUNNING', 'AWAITING_APPROVAL')"),
        ),
        Index("ix_promotions_state", "state"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("registry_models.id"))
    n: Mapped[int]
    """The candidate's version."""
    champion: Mapped[int | None]
    """Version in production when the promotion began; null where there was none: the base is the rival then."""
    created_by: Mapped[str]
    approval: Mapped[str] = mapped_column(String(8))
    """auto or manual"""
    gate: Mapped[dict[str, Any]]
    """As written out for the candidate's sweep (`sweeps.gates.gate_for`)."""
    desired: Mapped[str] = mapped_column(String(8))
    """GATE: as far as the approval. PROMOTE, ABORT, ROLLBACK: what a person, or auto, wants next."""
    actor: Mapped[str] = mapped_column(String(40))
    """Who wanted that."""
    evaluation_id: Mapped[str | None] = mapped_column(ForeignKey("sweeps.id"))
    evidence: Mapped[dict[str, Any] | None]
    """Of the newest evaluation."""
    decision: Mapped[dict[str, Any] | None]
    """What the gate said of it."""
    state: Mapped[str] = mapped_column(String(24))
    reason: Mapped[str] = mapped_column(String(40))
    message: Mapped[str] = mapped_column(default="")
    version: Mapped[int] = mapped_column()
    event_seq: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 (SQLAlchemy's own form)
