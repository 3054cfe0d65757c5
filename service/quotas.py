"""Quotas of projects: the installation's defaults and what operators said, what is taken, and who is admitted.

A quota is a reason to wait (PENDING, reason QUOTA), never an error; only what alone is more than a project may ever
take is refused, when it is asked for.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, defer

from service import marks
from service.admission import Decision, Limits, Taken, Waiting, decide, hours_fault, never
from service.errors import Conflict, invalid, pointer_of
from service.models import Attempt, Sweep
from service.models_quotas import UNLIMITED, Quota
from service.rows import Order
from service.settings import Settings
from service.states import State
from service.usage import hours_by_project, hours_by_sweep

_AT_ONCE = 500
"""Ids in one statement."""

LINE_SHOWN = 20
"""Of those who wait, where people look at their line."""
IN_LINE = (Sweep.state == State.PENDING) & (Sweep.attempt == 0) & (Sweep.desired == "RUN")
"""Criterion of those who wait for a place."""

Live = Sequence[tuple[Sweep, Attempt | None]]
"""Everything that is not over, each with its open attempt."""


def admission(session: Session, settings: Settings, live: Live, now: datetime) -> Decision:
    """Who of the waiting may start now, and why the others wait. No query where nobody waits, else at most six."""
    waiting = [
        Waiting(
            id=sweep.id,
            project=sweep.project,
            priority=sweep.priority,
            created_at=sweep.created_at,
            slots=sweep.slots,
            hours_asked=sweep.hours_asked,
        )
        for sweep, attempt in live
        if attempt is None and sweep.state == State.PENDING and sweep.desired == "RUN"
    ]
    if not waiting:
        return Decision()
    projects = {each.project for each in waiting}
    limits = limits_of(session, settings, projects)
    running = [sweep for sweep, attempt in live if attempt is not None]
    most = settings.max_running_sweeps
    taken = taken_by(session, limits, running, now)
    return decide(waiting, taken, limits, most - len(running), most)


def limits_of(session: Session, settings: Settings, projects: Collection[str]) -> dict[str, Limits]:
    """Of each of these projects. One query."""
    said = marks.said_limits(session, list(projects))
    return {project: limits_by(settings, said.get(project)) for project in projects}


def limits_by(settings: Settings, row: Any) -> Limits:
    """What an operator said (columns of `Quota`; None: nothing), else the installation's defaults."""

    if row is None:
        row = Quota()

    def either(said: float | None, default: float | None) -> Any:
        return None if said == UNLIMITED else default if said is None else said

    return Limits(
        sweeps=either(row.concurrent_sweeps, settings.project_sweeps),
        trials=either(row.concurrent_trials, settings.project_trials),
        hours=either(row.accelerator_hours, settings.project_hours),
        period=row.period or settings.project_hours_period,
    )


def taken_by(
    session: Session, limits: Mapping[str, Limits], running: Iterable[Sweep], now: datetime
) -> dict[str, Taken]:
    """What each project of `limits` holds. Hours are looked up only where there is a limit of them."""
    mine: dict[str, list[Sweep]] = {project: [] for project in limits}
    for sweep in running:
        if sweep.project in mine:
            mine[sweep.project].append(sweep)
    counted: dict[str, float] = {}
    for period in ("month", "total"):
        projects = [p for p, each in limits.items() if each.hours is not None and each.period == period]
        if projects:
            counted |= hours_by_project(session, projects, now, month=period == "month")
    asking = [each for p, all_of in mine.items() if limits[p].hours is not None for each in all_of if each.hours_asked]
    used = hours_by_sweep(session, [each.id for each in asking], now) if asking else {}
    reserved: dict[str, float] = {}
    for each in asking:
        left = max(0.0, (each.hours_asked or 0.0) - used.get(each.id, 0.0))
        reserved[each.project] = reserved.get(each.project, 0.0) + left
    return {
        project: Taken(
            sweeps=len(sweeps),
            trials=sum(sweep.slots for sweep in sweeps),
            hours=counted.get(project, 0.0),
            reserved=reserved.get(project, 0.0),
        )
        for project, sweeps in mine.items()
    }


def standing(session: Session, settings: Settings, project: str, now: datetime) -> tuple[Limits, Taken]:
    """What a project may take, and what it takes; its hours are counted whether they are limited or not."""
    limits = limits_of(session, settings, [project])[project]
    taken = taken_by(session, {project: limits}, _running(session, project), now)[project]
    if limits.hours is None:
        hours = hours_by_project(session, [project], now, month=limits.period == "month")
        taken = replace(taken, hours=hours.get(project, 0.0))
    return limits, taken


def tell_why(session: Session, live: Live, decision: Decision) -> None:
    """Write why those that wait do, where it is not written. One statement for each reason and 500 sweeps."""
    written = {sweep.id: (sweep.reason, sweep.message) for sweep, _ in live}
    for why, ids in decision.held.items():
        changed = [id for id in ids if written[id] != why]
        for start in range(0, len(changed), _AT_ONCE):
            some = IN_LINE & Sweep.id.in_(changed[start : start + _AT_ONCE])
            values = {"reason": why[0], "message": why[1], "version": Sweep.version + 1}
            session.execute(update(Sweep).where(some).values(values).execution_options(synchronize_session=False))


def has_news(live: Live, decision: Decision) -> bool:
    """Whether `tell_why` has something to write."""
    written = {sweep.id: (sweep.reason, sweep.message) for sweep, _ in live}
    return any(written[id] != why for why, ids in decision.held.items() for id in ids)


def check_quota(session: Session, settings: Settings, project: str, order: Order) -> None:
    """Raises Invalid (422) for what alone is more than the project may ever take, naming field and remedy."""
    limits = limits_of(session, settings, [project])[project]
    if faults := never(limits, order.slots, order.hours_asked):
        raise invalid([(pointer_of(field.split(".")), text) for field, text in faults])


def check_extension(session: Session, settings: Settings, sweep_id: str, hours: float, now: datetime) -> None:
    """`hours`: the new total that somebody wishes for one sweep.

    Raises Invalid (422) for more than its project may ever take, Conflict (409) for more than it has left: what runs
    cannot wait for hours, as one that waits for its place can.
    """
    sweep = session.get_one(Sweep, sweep_id)
    limits = limits_of(session, settings, [sweep.project])[sweep.project]
    if faults := never(limits, 0, hours):
        raise invalid([("/accelerator_hours", text) for _, text in faults])
    if limits.hours is None or not sweep.attempt:
        return
    others = [each for each in _running(session, sweep.project) if each.id != sweep.id]
    taken = taken_by(session, {sweep.project: limits}, others, now)[sweep.project]
    more = max(0.0, hours - hours_by_sweep(session, [sweep.id], now).get(sweep.id, 0.0))
    if fault := hours_fault(limits, taken, more):
        text = f"{fault} Extend it by less, or ask an operator for more."
        raise Conflict(text, code="quota_exceeded", errors=[("/accelerator_hours", fault)])


def in_line(session: Session, sweep: Any) -> dict[str, Any] | None:
    """{place, of, after} of one that waits: where it stands in its project's line; None for one that does not.

    sweep: a Sweep, or its columns as `service.marks` reads them.
    """
    if sweep.state != State.PENDING or sweep.attempt or sweep.desired != "RUN":
        return None
    found = lines_of(session, Sweep.id == sweep.id)
    return {key: found[0][key] for key in ("place", "of", "after")} if found else None


def line_words(line: Mapping[str, Any]) -> str:
    """The same in a sentence."""
    after = f", after {line['after']}" if line["after"] else ""
    return f"Place {line['place']} of {line['of']} in its project's line{after}."


def lines_of(session: Session, which: Any, limit: int = LINE_SHOWN) -> list[dict[str, Any]]:
    """Those who wait, in order, each with place, of, and the id of who is right before it. One query.

    which: criterion on `Sweep`.
    """
    ahead = (Sweep.priority.desc(), Sweep.created_at, Sweep.id)
    numbered = (
        select(
            Sweep.id,
            func.row_number().over(partition_by=Sweep.project, order_by=ahead).label("place"),
            func.count().over(partition_by=Sweep.project).label("of"),
            func.lag(Sweep.id).over(partition_by=Sweep.project, order_by=ahead).label("after"),
        )
        .where(IN_LINE)
        .subquery()
    )
    columns = (Sweep.id, Sweep.kind, Sweep.name, Sweep.priority, Sweep.reason, Sweep.message)
    line = (numbered.c.place, numbered.c.of, numbered.c.after)
    query = select(*columns, *line).join(numbered, numbered.c.id == Sweep.id).where(which)
    return [dict(row._mapping) for row in session.execute(query.order_by(numbered.c.place).limit(limit))]


def _running(session: Session, project: str) -> Sequence[Sweep]:
    """What of a project is on the cluster, without specs."""
    light = (defer(Sweep.spec), defer(Sweep.plan), defer(Sweep.result))
    open_ones = select(Sweep).options(*light).join(Attempt, Attempt.sweep_id == Sweep.id)
    return session.scalars(open_ones.where(Attempt.ended_at.is_(None), Sweep.project == project)).all()
