"""What the API takes and shows of webhooks. Secrets are shown once; nothing of a receiver's answers is shown at all."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.clock import rfc3339
from service.event_types import known_patterns
from service.models_webhooks import Webhook, WebhookDelivery
from service.outbox import AT_ONCE
from service.schemas import Json
from service.states import DeliveryState
from service.webhook_url import MAX_URL, URL_FORM
from service.webhook_wire import message_id

Pattern = Annotated[str, Field(max_length=40, json_schema_extra=lambda schema: schema.update(enum=known_patterns()))]


class WebhookIn(BaseModel):
    """A subscription."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(max_length=MAX_URL, json_schema_extra={"pattern": URL_FORM})]
    """https, of the public internet, port 443 or 8443."""
    events: Annotated[list[Pattern], Field(min_length=1, max_length=100)]
    """Types of events; `trial.*` stands for all that begin so, `*` for all."""
    description: Annotated[str, Field(max_length=200)] = ""
    """For people."""


class WebhookOut(BaseModel):
    """A subscription as it is."""

    id: str
    object: Literal["webhook"] = "webhook"
    url: str
    events: list[str]
    description: str
    state: str
    """ACTIVE, DISABLED or DELETED"""
    reason: str
    """Of a DISABLED one: FAILING or GONE."""
    message: str
    failures: int
    """Deliveries in a row that did not get through."""
    failing_since: str | None
    created_by: str
    created_at: str
    ended_at: str | None
    secret: str | None = None
    """Only in the first answer that made it, not in a repeated one: the key of the signatures."""
    previous_until: str | None
    """After a rotation: until then messages are signed with the secret before too."""


class DeliveryOut(BaseModel):
    """One event on its way to one webhook."""

    id: str
    object: Literal["webhook.delivery"] = "webhook.delivery"
    webhook: str
    message_id: str
    """What the receiver sees as `webhook-id`, the same in every attempt."""
    parent: str
    """Whose event it is."""
    type: str
    state: str
    """PENDING, DELIVERED or DEAD"""
    attempts: int
    status: int | None
    """HTTP status of the newest attempt."""
    message: str
    """Why it failed."""
    next_attempt_at: str | None
    created_at: str
    ended_at: str | None


def webhook_json(row: Webhook) -> Json:
    """Without its secret."""
    return WebhookOut(
        id=row.id,
        url=row.url,
        events=row.events,
        description=row.description,
        state=row.state,
        reason=row.reason,
        message=row.message,
        failures=row.failures,
        failing_since=rfc3339(row.failing_since) if row.failing_since else None,
        created_by=row.created_by,
        created_at=rfc3339(row.created_at),
        ended_at=rfc3339(row.ended_at) if row.ended_at else None,
        previous_until=rfc3339(row.previous_until) if row.previous_until else None,
    ).model_dump(mode="json", exclude={"secret"})


def delivery_json(row: WebhookDelivery) -> Json:
    """One delivery."""
    later = row.state == DeliveryState.PENDING and row.not_before > AT_ONCE
    return DeliveryOut(
        id=row.id,
        webhook=row.webhook_id,
        message_id=message_id(row.parent_id, row.seq),
        parent=row.parent_id,
        type=row.type,
        state=row.state,
        attempts=row.attempts,
        status=row.status,
        message=row.message,
        next_attempt_at=rfc3339(row.not_before) if later else None,
        created_at=rfc3339(row.created_at),
        ended_at=rfc3339(row.ended_at) if row.ended_at else None,
    ).model_dump(mode="json")
