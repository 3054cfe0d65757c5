"""Sweeps and runs: one set of routes, because a run is the one-point sweep."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse, Response

from service import marks, rows
from service.admission import PRIORITIES
from service.auth import Caller
from service.context import CallerDep, Context, ContextDep, IdempotencyKey, bearer
from service.datasets import located
from service.expected import hours_of
from service.idempotency import Answer
from service.models import Sweep
from service.orders import Lookup, plan_of, run_order, sweep_order
from service.pages import PageQuery, conditional, etag, page_of, single, states_in, words_of
from service.quotas import check_quota, in_line, line_words
from service.reach import check_reach, check_warm_start
from service.rows import Order
from service.run_dirs import check_kept
from service.schemas import Json, PageOf, PlanOut, Problem, RunBody, SweepBody, SweepOut, sweep_json, sweep_text
from service.shown import Shown
from service.states import LIVE, State

PLANNED: dict[int | str, dict[str, Any]] = {200: {"model": PlanOut, "description": "The plan (validate_only)"}}
PROBLEMS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Problem}, "5XX": {"model": Problem}}
ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"model": SweepOut, "description": "Accepted: the state tells more"}}
ACCEPTED_OR_PLANNED = {**ACCEPTED, **PLANNED}

sweeps = APIRouter(prefix="/v1/sweeps", tags=["sweeps"], dependencies=[bearer], responses=PROBLEMS)
runs = APIRouter(prefix="/v1/runs", tags=["runs"], dependencies=[bearer], responses=PROBLEMS)


class CreateQuery(BaseModel):
    """Of the POSTs. A misspelt validate_only must not start a sweep."""

    model_config = ConfigDict(extra="forbid")

    validate_only: bool = False
    """Run every check, store nothing, answer with the plan."""
    priority: Literal["low", "normal", "high"] = "normal"
    """Before others of the same project while they wait; nothing to other projects."""

    def said_with(self, body: Json) -> Any:
        """What an Idempotency-Key stands for."""
        return body if self.priority == "normal" else {"body": body, "priority": self.priority}


class SweepQuery(PageQuery):
    """Filters of the lists of everything that is a Ray job."""

    state: Annotated[str, Field(json_schema_extra={"pattern": words_of(State)})] | None = None
    """E.g. RUNNING; several with commas."""
    name: str | None = None


@sweeps.post("", status_code=202, responses=ACCEPTED_OR_PLANNED)
def create_sweep(
    request: Request,
    body: SweepBody,
    context: ContextDep,
    caller: CallerDep,
    query: Annotated[CreateQuery, Query()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Ask for a sweep, or with validate_only for its plan."""
    return _create(request, sweep_order, body.root, context, caller, idempotency_key, query)


@runs.post("", status_code=202, responses=ACCEPTED_OR_PLANNED)
def create_run(
    request: Request,
    body: RunBody,
    context: ContextDep,
    caller: CallerDep,
    query: Annotated[CreateQuery, Query()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Ask for a single training job."""
    return _create(request, run_order, body.root, context, caller, idempotency_key, query)


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


def listed(session: Session, kind: str, query: SweepQuery) -> Sequence[Any]:
    """A page of the rows of that kind and one more, without results and plans. Raises a 422 for an unknown state."""
    ids = [mark.id for mark in _marks(session, kind, query)]
    found = {row.id: row for row in marks.sweeps_of(session, ids)}
    return [found[id] for id in ids]


def _marks(session: Session, kind: str, query: SweepQuery) -> Sequence[Any]:
    return marks.marks_of(
        session,
        kind,
        states=None if query.state is None else states_in(query.state, State),
        name=query.name,
        after=query.after,
        newest_first=query.order == "desc",
        limit=query.size + 1,
    )


def single_in_line(request: Request, body: Json, version: int, line: Json | None) -> Response:
    """The answer to a GET of one row. `line`: where it waits, which changes with others: the ETag says it too."""
    if line is None:
        return single(request, body, version)
    told = {**body, "message": f"{body['message']} {line_words(line)}", **({"queue": line} if "queue" in body else {})}
    return conditional(request, to_json(told, inf_nan_mode="null"), f'"{version}.{line["place"]}.{line["of"]}"')


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
    context.reconciler.wake("reconciler")
    return response


def _create(
    request: Request,
    parse: Callable[[Mapping[str, Any], Lookup], Order],
    body: dict[str, Any],
    context: Context,
    caller: Caller,
    key: str | None,
    query: CreateQuery,
) -> Response:
    with context.store.read() as session:
        check_reach(session, context.settings, body)
        order = parse(body, lambda dataset_id: located(session, context.settings, dataset_id))
        check_warm_start(session, order.spec)
        check_kept(context.settings, order)
    if query.validate_only:
        with context.store.read() as session:
            check_quota(session, context.settings, caller.project, order)
            rows.check_name(session, order, caller.project)
            return JSONResponse({**plan_of(order), "hours": hours_of(session, order)})
    order = replace(order, priority=PRIORITIES[query.priority])

    def effect(session: Session, now: datetime) -> Answer:
        marks.look_ahead(session, order.kind, order.name, caller.project)
        check_quota(session, context.settings, caller.project, order)
        row = rows.create_sweep(session, order, caller, now)
        headers = {"location": f"{request.url.path.rstrip('/')}/{row.id}", "etag": etag(row.version)}
        return Answer(status=202, body=sweep_json(row, {}, whole=False), headers=headers)

    response = context.posts.run(request.url.path, query.said_with(body), key, caller, effect)
    context.reconciler.wake("reconciler")
    return response


def _list(request: Request, kind: str, context: Context, query: SweepQuery) -> Response:
    with context.store.read() as session:
        items = _shown(session, context.shown, _marks(session, kind, query))
    return page_of(request, items, query)


def _shown(session: Session, memory: Shown, found: Sequence[Any]) -> list[tuple[str, bytes]]:
    """(id, JSON) of each; read are those that changed since they were last shown. `found`: (id, version, state)."""
    counts = marks.trial_counts(session, [mark.id for mark in found if mark.state in LIVE])
    tried = {id: tuple(sorted(each.items())) for id, each in counts.items()}
    keys = {mark.id: (mark.id, mark.version, tried.get(mark.id, ())) for mark in found}
    known = memory.get(keys.values())
    texts = {id: known[key] for id, key in keys.items() if key in known}
    if missing := [id for id in keys if id not in texts]:
        read = marks.sweeps_of(session, missing, specs_as_text=True)
        counts |= marks.trial_counts(session, [r.id for r in read if r.trial_counts is None and r.state not in LIVE])
        for row in read:
            seen = counts.get(row.id, {}) if row.trial_counts is None else row.trial_counts
            texts[row.id] = sweep_text(row, seen)
            memory.put((row.id, row.version, keys[row.id][2]), texts[row.id])  # it may have changed once more
    return [(id, texts[id]) for id in keys]


def _get(request: Request, kind: str, sweep_id: str, context: Context) -> Response:
    with context.store.read() as session:
        row = marks.sweep_of(session, kind, sweep_id)
        if row is None:
            raise rows.no_such(kind, sweep_id)
        counts = _counts(session, row)
        line = in_line(session, row)
    return single_in_line(request, sweep_json(row, counts, whole=True), row.version, line)


def _cancel(
    request: Request, kind: str, sweep_id: str, context: Context, caller: Caller, key: str | None
) -> Response:
    def shown(session: Session, row: Sweep) -> Json:
        return sweep_json(row, _counts(session, row), whole=False)

    return cancelled(request, kind, sweep_id, context, caller, key, shown)


def _counts(session: Session, row: Any) -> dict[str, int]:
    """Trials by state: kept with a row that is over, else counted now."""
    kept: dict[str, int] | None = row.trial_counts
    return marks.trial_counts(session, [row.id]).get(row.id, {}) if kept is None else kept
