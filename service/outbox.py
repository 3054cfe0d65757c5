"""The outbox of webhooks, filled in the transaction of the event: what is told has happened, and nothing is lost."""

from datetime import UTC, datetime

from sqlalchemy.orm import Session

from service import marks
from service.clock import SystemClock
from service.event_types import is_told, matches
from service.ids import new_id
from service.models import DEFAULT_PROJECT, Event
from service.models_webhooks import WebhookDelivery
from service.states import DeliveryState
from service.tenancy import PROJECT

AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)
"""Not the event's own time: a driver's clock may be ahead of ours."""
PUT = "put into the outbox"
"""Key in `Session.info`: something was."""
_SUBSCRIBERS = "webhooks by project"


def offer(session: Session, event: Event) -> None:
    """Put an event that is about to be stored into the outbox, for every webhook of its project that wants it."""
    if not is_told(event.type):
        return
    # A new row of a request's session gets its project when it is flushed, with the same value.
    project = event.project or session.info.get(PROJECT, DEFAULT_PROJECT)
    for webhook_id, patterns in _subscribers(session, project):
        if matches(patterns, event.type):
            put(session, webhook_id, event)


def put(session: Session, webhook_id: str, event: Event) -> WebhookDelivery:
    """One event for one webhook, to be sent at once."""
    row = WebhookDelivery(
        id=new_id("dlv", SystemClock().now()),  # in the order of coming here, whatever a driver's clock says
        project=event.project,
        webhook_id=webhook_id,
        parent_id=event.parent_id,
        seq=event.seq,
        type=event.type,
        state=DeliveryState.PENDING,
        attempts=0,
        message="",
        not_before=AT_ONCE,
        created_at=event.created_at,
    )
    session.add(row)
    session.info[PUT] = True
    return row


def _subscribers(session: Session, project: str) -> list[tuple[str, list[str]]]:
    """Who is told of a project's events: one small query a transaction that has any."""
    known: dict[str, list[tuple[str, list[str]]]] = session.info.setdefault(_SUBSCRIBERS, {})
    if project not in known:
        known[project] = marks.subscribers(session, project)
    return known[project]
