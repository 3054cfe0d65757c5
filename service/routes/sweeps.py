"""Sweeps and runs: one set of routes, because a run is the one-point sweep."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session, defer
from starlette.responses import JSONResponse, Response

from service import rows
from service.auth import Caller
from service.context import CallerDep, Context, ContextDep, IdempotencyKey, bearer
from service.datasets import located
from service.expected import hours_of
from service.idempotency import Answer
from service.models import Sweep
from service.orders import Lookup, plan_of, run_order, sweep_order
from service.pages import PageQuery, etag, page, single, states_in
from service.rows import Order
from service.schemas import Json, PageOf, Problem, RunBody, SweepBody, SweepOut, sweep_json
from service.states import State

PROBLEMS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Problem}, "5XX": {"model": Problem}}
ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"model": SweepOut, "description": "Accepted: the state tells more"}}

sweeps = APIRouter(prefix="/v1/sweeps", tags=["sweeps"], dependencies=[bearer], responses=PROBLEMS)
runs = APIRouter(prefix="/v1/runs", tags=["runs"], dependencies=[bearer], responses=PROBLEMS)


class CreateQuery(BaseModel):
    """Of the POSTs. A misspelt validate_only must not start a sweep."""

    model_config = ConfigDict(extra="forbid")

    validate_only: bool = False
    """Run every check, store nothing, answer with the plan."""


class SweepQuery(PageQuery):
    """Filters of the lists of everything that is a Ray job."""

    state: str | None = None
    """E.g. RUNNING; several with commas."""
    name: str | None = None


@sweeps.post("", status_code=202, responses=ACCEPTED)
def create_sweep(
    request: Request,
    body: SweepBody,
    context: ContextDep,
    caller: CallerDep,
    query: Annotated[CreateQuery, Query()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Ask for a sweep, or with validate_only for its plan."""
    return _create(request, sweep_order, body.root, context, caller, idempotency_key, query.validate_only)


@runs.post("", status_code=202, responses=ACCEPTED)
def create_run(
    request: Request,
    body: RunBody,
    context: ContextDep,
    caller: CallerDep,
    query: Annotated[CreateQuery, Query()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Ask for a single training job."""
    return _create(request, run_order, body.root, context, caller, idempotency_key, query.validate_only)


@sweeps.get("", responses={200: {"model": PageOf[SweepOut]}})
def list_sweeps(request: Request, context: ContextDep, query: Annotated[SweepQuery, Query()]) -> Response:
    """Sweeps, newest first."""
    return _list(request, "sweep", context, query)


@runs.get("", responses={200: {"model": PageOf[SweepOut]}})
def list_runs(request: Request, context: ContextDep, query: Annotated[SweepQuery, Query()]) -> Response:
    """Runs, newest first."""
    return _list(request, "run", context, query)


@sweeps.get("/{sweep_id}", responses={200: {"model": SweepOut}})
def get_sweep(request: Request, sweep_id: str, context: ContextDep) -> Response:
    """One sweep, with its result once it has succeeded."""
    return _get(request, "sweep", sweep_id, context)


@runs.get("/{run_id}", responses={200: {"model": SweepOut}})
def get_run(request: Request, run_id: str, context: ContextDep) -> Response:
    """One run, with its result once it has succeeded."""
    return _get(request, "run", run_id, context)


@sweeps.post("/{sweep_id}/cancel", status_code=202, responses=ACCEPTED)
def cancel_sweep(
    request: Request, sweep_id: str, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Ask for the end of a sweep. Final: a result that comes at the same moment no longer counts."""
    return _cancel(request, "sweep", sweep_id, context, caller, idempotency_key)


@runs.post("/{run_id}/cancel", status_code=202, responses=ACCEPTED)
def cancel_run(
    request: Request, run_id: str, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Ask for the end of a run."""
    return _cancel(request, "run", run_id, context, caller, idempotency_key)


def find(session: Session, kind: str, sweep_id: str) -> Sweep:
    """The row of that kind. Raises NotFound (404)."""
    row = session.get(Sweep, sweep_id)
    if row is None or row.kind != kind:
        raise rows.no_such(kind, sweep_id)
    return row


def listed(session: Session, kind: str, query: SweepQuery) -> Sequence[Sweep]:
    """A page of the rows of that kind and one more, without results and plans. Raises a 422 for an unknown state."""
    wanted = select(Sweep).where(Sweep.kind == kind).options(defer(Sweep.result), defer(Sweep.plan))
    if query.state is not None:
        wanted = wanted.where(Sweep.state.in_(states_in(query.state, State)))
    if query.name is not None:
        wanted = wanted.where(Sweep.name == query.name)
    down = query.order == "desc"
    if query.after is not None:
        wanted = wanted.where(Sweep.id < query.after if down else Sweep.id > query.after)
    return session.scalars(wanted.order_by(Sweep.id.desc() if down else Sweep.id).limit(query.size + 1)).all()


def cancelled(
    request: Request,
    kind: str,
    sweep_id: str,
    context: Context,
    caller: Caller,
    key: str | None,
    shown: Callable[[Session, Sweep], Json],
) -> Response:
    """Ask for the end of a row of that kind; `shown` is the answer's body."""

    def effect(session: Session, now: datetime) -> Answer:
        row = rows.want_cancel(session, kind, sweep_id, caller, now)
        session.flush()
        return Answer(status=202, body=shown(session, row), headers={"etag": etag(row.version)})

    response = context.posts.run(request.url.path, None, key, caller, effect)
    context.reconciler.wake()
    return response


def _create(
    request: Request,
    parse: Callable[[Mapping[str, Any], Lookup], Order],
    body: dict[str, Any],
    context: Context,
    caller: Caller,
    key: str | None,
    validate_only: bool,
) -> Response:
    with context.store.read() as session:
        order = parse(body, lambda dataset_id: located(session, context.settings, dataset_id))
    if validate_only:
        with context.store.read() as session:
            rows.check_name(session, order, caller.project)
            return JSONResponse({**plan_of(order), "hours": hours_of(session, order)})

    def effect(session: Session, now: datetime) -> Answer:
        row = rows.create_sweep(session, order, caller, now)
        headers = {"location": f"{request.url.path.rstrip('/')}/{row.id}", "etag": etag(row.version)}
        return Answer(status=202, body=sweep_json(row, {}, whole=False), headers=headers)

    response = context.posts.run(request.url.path, body, key, caller, effect)
    context.reconciler.wake()
    return response


def _list(request: Request, kind: str, context: Context, query: SweepQuery) -> Response:
    with context.store.read() as session:
        found = listed(session, kind, query)
        counts = rows.trial_counts(session, (row.id for row in found))
    return page(request, [sweep_json(row, counts.get(row.id, {}), whole=False) for row in found], query)


def _get(request: Request, kind: str, sweep_id: str, context: Context) -> Response:
    with context.store.read() as session:
        row = find(session, kind, sweep_id)
        counts = rows.trial_counts(session, [sweep_id])
    return single(request, sweep_json(row, counts.get(sweep_id, {}), whole=True), row.version)


def _cancel(
    request: Request, kind: str, sweep_id: str, context: Context, caller: Caller, key: str | None
) -> Response:
    def shown(session: Session, row: Sweep) -> Json:
        return sweep_json(row, rows.trial_counts(session, [sweep_id]).get(sweep_id, {}), whole=False)

    return cancelled(request, kind, sweep_id, context, caller, key, shown)
