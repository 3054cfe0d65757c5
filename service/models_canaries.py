"""The tables of roll-outs: what each revision of a deployment serves, its canaries, and how both versions answered."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from service.models import Base, Owned


class DeploymentRevision(Owned, Base):
    """What a revision serves, so that there is a way back. Written when another one comes beside or after it."""

    __tablename__ = "deployment_revisions"

    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployments.id"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    """Of the deployment: champions and candidates are counted together, so `rev-<n>` names one checkpoint for good."""
    sweep_id: Mapped[str] = mapped_column(String(40))
    checkpoint: Mapped[str]
    model_path: Mapped[str]
    base_path: Mapped[str | None]
    """As in `deployments`."""
    model_version: Mapped[int | None]
    """Version of a registered model, where it is one."""
    moved_by: Mapped[str | None] = mapped_column(String(40))
    """Promotion that moved the alias which the deployment follows."""
    failed: Mapped[str | None]
    """Why Serve could not load it; null: it could, or was not asked yet."""
    created_at: Mapped[datetime]


class Canary(Owned, Base):
    """A candidate beside the champion of a deployment; at most one at a time is live."""

    __tablename__ = "canaries"
    __table_args__ = (
        Index(
            "uq_canaries_live",
            "deployment_id",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )

    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployments.id"), primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True)
    weight: Mapped[int]
    """Percent of the requests."""
    sticky: Mapped[bool]
    """One `user` keeps to one version."""
    guard: Mapped[dict[str, Any] | None]
    """`service.serving.verdict.Guard`; null: nobody but people rolls back."""
    state: Mapped[str] = mapped_column(String(16))
    """`service.states.CanaryState`"""
    message: Mapped[str] = mapped_column(default="")
    verdict: Mapped[dict[str, Any] | None]
    """The decision that ended it, with the figures of both versions."""
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    ready_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class CanaryCounts(Owned, Base):
    """How one version answered through one gateway in one stretch of time. Only that gateway writes the row."""

    __tablename__ = "canary_counts"

    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployments.id"), primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True)
    """Of the canary that it was counted for."""
    arm: Mapped[str] = mapped_column(String(12), primary_key=True)
    """champion or candidate"""
    gateway: Mapped[str] = mapped_column(String(40), primary_key=True)
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """Unix time at which the stretch begins."""
    counts: Mapped[dict[str, Any]]
    """`service.serving.counts.Counts`"""
