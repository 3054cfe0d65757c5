"""Webhooks: addresses that are told of a project's events, and what became of what they were told."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse, Response

from service import webhooks
from service.context import CallerDep, ContextDep, IdempotencyKey, bearer
from service.idempotency import Answer
from service.models_webhooks import Webhook, WebhookDelivery
from service.pages import PageQuery, check_if_match, etag, page, single
from service.routes.sweeps import PROBLEMS
from service.schemas import PageOf
from service.schemas_people import RotateIn
from service.schemas_webhooks import DeliveryOut, WebhookIn, WebhookOut, delivery_json, webhook_json
from service.states import DeliveryState, WebhookState

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], dependencies=[bearer], responses=PROBLEMS)


class WebhookQuery(PageQuery):
    """Of the list. Deleted ones are shown only when asked for by state."""

    state: WebhookState | None = None


class DeliveryQuery(PageQuery):
    """Of the list of deliveries."""

    state: DeliveryState | None = None
    """E.g. DEAD: what was given up."""
    type: Annotated[str, Field(max_length=40)] | None = None
    """Type of the event."""


@router.post("", status_code=201, responses={201: {"model": WebhookOut}})
def create_webhook(
    request: Request,
    context: ContextDep,
    caller: CallerDep,
    body: WebhookIn,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Subscribe an address to events of this project. This answer alone has the secret of its signatures."""

    def effect(session: Session, now: datetime) -> Answer:
        row = webhooks.create_webhook(
            session,
            body.url,
            body.events,
            body.description,
            caller,
            now,
            loopback=context.settings.webhook_loopback,
        )
        headers = {"location": f"/v1/webhooks/{row.id}", "etag": etag(row.version)}
        return Answer(status=201, body=webhook_json(row), headers=headers, once={"secret": row.secret})

    return context.posts.run(request.url.path, body.model_dump(mode="json"), idempotency_key, caller, effect)


@router.get("", responses={200: {"model": PageOf[WebhookOut]}})
def list_webhooks(
    request: Request, context: ContextDep, caller: CallerDep, query: Annotated[WebhookQuery, Query()]
) -> Response:
    """Webhooks of this project, newest first."""
    wanted = select(Webhook).where(Webhook.project == caller.project)
    wanted = wanted.where(Webhook.state == query.state if query.state else Webhook.state != WebhookState.DELETED)
    down = query.order == "desc"
    if query.after is not None:
        wanted = wanted.where(Webhook.id < query.after if down else Webhook.id > query.after)
    with context.store.read() as session:
        found = session.scalars(wanted.order_by(Webhook.id.desc() if down else Webhook.id).limit(query.size + 1)).all()
    return page(request, [webhook_json(row) for row in found], query)


@router.get("/{webhook_id}", responses={200: {"model": WebhookOut}})
def get_webhook(request: Request, webhook_id: str, context: ContextDep, caller: CallerDep) -> Response:
    """One webhook; a deleted one too."""
    with context.store.read() as session:
        row = webhooks.find(session, webhook_id, caller)
    return single(request, webhook_json(row), row.version)


@router.delete("/{webhook_id}", responses={200: {"model": WebhookOut}})
def delete_webhook(request: Request, webhook_id: str, context: ContextDep, caller: CallerDep) -> Response:
    """End it, guarded by If-Match. What it was not told yet it is not told."""
    with context.store.write() as session:
        row = webhooks.find(session, webhook_id, caller, lock=True)
        check_if_match(request, row.version)
        webhooks.delete(session, row, caller, context.clock.now())
    return JSONResponse(webhook_json(row), 200, {"etag": etag(row.version)})


@router.post("/{webhook_id}/enable", status_code=200, responses={200: {"model": WebhookOut}})
def enable_webhook(
    request: Request,
    webhook_id: str,
    context: ContextDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Tell a DISABLED one of events again, from now on. What it missed is not told by itself: see `retry`."""

    def effect(session: Session, now: datetime) -> Answer:
        row = webhooks.find(session, webhook_id, caller, lock=True)
        webhooks.enable(session, row, caller, now)
        return Answer(status=200, body=webhook_json(row), headers={"etag": etag(row.version)})

    return context.posts.run(request.url.path, None, idempotency_key, caller, effect)


@router.post("/{webhook_id}/rotate", status_code=201, responses={201: {"model": WebhookOut}})
def rotate_webhook(
    request: Request,
    webhook_id: str,
    context: ContextDep,
    caller: CallerDep,
    body: RotateIn | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A new secret, in this answer alone. For `grace_s` seconds messages carry signatures of both."""
    wanted = body or RotateIn()

    def effect(session: Session, now: datetime) -> Answer:
        row = webhooks.find(session, webhook_id, caller, lock=True)
        webhooks.rotate(session, row, wanted.grace_s, caller, now)
        headers = {"location": f"/v1/webhooks/{row.id}", "etag": etag(row.version)}
        return Answer(status=201, body=webhook_json(row), headers=headers, once={"secret": row.secret})

    return context.posts.run(request.url.path, wanted.model_dump(mode="json"), idempotency_key, caller, effect)


@router.post("/{webhook_id}/test", status_code=202, responses={202: {"model": DeliveryOut}})
def test_webhook(
    request: Request,
    webhook_id: str,
    context: ContextDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Send it an event of its own, `webhook.test`. Its deliveries tell how that went, and nothing what it answered."""

    def effect(session: Session, now: datetime) -> Answer:
        row = webhooks.find(session, webhook_id, caller, lock=True)
        return Answer(status=202, body=delivery_json(webhooks.test(session, row, caller, now)))

    response = context.posts.run(request.url.path, None, idempotency_key, caller, effect)
    context.reconciler.wake()
    return response


@router.get("/{webhook_id}/deliveries", responses={200: {"model": PageOf[DeliveryOut]}})
def list_deliveries(
    request: Request,
    webhook_id: str,
    context: ContextDep,
    caller: CallerDep,
    query: Annotated[DeliveryQuery, Query()],
) -> Response:
    """What it was told, or is to be told, newest first; what ended is kept for thirty days."""
    wanted = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id)
    if query.state is not None:
        wanted = wanted.where(WebhookDelivery.state == query.state)
    if query.type is not None:
        wanted = wanted.where(WebhookDelivery.type == query.type)
    down, key = query.order == "desc", WebhookDelivery.id
    if query.after is not None:
        wanted = wanted.where(key < query.after if down else key > query.after)
    with context.store.read() as session:
        webhooks.find(session, webhook_id, caller)
        found = session.scalars(wanted.order_by(key.desc() if down else key).limit(query.size + 1)).all()
    return page(request, [delivery_json(row) for row in found], query)


@router.post("/{webhook_id}/deliveries/{delivery_id}/retry", status_code=202, responses={202: {"model": DeliveryOut}})
def retry_delivery(
    request: Request,
    webhook_id: str,
    delivery_id: str,
    context: ContextDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Try a DEAD one again."""

    def effect(session: Session, now: datetime) -> Answer:
        row = webhooks.find(session, webhook_id, caller, lock=True)
        return Answer(status=202, body=delivery_json(webhooks.retry(session, row, delivery_id, caller, now)))

    response = context.posts.run(request.url.path, None, idempotency_key, caller, effect)
    context.reconciler.wake()
    return response
