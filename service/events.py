"""The history of a sweep, deployment, model or promotion: appended with what happened, never changed."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import outbox
from service.clock import rfc3339
from service.errors import invalid
from service.models import Event

RECONCILER = "reconciler"
DRIVER = "driver"
TOLD = "told"
"""Key of a session's `info`: its new events, for whoever counts them once they are committed (`Store.write`)."""
Level = Literal["info", "warn", "error"]


class Parent(Protocol):
    """A row that has a history."""

    id: Any
    project: Any
    event_seq: Any


def append(
    session: Session,
    parent: Parent,
    kind: str,
    message: str,
    data: dict[str, Any] | None = None,
    *,
    now: datetime,
    level: str = "info",
    actor: str = RECONCILER,
    attempt: int | None = None,
    journal_seq: int | None = None,
) -> Event:
    """Add one event, to the history and to the outbox of webhooks.

    `parent` is locked by this transaction, so numbers have no gaps and appear in order.
    """
    parent.event_seq += 1
    event = Event(
        parent_id=parent.id,
        project=parent.project,
        seq=parent.event_seq,
        type=kind,
        level=level,
        actor=actor,
        message=message,
        data=data or {},
        attempt=attempt,
        journal_seq=journal_seq,
        created_at=now,
    )
    session.add(event)
    session.info.setdefault(TOLD, []).append(event)
    outbox.offer(session, event)
    return event


def read(session: Session, parent_id: str, *, after: int, limit: int, order: str = "asc") -> Sequence[Event]:
    """Events of one parent past the cursor: later ones, or earlier ones when the order is `desc` (0: from the end)."""
    query = select(Event).where(Event.parent_id == parent_id)
    if order == "asc":
        return session.scalars(query.where(Event.seq > after).order_by(Event.seq).limit(limit)).all()
    if after:
        query = query.where(Event.seq < after)
    return session.scalars(query.order_by(Event.seq.desc()).limit(limit)).all()


def to_json(event: Event) -> dict[str, Any]:
    """The event as the list and the stream show it."""
    return {
        "id": event_id(event.seq),
        "object": "event",
        "type": event.type,
        "level": event.level,
        "created_at": rfc3339(event.created_at),
        "actor": event.actor,
        "attempt": event.attempt,
        "message": event.message,
        "data": event.data,
    }


def event_id(seq: int) -> str:
    """Monotonic within a parent: from its sequence, not from a clock."""
    return f"evt_{seq:08d}"


def seq_of(cursor: str | None, pointer: str = "/after") -> int:
    """The number behind an event's id; 0 for none. Raises Invalid (422) for anything else."""
    if cursor is None:
        return 0
    match = re.fullmatch(r"evt_(\d{1,15})", cursor)
    if match is None:
        raise invalid([(pointer, "must be the id of an event, like evt_00000042")])
    return int(match[1])
