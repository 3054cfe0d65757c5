"""Accelerator-hours as the tables know them: what trials took, by sweep, month and project.

Counted by the rules of `sweeps.hours`, from the same journal records, as `service.ingest` takes them: each record once,
in the transaction that notes its number. What runs has a row of its own until it ends; then its seconds are added to
the months that it lay in.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.models import Sweep
from service.models_quotas import Usage, UsageSlot
from sweeps.hours import BEGINS, ENDS, slot_of

_METHOD_SPENT = "method.spent"
"""How the driver of a comparison says what one of its sweeps took."""


class Meter:
    """Of one sweep, while its records are taken. The sweep's row is locked; what is needed is read once."""

    def __init__(self, session: Session, sweep: Sweep) -> None:
        self._session = session
        self._sweep = sweep
        self._open: dict[str, UsageSlot] | None = None

    def take(self, kind: str, data: Mapping[str, Any], attempt: int, at: datetime) -> None:
        """One record, in its order."""
        if kind == _METHOD_SPENT:
            self._add(float(data.get("accelerator_hours") or 0.0) * 3600, month_of(at))
        elif (kind in BEGINS or kind in ENDS) and data.get("trial_id"):
            name = "{}/{}".format(*slot_of(dict(data)))
            if kind in BEGINS:
                self._hold(name, attempt, at)
            elif name in self._held():
                self._leave(name, at)

    def close(self, attempt: int, last: datetime | None) -> None:
        """Nothing of an attempt holds a slot after this moment; None: nobody knows when, so nothing is counted."""
        for name in [name for name, held in self._held().items() if held.attempt == attempt]:
            self._leave(name, last or self._held()[name].began_at)

    def _held(self) -> dict[str, UsageSlot]:
        if self._open is None:
            mine = select(UsageSlot).where(UsageSlot.sweep_id == self._sweep.id)
            self._open = {held.slot: held for held in self._session.scalars(mine)}
        return self._open

    def _hold(self, name: str, attempt: int, at: datetime) -> None:
        held = self._held().get(name)
        if held is None:
            workers = int((self._sweep.plan.get("parallel") or {}).get("workers_per_trial") or 1)
            held = UsageSlot(sweep_id=self._sweep.id, project=self._sweep.project, slot=name, workers=workers)
            self._held()[name] = held
            self._session.add(held)
        held.attempt, held.began_at = attempt, at

    def _leave(self, name: str, at: datetime) -> None:
        held = self._held().pop(name)
        for month, seconds in _by_month(held.began_at, at):
            self._add(seconds * held.workers, month)
        if held in self._session.new:
            self._session.expunge(held)
        else:
            self._session.delete(held)

    def _add(self, seconds: float, month: str) -> None:
        row = self._session.get(Usage, (self._sweep.id, month))
        if row is None:
            row = Usage(sweep_id=self._sweep.id, month=month, project=self._sweep.project, seconds=0.0)
            self._session.add(row)
            self._session.flush()
        row.seconds += seconds


def hours_by_project(
    session: Session, projects: Collection[str], now: datetime, *, month: bool
) -> dict[str, float]:
    """What each has taken until now, running trials included: of this month, or in all. Two queries."""
    query = select(Usage.project, func.sum(Usage.seconds)).where(Usage.project.in_(projects)).group_by(Usage.project)
    if month:
        query = query.where(Usage.month == month_of(now))
    taken = defaultdict(float, {project: float(seconds) for project, seconds in session.execute(query)})
    since = _month_began(now) if month else None
    for held in session.scalars(select(UsageSlot).where(UsageSlot.project.in_(projects))):
        taken[held.project] += _running(held, now, since)
    return {project: seconds / 3600 for project, seconds in taken.items()}


def hours_by_sweep(session: Session, sweep_ids: Collection[str], now: datetime) -> dict[str, float]:
    """What each has taken in all, until now. Two queries."""
    query = select(Usage.sweep_id, func.sum(Usage.seconds)).where(Usage.sweep_id.in_(sweep_ids))
    taken = defaultdict(float, {id: float(seconds) for id, seconds in session.execute(query.group_by(Usage.sweep_id))})
    for held in session.scalars(select(UsageSlot).where(UsageSlot.sweep_id.in_(sweep_ids))):
        taken[held.sweep_id] += _running(held, now, None)
    return {sweep_id: seconds / 3600 for sweep_id, seconds in taken.items()}


def month_of(moment: datetime) -> str:
    """2026-09, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m")


def _running(held: UsageSlot, now: datetime, since: datetime | None) -> float:
    began = held.began_at if since is None else max(held.began_at, since)
    return max(0.0, (now - began).total_seconds()) * held.workers


def _month_began(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _by_month(began: datetime, ended: datetime) -> Iterator[tuple[str, float]]:
    """Seconds in each month between two moments; nothing where a clock went backwards."""
    while began < ended:
        first = _month_began(began)
        following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
        until = min(following, ended)
        yield month_of(began), (until - began).total_seconds()
        began = until
