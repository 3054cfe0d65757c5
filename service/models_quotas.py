"""The tables of quotas: what a project may take, and what it has taken of accelerators."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.models import Base, Owned

UNLIMITED = -1
"""In a column of a quota: no limit, whatever the installation's default is."""


class Quota(Owned, Base):
    """What an operator said of one project. Null: the installation's default."""

    __tablename__ = "quotas"

    project: Mapped[str] = mapped_column(String(40), primary_key=True)
    concurrent_sweeps: Mapped[int | None]
    """Sweeps, runs, evaluations and comparisons on the cluster at once."""
    concurrent_trials: Mapped[int | None]
    """Trials that these may train at once."""
    accelerator_hours: Mapped[float | None]
    """Hours of training processes (`sweeps.hours`) within the period."""
    period: Mapped[str | None] = mapped_column(String(8))
    """month (of the calendar, UTC) or total"""
    requests_per_minute: Mapped[int | None]
    """Of completions, by all its keys together; null: no limit, nor for the two below."""
    tokens_per_minute: Mapped[int | None]
    tokens_per_day: Mapped[int | None]
    updated_by: Mapped[str] = mapped_column(String(40))
    updated_at: Mapped[datetime]
    version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 (SQLAlchemy's own form)


class Usage(Owned, Base):
    """What one sweep's trials took of one month, once they were over. Written under the lock of the sweep's row."""

    __tablename__ = "usage"
    __table_args__ = (Index("ix_usage_project", "project", "month"),)

    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id"), primary_key=True)
    month: Mapped[str] = mapped_column(String(7), primary_key=True)
    """2026-09"""
    seconds: Mapped[float]
    """Times workers: of training processes."""


class UsageSlot(Owned, Base):
    """A trial, or a retraining of one, that holds its processes at this moment."""

    __tablename__ = "usage_slots"

    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id"), primary_key=True)
    slot: Mapped[str] = mapped_column(String(80), primary_key=True)
    """Trial and number of the retraining, 0 for none: trl_0003/0"""
    attempt: Mapped[int]
    workers: Mapped[int]
    """Processes that it holds."""
    began_at: Mapped[datetime]
