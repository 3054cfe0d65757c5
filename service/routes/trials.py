"""What a sweep tried, and how that compares. Runs are sweeps of one point and have the same."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import Response

from service.context import Context, ContextDep, bearer
from service.errors import invalid
from service.models import Sweep, Trial
from service.pages import PageQuery, page, single, states_in, words_of
from service.routes.sweeps import PROBLEMS, find
from service.schemas import LeaderboardOut, PageOf, TrialOut, trial_json
from service.states import TrialState

TRIAL_ID = r"^trl_[0-9]{4,9}$"

_COLUMNS = [getattr(Trial, column.key) for column in Trial.__mapper__.column_attrs]
"""A page of trials as plain rows: nobody changes them, and as objects they take three times as long."""

sweeps = APIRouter(prefix="/v1/sweeps", tags=["sweeps"], dependencies=[bearer], responses=PROBLEMS)


class TrialQuery(PageQuery):
    """Filters of the list of trials; in order of number."""

    order: Literal["asc", "desc"] = "asc"
    after: Annotated[str, Field(json_schema_extra={"pattern": TRIAL_ID})] | None = None
    state: Annotated[str, Field(json_schema_extra={"pattern": words_of(TrialState)})] | None = None
    """E.g. PRUNED; several with commas."""


@sweeps.get("/{sweep_id}/trials", responses={200: {"model": PageOf[TrialOut]}})
def list_trials(
    request: Request, sweep_id: str, context: ContextDep, query: Annotated[TrialQuery, Query()]
) -> Response:
    """The trials of a sweep, in the order in which they were suggested."""
    with context.store.read() as session:
        find(session, "sweep", sweep_id)
        found = _trials(session, sweep_id, query)
    return page(request, [trial_json(row) for row in found], query)


@sweeps.get("/{sweep_id}/leaderboard", responses={200: {"model": LeaderboardOut}})
def leaderboard(request: Request, sweep_id: str, context: ContextDep) -> Response:
    """Ranked trials, best first: the driver's final ranking, or before that the values so far."""
    return _leaderboard(request, "sweep", sweep_id, context)


def _trials(session: Session, sweep_id: str, query: TrialQuery) -> Sequence[Any]:
    wanted = select(*_COLUMNS).where(Trial.sweep_id == sweep_id)
    if query.state is not None:
        wanted = wanted.where(Trial.state.in_(states_in(query.state, TrialState)))
    if query.after is not None:
        if not re.fullmatch(TRIAL_ID, query.after):
            raise invalid([("/after", "must be the id of a trial, like trl_0003")])
        last = int(query.after.removeprefix("trl_"))
        wanted = wanted.where(Trial.number < last if query.order == "desc" else Trial.number > last)
    order = Trial.number.desc() if query.order == "desc" else Trial.number
    return session.execute(wanted.order_by(order).limit(query.size + 1)).all()


def _leaderboard(request: Request, kind: str, sweep_id: str, context: Context) -> Response:
    with context.store.read() as session:
        row = find(session, kind, sweep_id)
        final = (row.result or {}).get("leaderboard")
        data: list[dict[str, Any]] = final if final is not None else _ranked(session, row)
    objective = row.plan.get("objective")
    body = {"object": "leaderboard", "sweep": row.id, "final": final is not None, "objective": objective, "data": data}
    return single(request, body, row.version)


def _ranked(session: Session, row: Sweep) -> list[dict[str, Any]]:
    found = session.scalars(select(Trial).where(Trial.sweep_id == row.id, Trial.value.is_not(None))).all()
    sign = -1.0 if (row.plan.get("objective") or {}).get("goal") != "minimize" else 1.0
    # Pruned trials were judged on fewer steps: they stand behind those that went the whole way.
    ranked = sorted(found, key=lambda t: (t.state != "SUCCEEDED", sign * (t.value or 0.0), t.number))
    return [{"rank": place, "trial_id": t.trial_id, **_facts(t)} for place, t in enumerate(ranked, 1)]


def _facts(trial: Trial) -> dict[str, Any]:
    keys = ("number", "state", "params", "step", "value", "reason", "metrics")
    return {key: getattr(trial, key) for key in keys}
