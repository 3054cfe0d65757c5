"""Live control of a sweep: each POST stores an edit, which the driver of the moment applies or refuses.

A run is the one-point sweep: it is paused and resumed in the same way, and there is nothing else to change.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from sqlalchemy.orm import Session
from starlette.responses import Response

from service.auth import Caller
from service.context import CallerDep, Context, ContextDep, IdempotencyKey, bearer
from service.edits import checked_edit, edit_id, edits_of, number_of, want_edit
from service.errors import NotFound, invalid
from service.idempotency import Answer
from service.models_edits import SweepEdit
from service.pages import PageQuery, etag, page, single
from service.quotas import check_extension
from service.routes.sweeps import PROBLEMS, find
from service.routes.trials import TRIAL_ID
from service.schemas import PageOf
from service.schemas_edits import (
    CloneBody,
    EditBody,
    EditOut,
    ExtendBody,
    PauseBody,
    PointBody,
    ResumeBody,
    SpaceBody,
    StopBody,
    edit_json,
)

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"], dependencies=[bearer], responses=PROBLEMS)
runs = APIRouter(prefix="/v1/runs", tags=["runs"], dependencies=[bearer], responses=PROBLEMS)
TrialId = Annotated[str, Path(json_schema_extra={"pattern": TRIAL_ID})]
ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"model": EditOut, "description": "Stored: `state` tells more"}}


class EditQuery(PageQuery):
    """Of the list of edits; in order of number."""

    order: Literal["asc", "desc"] = "asc"
    after: Annotated[str, Field(json_schema_extra={"pattern": "^edt_[0-9]{8,9}$"})] | None = None


@router.post("/{sweep_id}/pause", status_code=202, responses=ACCEPTED)
def pause_sweep(
    request: Request,
    sweep_id: str,
    context: ContextDep,
    caller: CallerDep,
    body: PauseBody | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Start no further trial and hold the running ones before their next step; the wall clock's budget stands still."""
    return _ask(request, sweep_id, "pause", body, context, caller, idempotency_key)


@router.post("/{sweep_id}/resume", status_code=202, responses=ACCEPTED)
def resume_sweep(
    request: Request,
    sweep_id: str,
    context: ContextDep,
    caller: CallerDep,
    body: ResumeBody | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Go on after a pause."""
    return _ask(request, sweep_id, "resume", body, context, caller, idempotency_key)


@router.post("/{sweep_id}/extend", status_code=202, responses=ACCEPTED)
def extend_sweep(
    request: Request,
    sweep_id: str,
    context: ContextDep,
    caller: CallerDep,
    body: ExtendBody,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Raise limits of the budget: `trials`, `wall_clock_s`, `total_steps`, `accelerator_hours`, each the new total.

    Hours beyond what the project may take are a 422, beyond what it has left a 409 `quota_exceeded`.
    """
    return _ask(request, sweep_id, "extend", body, context, caller, idempotency_key)


@router.post("/{sweep_id}/space", status_code=202, responses=ACCEPTED)
def change_space(
    request: Request,
    sweep_id: str,
    context: ContextDep,
    caller: CallerDep,
    body: SpaceBody,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Other ranges, choices or constants for the named `axes`, for trials that nobody has asked yet."""
    return _ask(request, sweep_id, "space", body, context, caller, idempotency_key)


@router.post("/{sweep_id}/points", status_code=202, responses=ACCEPTED)
def add_point(
    request: Request,
    sweep_id: str,
    context: ContextDep,
    caller: CallerDep,
    body: PointBody,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Train the point `params` in the place of the next trial of the budget."""
    return _ask(request, sweep_id, "add_point", body, context, caller, idempotency_key)


@router.post("/{sweep_id}/trials/{trial_id}/stop", status_code=202, responses=ACCEPTED)
def stop_trial(
    request: Request,
    sweep_id: str,
    trial_id: TrialId,
    context: ContextDep,
    caller: CallerDep,
    body: StopBody | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """End one running trial before its next step, as PRUNED."""
    return _ask(request, sweep_id, "stop_trial", body, context, caller, idempotency_key, trial_id)


@router.post("/{sweep_id}/trials/{trial_id}/clone", status_code=202, responses=ACCEPTED)
def clone_trial(
    request: Request,
    sweep_id: str,
    trial_id: TrialId,
    context: ContextDep,
    caller: CallerDep,
    body: CloneBody | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Train a trial's point once more, with `params` changed, in the place of the next trial of the budget."""
    return _ask(request, sweep_id, "clone_trial", body, context, caller, idempotency_key, trial_id)


@router.get("/{sweep_id}/edits", responses={200: {"model": PageOf[EditOut]}})
def list_edits(request: Request, sweep_id: str, context: ContextDep, query: Annotated[EditQuery, Query()]) -> Response:
    """What people asked of a sweep, in the order of its numbers, with the driver's answers."""
    return _listed(request, "sweep", sweep_id, context, query)


@router.get("/{sweep_id}/edits/{edit}", responses={200: {"model": EditOut}})
def get_edit(request: Request, sweep_id: str, edit: str, context: ContextDep) -> Response:
    """One edit."""
    return _one(request, "sweep", sweep_id, edit, context)


@runs.post("/{run_id}/pause", status_code=202, responses=ACCEPTED)
def pause_run(
    request: Request,
    run_id: str,
    context: ContextDep,
    caller: CallerDep,
    body: PauseBody | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Hold the training before its next step; the wall clock's budget stands still."""
    return _ask(request, run_id, "pause", body, context, caller, idempotency_key, kind="run")


@runs.post("/{run_id}/resume", status_code=202, responses=ACCEPTED)
def resume_run(
    request: Request,
    run_id: str,
    context: ContextDep,
    caller: CallerDep,
    body: ResumeBody | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Go on after a pause."""
    return _ask(request, run_id, "resume", body, context, caller, idempotency_key, kind="run")


@runs.get("/{run_id}/edits", responses={200: {"model": PageOf[EditOut]}})
def list_run_edits(
    request: Request, run_id: str, context: ContextDep, query: Annotated[EditQuery, Query()]
) -> Response:
    """What people asked of a run, in the order of its numbers, with the driver's answers."""
    return _listed(request, "run", run_id, context, query)


@runs.get("/{run_id}/edits/{edit}", responses={200: {"model": EditOut}})
def get_run_edit(request: Request, run_id: str, edit: str, context: ContextDep) -> Response:
    """One edit of a run."""
    return _one(request, "run", run_id, edit, context)


def _listed(request: Request, kind: str, sweep_id: str, context: Context, query: EditQuery) -> Response:
    after = number_of(query.after) if query.after is not None else 0
    if after is None:
        raise invalid([("/after", "must be the id of an edit, like edt_00000042")])
    with context.store.read() as session:
        find(session, kind, sweep_id)
        found = edits_of(session, sweep_id, after=after, limit=query.size + 1, order=query.order)
    return page(request, [edit_json(row) for row in found], query)


def _one(request: Request, kind: str, sweep_id: str, edit: str, context: Context) -> Response:
    number = number_of(edit)
    with context.store.read() as session:
        find(session, kind, sweep_id)
        row = None if number is None else session.get(SweepEdit, (sweep_id, number))
    if row is None:
        raise NotFound(f"There is no edit {edit} of {sweep_id}.")
    return single(request, edit_json(row), row.version)


def _ask(
    request: Request,
    sweep_id: str,
    action: str,
    body: EditBody | None,
    context: Context,
    caller: Caller,
    key: str | None,
    trial_id: str | None = None,
    *,
    kind: str = "sweep",
) -> Response:
    given = body.root if body is not None else {}
    wanted = checked_edit(action, given, trial_id)

    def effect(session: Session, now: datetime) -> Answer:
        row = want_edit(session, kind, sweep_id, wanted, caller, now)
        if (hours := wanted.get("accelerator_hours")) is not None:
            check_extension(session, context.settings, sweep_id, hours, now)
        headers = {"location": f"/v1/{kind}s/{sweep_id}/edits/{edit_id(row.number)}", "etag": etag(row.version)}
        return Answer(status=202, body=edit_json(row), headers=headers)

    response = context.posts.run(request.url.path, given, key, caller, effect)
    context.reconciler.wake()
    return response
