"""Comparisons: several methods under one budget, as one Ray job; the result says which is best, and how surely."""

from dataclasses import replace
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import GetJsonSchemaHandler, RootModel
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse, Response

from service import rows
from service.admission import PRIORITIES
from service.context import CallerDep, ContextDep, IdempotencyKey, bearer
from service.datasets import located
from service.idempotency import Answer
from service.models import COMPARISON, Sweep
from service.orders import comparison_order, plan_of
from service.pages import etag, page
from service.quotas import check_quota, in_line
from service.reach import check_reach, check_warm_start
from service.routes.sweeps import (
    PLANNED,
    PROBLEMS,
    CreateQuery,
    SweepQuery,
    cancelled,
    find,
    listed,
    single_in_line,
)
from service.run_dirs import check_kept
from service.schemas import Json, PageOf
from service.schemas_comparisons import ComparisonOut, comparison_json
from sweeps.comparison_spec import ComparisonSpec

router = APIRouter(prefix="/v1/comparisons", tags=["comparisons"], dependencies=[bearer], responses=PROBLEMS)


class ComparisonBody(RootModel[Json]):
    """A ComparisonSpec, taken as it comes and validated by the order."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: object, handler: GetJsonSchemaHandler) -> Json:
        return handler(ComparisonSpec.__pydantic_core_schema__)


@router.post("", status_code=202, responses={202: {"model": ComparisonOut}, **PLANNED})
def create_comparison(
    request: Request,
    body: ComparisonBody,
    context: ContextDep,
    caller: CallerDep,
    query: Annotated[CreateQuery, Query()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Ask for a comparison, or with validate_only for the plan of each method."""
    with context.store.read() as session:
        check_reach(session, context.settings, body.root)
        order = comparison_order(body.root, lambda dataset_id: located(session, context.settings, dataset_id))
        check_warm_start(session, order.spec)
        check_kept(context.settings, order)
        if query.validate_only:
            check_quota(session, context.settings, caller.project, order)
            rows.check_name(session, order, caller.project)
            return JSONResponse(plan_of(order))
    order = replace(order, priority=PRIORITIES[query.priority])

    def effect(session: Session, now: datetime) -> Answer:
        check_quota(session, context.settings, caller.project, order)
        row = rows.create_sweep(session, order, caller, now)
        headers = {"location": f"{request.url.path.rstrip('/')}/{row.id}", "etag": etag(row.version)}
        return Answer(status=202, body=comparison_json(row, whole=False), headers=headers)

    response = context.posts.run(request.url.path, query.said_with(body.root), idempotency_key, caller, effect)
    context.reconciler.wake()
    return response


@router.get("", responses={200: {"model": PageOf[ComparisonOut]}})
def list_comparisons(request: Request, context: ContextDep, query: Annotated[SweepQuery, Query()]) -> Response:
    """Comparisons, newest first."""
    with context.store.read() as session:
        found = listed(session, COMPARISON, query)
    return page(request, [comparison_json(row, whole=False) for row in found], query)


@router.get("/{comparison_id}", responses={200: {"model": ComparisonOut}})
def get_comparison(request: Request, comparison_id: str, context: ContextDep) -> Response:
    """One comparison, with leaderboard, curves and verdicts once it has succeeded."""
    with context.store.read() as session:
        row = find(session, COMPARISON, comparison_id)
        line = in_line(session, row)
    return single_in_line(request, comparison_json(row, whole=True), row.version, line)


@router.post("/{comparison_id}/cancel", status_code=202, responses={202: {"model": ComparisonOut}})
def cancel_comparison(
    request: Request,
    comparison_id: str,
    context: ContextDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Ask for its end. What its methods have found so far stays in the run directory."""

    def shown(session: Session, row: Sweep) -> Json:
        return comparison_json(row, whole=False)

    return cancelled(request, COMPARISON, comparison_id, context, caller, idempotency_key, shown)
