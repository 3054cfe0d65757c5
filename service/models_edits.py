"""The table of edits: what people ask of a running sweep, and how its driver answered."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.models import Base


class SweepEdit(Base):
    """One edit. Its number is that of its file in the run directory's `control`."""

    __tablename__ = "sweep_edits"
    __table_args__ = (Index("ix_sweep_edits_state", "state"),)

    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """1, 2, ... within the sweep."""
    action: Mapped[str] = mapped_column(String(16))
    """One of `sweeps.control.EDITS`."""
    edit: Mapped[dict[str, Any]]
    """What the file holds."""
    actor: Mapped[str] = mapped_column(String(40))
    """Id of the key of a person; `driver` for what was asked in the run directory itself."""
    state: Mapped[str] = mapped_column(String(8))
    """pending, applied or refused"""
    message: Mapped[str] = mapped_column(default="")
    field: Mapped[str | None]
    """Of a refused one: dotted, what is wrong in `edit`."""
    trial_id: Mapped[str | None] = mapped_column(String(63))
    """Trial that it is about, or that it made."""
    attempt: Mapped[int | None]
    """Attempt that answered."""
    version: Mapped[int] = mapped_column()
    created_at: Mapped[datetime]
    written_at: Mapped[datetime | None]
    """When its file was known to be there."""
    answered_at: Mapped[datetime | None]

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 (SQLAlchemy's own form)
