"""Quotas and capacity: what may run, what runs, what waits. Operators set a project's quotas, its people read them."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse, Response

from service import projects
from service.admission import word_of
from service.context import CallerDep, Context, ContextDep, bearer
from service.models import Sweep
from service.models_quotas import UNLIMITED, Quota, UsageSlot
from service.pages import check_if_match, etag
from service.quotas import IN_LINE, LINE_SHOWN, lines_of, standing
from service.routes.sweeps import PROBLEMS
from service.schemas_people import LimitsOut
from service.schemas_quotas import Amounts, CapacityOut, InLineOut, QuotaIn, QuotasOut, RunningOut, SweepCapacity
from service.serving.rates import RateLimits
from service.states import LIVE

router = APIRouter(prefix="/v1", tags=["quotas"], dependencies=[bearer], responses=PROBLEMS)


@router.get("/quotas", responses={200: {"model": QuotasOut}})
def get_quotas(context: ContextDep, caller: CallerDep) -> Response:
    """Of the caller's project."""
    with context.store.read() as session:
        return JSONResponse(_shown(session, context, caller.project, session.get(Quota, caller.project)))


@router.get("/projects/{project_id}/quotas", responses={200: {"model": QuotasOut}})
def get_project_quotas(project_id: str, context: ContextDep) -> Response:
    """Of any project. The ETag is that of what was set, not of what is used."""
    with context.everything.read() as session:
        projects.find(session, project_id)
    with context.within(project_id).store.read() as session:
        row = session.get(Quota, project_id)
        shown = _shown(session, context, project_id, row)
    return JSONResponse(shown, 200, {"etag": etag(_version(row))})


@router.patch("/projects/{project_id}/quotas", responses={200: {"model": QuotasOut}})
def set_quotas(
    request: Request, project_id: str, body: QuotaIn, context: ContextDep, caller: CallerDep
) -> Response:
    """Change what is given. What runs goes on; what waits is looked at again at once."""
    with context.everything.read() as session:
        projects.find(session, project_id)
    with context.within(project_id).store.write() as session:
        row = session.get(Quota, project_id, with_for_update=True)
        check_if_match(request, _version(row))
        if row is None:
            row = Quota(project=project_id)
            session.add(row)
        for name in body.model_fields_set:
            said = getattr(body, name)
            setattr(row, name, UNLIMITED if said == "unlimited" else said)
        row.updated_by, row.updated_at = caller.key_id, context.clock.now()
        session.flush()
        shown = _shown(session, context, project_id, row)
    context.reconciler.wake()
    return JSONResponse(shown, 200, {"etag": etag(row.version)})


@router.get("/capacity", responses={200: {"model": CapacityOut}})
def get_capacity(context: ContextDep) -> Response:
    """Counts of the whole installation: whether it is full, not whose work it is."""
    with context.everything.read() as session:
        running, waiting = _counts(session)
        trials = session.scalar(select(func.count(UsageSlot.slot))) or 0
    with context.store.read() as session:
        mine = _counts(session)
    body = CapacityOut(
        sweeps=SweepCapacity(running=running, waiting=waiting, limit=context.settings.max_running_sweeps),
        trials=trials,
        project=RunningOut(running=mine[0], waiting=mine[1]),
    )
    return JSONResponse(body.model_dump(mode="json"))


def _shown(session: Session, context: Context, project: str, row: Quota | None) -> dict[str, Any]:
    limits, taken = standing(session, context.settings, project, context.clock.now())
    line = lines_of(session, Sweep.project == project)
    hours_left = None if limits.hours is None else max(0.0, limits.hours - taken.hours - taken.reserved)
    return QuotasOut(
        project=project,
        limits=_amounts(limits.sweeps, limits.trials, limits.hours),
        period="total" if limits.period == "total" else "month",
        inference=LimitsOut(**asdict(RateLimits.of(row))),
        used=_amounts(taken.sweeps, taken.trials, taken.hours),
        promised_hours=_round(taken.reserved),
        left=_amounts(_less(limits.sweeps, taken.sweeps), _less(limits.trials, taken.trials), hours_left),
        said={name: _word(None if row is None else getattr(row, name)) for name in QuotaIn.model_fields},
        waiting=line[0]["of"] if line else 0,
        queue=[InLineOut(**{**each, "priority": word_of(each["priority"])}) for each in line[:LINE_SHOWN]],
    ).model_dump(mode="json")


def _counts(session: Session) -> tuple[int, int]:
    """(running, waiting)"""
    live = session.scalar(select(func.count(Sweep.id)).where(Sweep.state.in_(LIVE), Sweep.attempt > 0)) or 0
    return live, session.scalar(select(func.count(Sweep.id)).where(IN_LINE)) or 0


def _amounts(sweeps: int | None, trials: int | None, hours: float | None) -> Amounts:
    rounded = None if hours is None else _round(hours)
    return Amounts(concurrent_sweeps=sweeps, concurrent_trials=trials, accelerator_hours=rounded)


def _less(limit: int | None, taken: int) -> int | None:
    return None if limit is None else max(0, limit - taken)


def _round(hours: float) -> float:
    return round(hours, 6)


def _word(said: Any) -> Any:
    return "unlimited" if said == UNLIMITED else said


def _version(row: Quota | None) -> int:
    return 0 if row is None else row.version
