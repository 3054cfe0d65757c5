"""Promotions: a wish, and the verbs of people. What comes of them is the reconciler's."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session, defer
from starlette.responses import Response

from service.auth import Caller
from service.context import CallerDep, Context, ContextDep, IdempotencyKey, bearer
from service.errors import invalid
from service.idempotency import Answer
from service.models_registry import Promotion, RegistryModel
from service.pages import PageQuery, etag, page, single, states_in, words_of
from service.promotions import Wish, create_promotion, no_such_promotion, want
from service.routes.sweeps import PROBLEMS
from service.schemas import PageOf
from service.schemas_registry import PromotionIn, PromotionOut, promotion_json
from service.states import PromotionState

router = APIRouter(prefix="/v1/promotions", tags=["promotions"], dependencies=[bearer], responses=PROBLEMS)


class PromotionQuery(PageQuery):
    """Filters of the list."""

    state: Annotated[str, Field(json_schema_extra={"pattern": words_of(PromotionState)})] | None = None
    """E.g. AWAITING_APPROVAL; several with commas."""
    model: str | None = None


@router.post("", status_code=202, responses={202: {"model": PromotionOut}})
def post_promotion(
    request: Request, body: PromotionIn, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Ask that a checkpoint take the champion's place: evidence, gate, candidate, approval, production."""
    if sum(each is not None for each in (body.sweep, body.comparison, body.version)) != 1:
        raise invalid([("/sweep", "name either a sweep, or a comparison, or a version of the model")])
    if body.sweep is None and "checkpoint" in body.model_fields_set:
        raise invalid([("/checkpoint", "is for a sweep: a version, and a method's winner, is one checkpoint")])
    if body.comparison is None and body.method is not None:
        raise invalid([("/method", "is for a comparison: a sweep has one winner")])

    def effect(session: Session, now: datetime) -> Answer:
        wish = Wish(**body.model_dump())
        row, model = create_promotion(session, context.settings, wish, caller, now)
        headers = {"location": f"{request.url.path.rstrip('/')}/{row.id}", "etag": etag(row.version)}
        return Answer(status=202, body=promotion_json(row, model.name, whole=False), headers=headers)

    response = context.posts.run(request.url.path, body.model_dump(mode="json"), idempotency_key, caller, effect)
    context.reconciler.wake()
    return response


@router.get("", responses={200: {"model": PageOf[PromotionOut]}})
def list_promotions(request: Request, context: ContextDep, query: Annotated[PromotionQuery, Query()]) -> Response:
    """Promotions, newest first."""
    wanted = select(Promotion, RegistryModel.name).join(RegistryModel, RegistryModel.id == Promotion.model_id)
    wanted = wanted.options(defer(Promotion.evidence))
    if query.state is not None:
        wanted = wanted.where(Promotion.state.in_(states_in(query.state, PromotionState)))
    if query.model is not None:
        wanted = wanted.where(RegistryModel.name == query.model)
    down = query.order == "desc"
    if query.after is not None:
        wanted = wanted.where(Promotion.id < query.after if down else Promotion.id > query.after)
    order = Promotion.id.desc() if down else Promotion.id
    with context.store.read() as session:
        found = session.execute(wanted.order_by(order).limit(query.size + 1)).all()
    return page(request, [promotion_json(row, name, whole=False) for row, name in found], query)


@router.get("/{promotion_id}", responses={200: {"model": PromotionOut}})
def get_promotion(request: Request, promotion_id: str, context: ContextDep) -> Response:
    """One promotion, with its evidence."""
    with context.store.read() as session:
        row = session.get(Promotion, promotion_id)
        if row is None:
            raise no_such_promotion(promotion_id)
        name = session.get_one(RegistryModel, row.model_id).name
    return single(request, promotion_json(row, name, whole=True), row.version)


@router.post("/{promotion_id}/approve", status_code=202, responses={202: {"model": PromotionOut}})
def approve_promotion(
    request: Request, promotion_id: str, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Let `production` move to the version. Only after the gate has passed: it cannot be skipped."""
    return _wish(request, promotion_id, "approve", context, caller, idempotency_key)


@router.post("/{promotion_id}/abort", status_code=202, responses={202: {"model": PromotionOut}})
def abort_promotion(
    request: Request, promotion_id: str, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """End a promotion that is not over; its evaluation is cancelled."""
    return _wish(request, promotion_id, "abort", context, caller, idempotency_key)


@router.post("/{promotion_id}/rollback", status_code=202, responses={202: {"model": PromotionOut}})
def roll_back_promotion(
    request: Request, promotion_id: str, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Return `production`, and every deployment that follows it, to the version before."""
    return _wish(request, promotion_id, "rollback", context, caller, idempotency_key)


def _wish(
    request: Request, promotion_id: str, verb: str, context: Context, caller: Caller, key: str | None
) -> Response:
    def effect(session: Session, now: datetime) -> Answer:
        row = want(session, promotion_id, verb, caller, now)
        session.flush()
        name = session.get_one(RegistryModel, row.model_id).name
        body = promotion_json(row, name, whole=False)
        return Answer(status=202, body=body, headers={"etag": etag(row.version)})

    response = context.posts.run(request.url.path, None, key, caller, effect)
    context.reconciler.wake()
    return response
