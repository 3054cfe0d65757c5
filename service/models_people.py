"""The tables of people: projects, and the audit log of what their keys changed. Keys themselves are in `models`."""

from datetime import datetime

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.models import Base, Owned


class Project(Base):
    """A tenant: what people make in it, nobody outside it sees. Never deleted, so that its id means nothing else."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    created_by: Mapped[str]
    version: Mapped[int] = mapped_column()
    created_at: Mapped[datetime]
    archived_at: Mapped[datetime | None]
    """From then on its keys open nothing; what it holds stays."""

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 (SQLAlchemy's own form)


class AuditEntry(Owned, Base):
    """One change that somebody made, or was refused. Written in the transaction of the change, never changed."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_project", "project", "id"), Index("ix_audit_object", "object"))

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    # Its project is the one that was changed; of a refused request, the caller's.
    actor: Mapped[str] = mapped_column(String(40))
    """Id of the key."""
    actor_name: Mapped[str]
    """Its name at that time."""
    scope: Mapped[str] = mapped_column(String(32))
    """What the request needed."""
    action: Mapped[str]
    """Method and route, e.g. POST /v1/sweeps/{sweep_id}/cancel."""
    object: Mapped[str | None] = mapped_column(String(127))
    """Id of what was changed; of a refused request: its path's last part that names something."""
    outcome: Mapped[str] = mapped_column(String(8))
    """done or refused"""
    request_id: Mapped[str] = mapped_column(String(64))
    before: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 of the row before; null for a new one."""
    after: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 of the row as committed; null where it is gone."""
    created_at: Mapped[datetime]
