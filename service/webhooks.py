"""What people may do to webhooks. Their rows alone: nobody is told anything here (`service.courier`)."""

from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service import events, outbox
from service.auth import Caller
from service.deliveries import give_up
from service.errors import Conflict, NotFound, illegal_transition, invalid
from service.event_types import unknown_patterns
from service.ids import new_id
from service.models_webhooks import Webhook, WebhookDelivery
from service.states import DeliveryState, WebhookState
from service.webhook_url import checked_url
from service.webhook_wire import new_secret

MOST = 20
"""Webhooks of one project."""
_ALLOWED = {
    WebhookState.ACTIVE: ["delete", "retry", "rotate", "test"],
    WebhookState.DISABLED: ["delete", "enable", "rotate"],
    WebhookState.DELETED: [],
}


def create_webhook(
    session: Session, url: str, patterns: list[str], description: str, caller: Caller, now: datetime, *, loopback: bool
) -> Webhook:
    """A new subscription of the caller's project, with its secret.

    Raises Invalid (422) for an address or a type that will not do, Conflict (409) where there are MOST already.
    """
    checked = checked_url(url, loopback=loopback)
    if unknown := unknown_patterns(patterns):
        place = patterns.index(unknown[0])
        raise invalid([(f"/events/{place}", f"{unknown[0]!r} is no type of event: use one, or like job.*, or *")])
    mine = (Webhook.project == caller.project) & (Webhook.state != WebhookState.DELETED)
    if (session.scalar(select(func.count()).select_from(Webhook).where(mine)) or 0) >= MOST:
        raise Conflict(f"This project has {MOST} webhooks: delete one first.", code="too_many_webhooks")
    row = Webhook(
        id=new_id("whk", now),
        project=caller.project,
        url=checked,
        events=patterns,
        description=description,
        secret=new_secret(),
        created_by=caller.key_id,
        state=WebhookState.ACTIVE,
        reason="",
        message="",
        failures=0,
        event_seq=0,
        created_at=now,
    )
    session.add(row)
    facts = {"events": patterns}
    events.append(session, row, "webhook.created", "Created.", facts, now=now, actor=caller.key_id)
    session.flush()
    return row


def find(session: Session, webhook_id: str, caller: Caller, *, lock: bool = False) -> Webhook:
    """One of the caller's project, a deleted one too. Raises NotFound (404)."""
    query = select(Webhook).where(Webhook.id == webhook_id, Webhook.project == caller.project)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NotFound(f"There is no webhook {webhook_id}.")
    return row


def delete(session: Session, row: Webhook, caller: Caller, now: datetime) -> None:
    """End a locked one. Its secret is forgotten; what waited for it is given up."""
    _check(row, "delete")
    row.state, row.reason, row.message, row.ended_at = WebhookState.DELETED, "DELETED", "Deleted.", now
    row.secret, row.previous_secret, row.previous_until = "", None, None
    give_up(session, row.id, "The webhook was deleted.", now)
    events.append(session, row, "webhook.deleted", "Deleted.", now=now, actor=caller.key_id)
    session.flush()


def enable(session: Session, row: Webhook, caller: Caller, now: datetime) -> None:
    """Tell a locked, disabled one of events again, from now on."""
    _check(row, "enable")
    row.state, row.reason, row.message = WebhookState.ACTIVE, "", ""
    row.failures, row.failing_since, row.resume_at = 0, None, None
    events.append(session, row, "webhook.enabled", "Enabled.", now=now, actor=caller.key_id)
    session.flush()


def rotate(session: Session, row: Webhook, grace_s: float, caller: Caller, now: datetime) -> None:
    """Give a locked one a new secret; for the grace messages are signed with the one before too."""
    _check(row, "rotate")
    row.previous_secret, row.previous_until = row.secret, now + timedelta(seconds=grace_s)
    row.secret = new_secret()
    facts = {"grace_s": grace_s}
    events.append(session, row, "webhook.rotated", "Has a new secret.", facts, now=now, actor=caller.key_id)
    session.flush()


def test(session: Session, row: Webhook, caller: Caller, now: datetime) -> WebhookDelivery:
    """One event for a locked webhook alone, sent like every other."""
    _check(row, "test")
    text = "A test: this address is told of events."
    event = events.append(session, row, "webhook.test", text, now=now, actor=caller.key_id)
    delivery = outbox.put(session, row.id, event)
    session.flush()
    return delivery


def retry(session: Session, row: Webhook, delivery_id: str, caller: Caller, now: datetime) -> WebhookDelivery:
    """Try a delivery of a locked webhook again that was given up. Raises NotFound (404) or Conflict (409)."""
    _check(row, "retry")
    mine = (WebhookDelivery.id == delivery_id) & (WebhookDelivery.webhook_id == row.id)
    delivery = session.scalar(select(WebhookDelivery).where(mine).with_for_update())
    if delivery is None:
        raise NotFound(f"There is no delivery {delivery_id} of {row.id}.")
    if delivery.state != DeliveryState.DEAD:
        raise illegal_transition("delivery", delivery.state, "retry", [])
    delivery.state, delivery.ended_at, delivery.attempts = DeliveryState.PENDING, None, 0
    delivery.not_before = outbox.AT_ONCE
    facts = {"delivery": delivery.id}
    events.append(session, row, "webhook.retry_requested", "Retry requested.", facts, now=now, actor=caller.key_id)
    session.flush()
    return delivery


def _check(row: Webhook, verb: str) -> None:
    verbs = _ALLOWED[WebhookState(row.state)]
    if verb not in verbs:
        raise illegal_transition("webhook", row.state, verb, verbs)
