"""Who goes next: fair shares between projects, quotas within each. A pure decision over what the tables say.

A free place goes to the project that holds the fewest; between equals, to the one that has waited longest. Within a
project the higher priority goes first, then the older; nobody overtakes because he is small, so that what needs much is
not starved by what needs little. One that waits for accelerator-hours alone stands aside: they come back by months or
by an operator's word, not by others ending. Priorities mean nothing to other projects.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

PRIORITIES: Mapping[str, int] = {"low": -1, "normal": 0, "high": 1}
"""What a person may say, and the column behind it."""
QUOTA = "QUOTA"
QUEUED = "QUEUED"
_PERIODS: Mapping[str, str] = {"month": "a month", "total": "in all"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one project may take; None: no limit."""

    sweeps: int | None = None
    """Sweeps, runs, evaluations and comparisons on the cluster at once."""
    trials: int | None = None
    """Trials that these may train at once."""
    hours: float | None = None
    """Accelerator-hours within the period."""
    period: str = "month"
    """month or total"""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What one project holds."""

    sweeps: int = 0
    trials: int = 0
    hours: float = 0.0
    """Of the period, until now."""
    reserved: float = 0.0
    """Hours that running sweeps may still take of their budgets."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A sweep that has no place."""

    id: str
    project: str
    priority: int
    created_at: datetime
    slots: int
    """Trials that it may train at once."""
    hours_asked: float | None
    """Of its budget; None: without limit."""


@dataclass(kw_only=True)
class Decision:
    """What follows."""

    admitted: list[str] = field(default_factory=list)
    """Ids, in order."""
    held: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """(reason, message) -> ids of those that go on waiting for this."""


def decide(
    waiting: Iterable[Waiting], taken: Mapping[str, Taken], limits: Mapping[str, Limits], places: int, most: int
) -> Decision:
    """Give away `places` of the installation's `most`. `limits`: of every project that waits."""
    decision = Decision()
    queues = {
        project: _Queue(mine, taken.get(project, Taken()), limits[project])
        for project, mine in _by_project(waiting).items()
    }
    heads = [(queue.taken.sweeps, head.created_at, head.id, p) for p, queue in queues.items() if (head := queue.head())]
    heapq.heapify(heads)
    while places > 0 and heads:
        *_, project = heapq.heappop(heads)
        queue = queues[project]
        decision.admitted.append(queue.admit())
        places -= 1
        if (head := queue.head()) is not None:
            heapq.heappush(heads, (queue.taken.sweeps, head.created_at, head.id, project))
    busy = (QUEUED, f"Waits for a place: {most} may run at once in this installation.")
    for queue in queues.values():
        for why, ids in queue.held(busy):
            decision.held.setdefault(why, []).extend(ids)
    return decision


def hours_fault(limits: Limits, taken: Taken, hours_asked: float | None) -> str | None:
    """Why nothing more may start because of accelerator-hours, or None."""
    if limits.hours is None:
        return None
    quota = f"quota accelerator_hours: {limits.hours:g} {_PERIODS[limits.period]}"
    if taken.hours >= limits.hours:
        return f"The accelerator-hours of its project are spent ({quota})."
    if taken.hours + taken.reserved >= limits.hours:
        return f"What its project's accelerator-hours leave is promised to running sweeps ({quota})."
    if hours_asked is not None and taken.hours + taken.reserved + hours_asked > limits.hours:
        return f"It asks for {hours_asked:g} accelerator-hours, more than its project has left ({quota})."
    return None


def never(limits: Limits, slots: int, hours_asked: float | None) -> list[tuple[str, str]]:
    """What alone is more than the project may ever take at once: (field, message with the remedy) each."""
    faults = []
    if limits.trials is not None and slots > limits.trials:
        text = f"{slots} trials at once, and its project may train {limits.trials} (quota concurrent_trials)"
        faults.append(("parallel.trials", f"{text}: ask for at most {limits.trials}, or an operator for more"))
    if limits.hours is not None and hours_asked is not None and hours_asked > limits.hours:
        period = _PERIODS[limits.period]
        text = f"{hours_asked:g} hours, and its project may use {limits.hours:g} {period} (quota accelerator_hours)"
        faults.append(("budget.accelerator_hours", f"{text}: ask for less, or an operator for more"))
    return faults


def word_of(priority: int) -> str:
    """The inverse of PRIORITIES."""
    return next(word for word, value in PRIORITIES.items() if value == priority)


def order_key(each: Any) -> tuple[int, datetime, str]:
    """The order within a project."""
    return (-each.priority, each.created_at, each.id)


class _Queue:
    """Of one project."""

    def __init__(self, waiting: list[Waiting], taken: Taken, limits: Limits) -> None:
        self.taken = taken
        self._limits = limits
        self._line = sorted(waiting, key=order_key, reverse=True)  # the first is the last: popping is cheap
        self._aside: dict[str, list[str]] = {}

    def head(self) -> Waiting | None:
        """Who may start next; None: nobody."""
        while self._line:
            first = self._line[-1]
            fault = self._never_in_turn(first)
            if fault is None:
                return None if self._full(first) else first
            self._aside.setdefault(fault, []).append(self._line.pop().id)
        return None

    def admit(self) -> str:
        """Give the head its place."""
        first = self._line.pop()
        taken = self.taken
        self.taken = replace(
            taken,
            sweeps=taken.sweeps + 1,
            trials=taken.trials + first.slots,
            reserved=taken.reserved + (first.hours_asked or 0.0),
        )
        return first.id

    def held(self, busy: tuple[str, str]) -> Iterable[tuple[tuple[str, str], list[str]]]:
        """Why the others wait."""
        self.head()
        if self._line:
            full = self._full(self._line[-1])
            yield busy if full is None else (QUOTA, full), [each.id for each in self._line]
        for fault, ids in self._aside.items():
            yield (QUOTA, fault), ids

    def _never_in_turn(self, first: Waiting) -> str | None:
        """Why the others need not wait for this one."""
        most = self._limits.trials
        if most is not None and first.slots > most:
            return f"It trains more at once than its project may since then (quota concurrent_trials: {most})."
        return hours_fault(self._limits, self.taken, first.hours_asked)

    def _full(self, first: Waiting) -> str | None:
        limits, taken = self._limits, self.taken
        if limits.sweeps is not None and taken.sweeps >= limits.sweeps:
            return f"Its project runs all that it may at once (quota concurrent_sweeps: {limits.sweeps})."
        if limits.trials is not None and taken.trials + first.slots > limits.trials:
            return f"Its project trains too much already to let this in (quota concurrent_trials: {limits.trials})."
        return None


def _by_project(waiting: Iterable[Waiting]) -> dict[str, list[Waiting]]:
    found: dict[str, list[Waiting]] = {}
    for each in waiting:
        found.setdefault(each.project, []).append(each)
    return found
