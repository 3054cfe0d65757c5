"""Evaluations: one checkpoint against another, as a Ray job; a promotion asks for its own."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from service import registry, rows
from service.context import CallerDep, ContextDep, IdempotencyKey, bearer
from service.errors import Conflict
from service.evaluations import Contender, evaluation_order, gate_of, gate_on
from service.idempotency import Answer
from service.models import EVALUATION, Sweep
from service.origins import origin_of
from service.pages import etag, page
from service.quotas import in_line
from service.reach import check_reach
from service.routes.sweeps import PROBLEMS, SweepQuery, cancelled, find, listed, single_in_line
from service.schemas import Json, PageOf
from service.schemas_registry import EvaluationIn, EvaluationOut, evaluation_json
from service.winners import Chosen, chosen

router = APIRouter(prefix="/v1/evaluations", tags=["evaluations"], dependencies=[bearer], responses=PROBLEMS)


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
        check_reach(session, context.settings, {"gate": body.gate})
        gate = gate_of(body.gate)
        found = chosen(session, context.settings, body.sweep, body.checkpoint)
        sweep = origin_of(session, context.settings, body.sweep, found.checkpoint)
        candidate = Contender(chosen=found, label=f"{sweep.name}, {found.checkpoint}")
        champion = None if body.against is None else _champion(session, caller.project, body.against)
        written = gate_on(gate, sweep)
        order = evaluation_order(session, context.settings, body.name, candidate, champion, written.model_dump())
        row = rows.create_sweep(session, order, caller, now)
        headers = {"location": f"{request.url.path.rstrip('/')}/{row.id}", "etag": etag(row.version)}
        return Answer(status=202, body=evaluation_json(row, whole=False), headers=headers)

    response = context.posts.run(request.url.path, body.model_dump(mode="json"), idempotency_key, caller, effect)
    context.reconciler.wake()
    return response


@router.get("", responses={200: {"model": PageOf[EvaluationOut]}})
def list_evaluations(request: Request, context: ContextDep, query: Annotated[SweepQuery, Query()]) -> Response:
    """Evaluations, newest first."""
    with context.store.read() as session:
        found = listed(session, EVALUATION, query)
    return page(request, [evaluation_json(row, whole=False) for row in found], query)


@router.get("/{evaluation_id}", responses={200: {"model": EvaluationOut}})
def get_evaluation(request: Request, evaluation_id: str, context: ContextDep) -> Response:
    """One evaluation, with its evidence once it has succeeded."""
    with context.store.read() as session:
        row = find(session, EVALUATION, evaluation_id)
        line = in_line(session, row)
    return single_in_line(request, evaluation_json(row, whole=True), row.version, line)


@router.post("/{evaluation_id}/cancel", status_code=202, responses={202: {"model": EvaluationOut}})
def cancel_evaluation(
    request: Request,
    evaluation_id: str,
    context: ContextDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Ask for its end. A promotion that waits for it fails."""

    def shown(session: Session, row: Sweep) -> Json:
        return evaluation_json(row, whole=False)

    return cancelled(request, EVALUATION, evaluation_id, context, caller, idempotency_key, shown)


def _champion(session: Session, project: str, reference: str) -> Contender:
    target = registry.followed(session, project, reference)
    if target is None:
        raise Conflict(f"{reference} points nowhere yet: promote a version first.", code="alias_not_set")
    version = target.version
    found = Chosen(sweep_id=version.sweep_id, checkpoint=version.checkpoint, path=version.model_path)
    return Contender(chosen=found, label=f"{reference.partition('@')[0]}, version {version.n}")
