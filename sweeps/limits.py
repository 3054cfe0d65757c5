"""Which limit ended a search, what was spent of each, and the watch over accelerator-hours.

Whichever limit is reached first ends the search with the best so far: trials, steps of all trials together, wall clock,
accelerator-hours. A judge behind a network has its own (`judge.max_requests`, `max_cost`): it judges the finals alone,
so what it has left decides how much of them is judged, and never how long the search goes on.
"""

import threading
from collections.abc import Callable
from typing import Any

from sweeps.budget import WallClock
from sweeps.hours import HOURS_REASON, Hours
from sweeps.judges_spec import Endpoint
from sweeps.ledger import Ledger
from sweeps.run_dir import Attempt
from sweeps.signals import REASONS
from sweeps.spec import SweepSpec

HOURS = "accelerator_hours"


class Watch:
    """Ends the clock when the hours are spent. `look` from the pulse's thread, each second."""

    def __init__(self, attempt: Attempt, clock: WallClock, hours: Hours, limit: float | None) -> None:
        self.hours = hours
        """What trials have spent, over all attempts."""
        self._attempt = attempt
        self._clock = clock
        clock.hours = clock.hours or limit  # an edit may have raised it
        self._lock = threading.Lock()
        attempt.listeners.append(hours.take)

    def look(self, tell: Callable[[], None]) -> None:
        """`tell`: lets running trials know that the clock has moved."""
        with self._lock:
            limit = self._clock.hours
            if limit is None or self._clock.ended_by is not None or self.hours.spent < limit:
                return
            self._clock.end(HOURS, HOURS_REASON)
        tell()
        spent = round(self.hours.spent, 6)
        message = f"{spent:.3g} accelerator-hours are spent: no trial starts, running ones stop"
        self._attempt.append("budget.spent", message, {"limit": HOURS, "spent": spent, "of": limit}, level="warn")


def ended_by(ledger: Ledger, clock: WallClock) -> str:
    """The limit that ended the search: trials, total_steps, wall_clock_s, accelerator_hours; or population, where
    nobody was left to go on from."""
    reasons = {trial.outcome.reason for trial in ledger.ended.values()}
    if clock.ended_by is not None and (HOURS_REASON in reasons or not _all_asked(ledger)):
        return clock.ended_by
    if REASONS["late"] in reasons or (clock.left_s() <= 0 and not _all_asked(ledger)):
        return "wall_clock_s"
    if _all_asked(ledger):
        return "trials"
    return "population" if ledger.spec.budget.total_steps is None else "total_steps"


def budget_facts(spec: SweepSpec, ledger: Ledger, hours: float, by: str, judged: int | None) -> dict[str, Any]:
    """`budget` in result.json: the limit that ended the search, and by limit what was spent and what was allowed.

    judged: requests to a judge behind a network.
    """
    ended = list(ledger.ended.values())
    spent = {
        "trials": len(ended),
        "steps": sum(max(0, trial.outcome.step - trial.ask.start) for trial in ended),
        "accelerator_hours": round(hours, 6),
        "wall_clock_s": round(ledger.clock.spent_s, 3),
        "judge_requests": judged,
    }
    budget = ledger.study.edited.budget
    allowed = {
        "trials": ledger.study.plan.trials,
        "steps": budget.total_steps,
        "accelerator_hours": budget.accelerator_hours,
        "wall_clock_s": budget.wall_clock_s,
        "judge_requests": spec.judge.max_requests if isinstance(spec.judge, Endpoint) else None,
    }
    return {"ended_by": by, "spent": spent, "allowed": allowed}


def _all_asked(ledger: Ledger) -> bool:
    return len(ledger.study.asks) >= ledger.study.plan.trials
