"""Evaluations: one checkpoint against another, as a Ray job; a promotion asks for its own."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session, defer
from starlette.responses import Response

from service import registry, rows
from service.context import CallerDep, ContextDep, IdempotencyKey, bearer
from service.errors import Conflict
from service.evaluations import Contender, evaluation_order, gate_of, gate_on
from service.idempotency import Answer
from service.models import EVALUATION, Sweep
from service.pages import PageQuery, etag, page, single, states_in
from service.routes.sweeps import PROBLEMS, find
from service.schemas import PageOf
from service.schemas_registry import EvaluationIn, EvaluationOut, evaluation_json
from service.states import State
from service.winners import Chosen, chosen

router = APIRouter(prefix="/v1/evaluations", tags=["evaluations"], dependencies=[bearer], responses=PROBLEMS)


class EvaluationQuery(PageQuery):
    """Filters of the list."""

    state: str | None = None
    name: str | None = None


@router.post("", status_code=202, responses={202: {"model": EvaluationOut}})
def create_evaluation(
    request: Request,
    body: EvaluationIn,
    context: ContextDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Compare a checkpoint with a model's champion, or with its own base. Nothing is promoted by it."""

    def effect(session: Session, now: datetime) -> Answer:
        gate = gate_of(body.gate)
        found = chosen(session, context.settings, body.sweep, body.checkpoint)
        sweep = session.get_one(Sweep, body.sweep)
        candidate = Contender(chosen=found, label=f"{sweep.name}, {found.checkpoint}")
        champion = None if body.against is None else _champion(session, body.against)
        written = gate_on(gate, sweep)
        order = evaluation_order(session, context.settings, body.name, candidate, champion, written.model_dump())
        row = rows.create_sweep(session, order, caller, now)
        headers = {"location": f"{request.url.path.rstrip('/')}/{row.id}", "etag": etag(row.version)}
        return Answer(status=202, body=evaluation_json(row, whole=False), headers=headers)

    response = context.posts.run(request.url.path, body.model_dump(mode="json"), idempotency_key, caller, effect)
    context.reconciler.wake()
    return response


@router.get("", responses={200: {"model": PageOf[EvaluationOut]}})
def list_evaluations(request: Request, context: ContextDep, query: Annotated[EvaluationQuery, Query()]) -> Response:
    """Evaluations, newest first."""
    wanted = select(Sweep).where(Sweep.kind == EVALUATION).options(defer(Sweep.result), defer(Sweep.plan))
    if query.state is not None:
        wanted = wanted.where(Sweep.state.in_(states_in(query.state, State)))
    if query.name is not None:
        wanted = wanted.where(Sweep.name == query.name)
    down = query.order == "desc"
    if query.after is not None:
        wanted = wanted.where(Sweep.id < query.after if down else Sweep.id > query.after)
    with context.store.read() as session:
        found = session.scalars(wanted.order_by(Sweep.id.desc() if down else Sweep.id).limit(query.size + 1)).all()
    return page(request, [evaluation_json(row, whole=False) for row in found], query)


@router.get("/{evaluation_id}", responses={200: {"model": EvaluationOut}})
def get_evaluation(request: Request, evaluation_id: str, context: ContextDep) -> Response:
    """One evaluation, with its evidence once it has succeeded."""
    with context.store.read() as session:
        row = find(session, EVALUATION, evaluation_id)
    return single(request, evaluation_json(row, whole=True), row.version)


@router.post("/{evaluation_id}/cancel", status_code=202, responses={202: {"model": EvaluationOut}})
def cancel_evaluation(
    request: Request,
    evaluation_id: str,
    context: ContextDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Ask for its end. A promotion that waits for it fails."""

    def effect(session: Session, now: datetime) -> Answer:
        row = rows.want_cancel(session, EVALUATION, evaluation_id, caller, now)
        session.flush()
        return Answer(status=202, body=evaluation_json(row, whole=False), headers={"etag": etag(row.version)})

    response = context.posts.run(request.url.path, None, idempotency_key, caller, effect)
    context.reconciler.wake()
    return response


def _champion(session: Session, reference: str) -> Contender:
    target = registry.followed(session, reference)
    if target is None:
        raise Conflict(f"{reference} points nowhere yet: promote a version first.", code="alias_not_set")
    version = target.version
    found = Chosen(sweep_id=version.sweep_id, checkpoint=version.checkpoint, path=version.model_path)
    return Contender(chosen=found, label=f"{reference.partition('@')[0]}, version {version.n}")
