"""The tables of webhooks: who wants to be told what, and the outbox of what is still to be told."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.models import Base, Owned


class Webhook(Owned, Base):
    """A subscription: an address that is told of events of its project. It has a history of its own, told to nobody."""

    __tablename__ = "webhooks"
    __table_args__ = (Index("ix_webhooks_project", "project", "state"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    url: Mapped[str]
    """As `service.webhook_url.checked_url` writes it."""
    events: Mapped[list[str]]
    """Types of events; `trial.*` stands for all that begin so, `*` for all."""
    description: Mapped[str]
    secret: Mapped[str]
    """whsec_ and 256 random bits: the key of the signatures, so it is kept readable. Empty once deleted."""
    previous_secret: Mapped[str | None]
    """The one before the newest rotation; messages are signed with both"""
    previous_until: Mapped[datetime | None]
    """until then."""
    created_by: Mapped[str]
    state: Mapped[str] = mapped_column(String(16))
    """ACTIVE, DISABLED or DELETED"""
    reason: Mapped[str] = mapped_column(String(40))
    message: Mapped[str]
    failures: Mapped[int]
    """Deliveries in a row that did not get through."""
    failing_since: Mapped[datetime | None]
    """The first of them."""
    resume_at: Mapped[datetime | None]
    """Nothing is tried before: an address that fails is left in peace for a while."""
    version: Mapped[int] = mapped_column()
    event_seq: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 (SQLAlchemy's own form)


class WebhookDelivery(Owned, Base):
    """One event for one webhook, written in the transaction of the event. What is sent is made from the event's row."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("uq_webhook_deliveries_event", "webhook_id", "parent_id", "seq", unique=True),
        # Finds the first of each history that is still to be told, however long the backlog.
        Index("ix_webhook_deliveries_due", "webhook_id", "state", "parent_id", "seq"),
        Index("ix_webhook_deliveries_ended", "ended_at"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"))
    parent_id: Mapped[str] = mapped_column(String(40))
    """Of the event, with `seq`."""
    seq: Mapped[int]
    type: Mapped[str] = mapped_column(String(40))
    state: Mapped[str] = mapped_column(String(16))
    """PENDING, DELIVERED or DEAD"""
    attempts: Mapped[int]
    status: Mapped[int | None]
    """HTTP status of the newest attempt; null where there was no answer."""
    message: Mapped[str]
    """Why the newest attempt failed, in our words: nothing of an answer's body is kept."""
    not_before: Mapped[datetime]
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    """When it was delivered, or given up."""
