"""Work that has no budget of accelerator-hours of its own ends when its project has none left."""

from service import events
from service.admission import QUOTA, hours_fault
from service.clock import Clock
from service.models import EVALUATION
from service.quotas import Live, limits_of, taken_by
from service.rows import explain, lock_sweep
from service.settings import Settings
from service.sight import USER_ERROR
from service.states import LIVE
from service.store import Store

_TRAINED = ("finals", "done")
"""Phases after the last trial: nothing more would be saved, and the result is near."""


def stop_spent(store: Store, settings: Settings, clock: Clock, live: Live) -> None:
    """Wish the end of what trains without limit for a project whose hours are spent; `row.error` says so for good.

    What has a budget goes on to its end: it was promised. Evaluations train nothing. No query where all have budgets,
    one where no project of theirs is limited.
    """
    running = [row for row, attempt in live if attempt is not None]
    endless = [
        row
        for row in running
        if row.desired == "RUN" and row.hours_asked is None and row.kind != EVALUATION and row.phase not in _TRAINED
    ]
    if not endless:
        return
    with store.read() as session:
        limits = limits_of(session, settings, {row.project for row in endless})
        limits = {project: each for project, each in limits.items() if each.hours is not None}
        taken = taken_by(session, limits, running, clock.now()) if limits else {}
    for row in endless:
        project = row.project
        if project not in limits or taken[project].hours < (limits[project].hours or 0.0):
            continue
        remedy = "ask an operator for more, or give it a budget of accelerator_hours"
        text = f"{hours_fault(limits[project], taken[project], None)} It had no budget of its own: {remedy}."
        _stop(store, clock, row.id, text)


def _stop(store: Store, clock: Clock, sweep_id: str, text: str) -> None:
    with store.write() as session:
        row = lock_sweep(session, sweep_id)
        if row is None or row.state not in LIVE or row.desired != "RUN" or row.hours_asked is not None:
            return
        row.desired = "CANCEL"
        row.error = {"class": USER_ERROR, "code": "quota_spent", "message": text}
        explain(row, QUOTA, text)
        facts = {"quota": "accelerator_hours"}
        events.append(session, row, "job.cancel_requested", text, facts, now=clock.now(), level="warn")
