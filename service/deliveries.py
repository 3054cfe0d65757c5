"""Emptying the outbox of webhooks: what is due, and what becomes of a row after an attempt.

At least once: a delivery counts when its outcome is stored, and a process may end between the two. In order: of one
history, one webhook is told the next event when the one before got through or was given up.
"""

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.orm import Session

from service import events
from service.models import Event
from service.models_webhooks import Webhook, WebhookDelivery
from service.states import DeliveryState, WebhookState
from service.webhook_wire import body_of, message_id

PAUSES_S = (5, 30, 120, 600, 1800, 7200, 21600, 43200)
"""Between the attempts of one delivery, 21 hours in all; after the last it is given up (DEAD)."""
MAX_ATTEMPTS = len(PAUSES_S) + 1
AT_ONCE = 4
"""Deliveries of one webhook on their way; of one that fails, a single one."""
_KEPT = timedelta(days=30)  # how long an ended delivery is shown
_MAX_PAUSE_S = 3600  # what a receiver's Retry-After, or a row of failures, may ask for at most


@dataclass(frozen=True, kw_only=True)
class Due:
    """One attempt to be made."""

    id: str
    """Of the delivery."""
    webhook_id: str
    attempts: int
    """Made before this one; also the fence: an outcome counts if nobody stored another one meanwhile."""
    url: str
    secrets: tuple[str, ...]
    """Of the webhook; after a rotation, for a while, two."""
    message_id: str
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended."""

    status: int | None
    """HTTP status; None without an answer."""
    message: str
    """Why it failed; empty where it did not."""
    retry_after_s: int = 0
    """What the receiver asked for."""

    @property
    def gone(self) -> bool:
        """The receiver says that it wants nothing any more."""
        return self.status == 410


def due(session: Session, now: datetime, busy: Mapping[str, Collection[str]]) -> list[Due]:
    """What may be sent now. `busy`: webhook -> its deliveries that are on their way."""
    pending = (WebhookDelivery.webhook_id == Webhook.id) & (WebhookDelivery.state == DeliveryState.PENDING)
    waiting = select(WebhookDelivery.id).where(pending, WebhookDelivery.not_before <= now).exists()
    rested = Webhook.resume_at.is_(None) | (Webhook.resume_at <= now)
    hooks = session.scalars(select(Webhook).where(Webhook.state == WebhookState.ACTIVE, rested, waiting)).all()
    found: list[Due] = []
    for hook in hooks:
        sent = busy.get(hook.id, ())
        room = (1 if hook.failures else AT_ONCE) - len(sent)
        if room > 0:
            found += [_due(session, hook, row, now) for row in _heads(session, hook.id, now, sent, room)]
    return found


def record(session: Session, tried: Due, outcome: Outcome, now: datetime, disable_after: timedelta) -> str:
    """Store how an attempt ended: delivered, retried, dead, or late where it does not count any more."""
    # key_share: transactions that put new events into the outbox need not wait for this one.
    hook = session.scalar(select(Webhook).where(Webhook.id == tried.webhook_id).with_for_update(key_share=True))
    row = session.scalar(select(WebhookDelivery).where(WebhookDelivery.id == tried.id).with_for_update())
    if hook is None or row is None or row.state != DeliveryState.PENDING or row.attempts != tried.attempts:
        return "late"
    row.attempts += 1
    row.status, row.message = outcome.status, outcome.message
    if not outcome.message:
        row.state, row.ended_at = DeliveryState.DELIVERED, now
        if hook.failures:
            hook.failures, hook.failing_since, hook.resume_at = 0, None, None
        return "delivered"
    pause_s = max(_jittered(PAUSES_S[min(row.attempts, len(PAUSES_S)) - 1]), min(outcome.retry_after_s, _MAX_PAUSE_S))
    row.not_before = now + timedelta(seconds=pause_s)
    if row.attempts >= MAX_ATTEMPTS:
        row.state, row.ended_at = DeliveryState.DEAD, now
    hook.failures += 1
    hook.failing_since = hook.failing_since or now
    rest_s = min(2 ** min(hook.failures, 12), _MAX_PAUSE_S)
    hook.resume_at = now + timedelta(seconds=max(rest_s, min(outcome.retry_after_s, _MAX_PAUSE_S)))
    if hook.state == WebhookState.ACTIVE and outcome.gone:
        disable(session, hook, "GONE", "The address answered 410: it wants nothing any more.", now)
    elif hook.state == WebhookState.ACTIVE and now - hook.failing_since >= disable_after:
        since = hook.failing_since.isoformat(timespec="seconds")
        disable(session, hook, "FAILING", f"Nothing got through since {since}; at last: {outcome.message}", now)
    return "dead" if row.state == DeliveryState.DEAD else "retried"


def disable(session: Session, hook: Webhook, reason: str, message: str, now: datetime) -> None:
    """Tell a locked webhook nothing any more, for a reason that people see."""
    hook.state, hook.reason, hook.message, hook.resume_at = WebhookState.DISABLED, reason, message, None
    give_up(session, hook.id, "The webhook was disabled.", now)
    events.append(session, hook, "webhook.disabled", message, {"reason": reason}, now=now, level="warn")


def give_up(session: Session, webhook_id: str, message: str, now: datetime) -> None:
    """End everything that waits for a locked webhook."""
    session.flush()
    mine = (WebhookDelivery.webhook_id == webhook_id) & (WebhookDelivery.state == DeliveryState.PENDING)
    over = {"state": DeliveryState.DEAD, "message": message, "ended_at": now}
    session.execute(update(WebhookDelivery).where(mine).values(over))


def forget(session: Session, now: datetime) -> None:
    """Delete what ended long ago; give up what was put aside at the very moment when a webhook ended."""
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.ended_at < now - _KEPT))
    over = select(Webhook.id).where(Webhook.state != WebhookState.ACTIVE)
    for webhook_id in session.scalars(over.where(Webhook.id.in_(_pending_of()))).all():
        give_up(session, webhook_id, "The webhook is told nothing any more.", now)


def _pending_of() -> Select[Any]:
    """Ids of webhooks for which something waits."""
    return select(WebhookDelivery.webhook_id).where(WebhookDelivery.state == DeliveryState.PENDING)


def _heads(session: Session, webhook_id: str, now: datetime, sent: Collection[str], room: int) -> list[WebhookDelivery]:
    """The first that waits of each history, unless it rests or is on its way."""
    mine = (WebhookDelivery.webhook_id == webhook_id) & (WebhookDelivery.state == DeliveryState.PENDING)
    first = select(WebhookDelivery.parent_id, func.min(WebhookDelivery.seq).label("seq")).where(mine)
    heads = first.group_by(WebhookDelivery.parent_id).subquery()
    query = (
        select(WebhookDelivery)
        .join(heads, (WebhookDelivery.parent_id == heads.c.parent_id) & (WebhookDelivery.seq == heads.c.seq))
        .where(mine, WebhookDelivery.not_before <= now, WebhookDelivery.id.not_in(sent))
        .order_by(WebhookDelivery.not_before, WebhookDelivery.id)
        .limit(room)
    )
    return list(session.scalars(query))


def _due(session: Session, hook: Webhook, row: WebhookDelivery, now: datetime) -> Due:
    event = session.get_one(Event, (row.parent_id, row.seq))
    both = hook.previous_secret and hook.previous_until and now < hook.previous_until
    return Due(
        id=row.id,
        webhook_id=hook.id,
        attempts=row.attempts,
        url=hook.url,
        secrets=(hook.secret, *([hook.previous_secret] if hook.previous_secret and both else [])),
        message_id=message_id(row.parent_id, row.seq),
        body=body_of(event),
    )


def _jittered(pause_s: float, random_: Callable[[], float] = random.random) -> float:
    """A fifth more or less, so that what failed together is not tried together."""
    return pause_s * (0.8 + 0.4 * random_())
