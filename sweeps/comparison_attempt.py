"""A comparison as a job that somebody watches: one claimed attempt, a journal, a heartbeat, a result published last.

The sweeps of its methods keep their own attempts and journals below; this one says how far the whole has come. Given
up and started again under the next number, it goes on where the methods stood. A driver that was taken over hears it
from its pulse, as a sweep's does.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sweeps.comparison import run_comparison
from sweeps.comparison_hash import comparison_hash
from sweeps.comparison_report import write_comparison
from sweeps.comparison_spec import parse_comparison
from sweeps.hours import Hours
from sweeps.judges import JudgeAccess
from sweeps.pulse import Pulse
from sweeps.run_dir import Attempt, Record, RunDir, read_journal
from sweeps.stopping import ending_told, stoppable

SPENT = "method.spent"
"""The record of what a method took, of this attempt and of those that could not say it any more."""
_TOLD = frozenset({"job.finished", "best.updated", "reference.warning"})
"""What of a method's own journal stands in the comparison's too."""


def run_comparison_attempt(
    root: Path,
    *,
    number: int,
    ray_address: str | None = None,
    listeners: Sequence[Callable[[Record], None]] = (),
    build_threads: int = 1,
    access: JudgeAccess | None = None,
) -> dict[str, Any]:
    """Run one attempt of the comparison in `root`; returns its result, which holds comparison.json.

    Raises AttemptClaimed, SimPOError (the user's to mend), Stopped (a signal, or a higher claim).
    """
    run = RunDir(root)
    values = run.read_spec()
    spec = parse_comparison(values, source=str(run.spec_path))
    mark = comparison_hash(values)
    attempt = run.claim(number)
    attempt.listeners.extend(listeners)
    methods = [contender.name for contender in spec.methods]
    started = {"spec_hash": mark, "name": spec.name, "methods": methods}
    attempt.append("job.started", f"attempt {attempt.number} of {spec.name} starts", started)
    with stoppable(at_once=False) as stop, Pulse(attempt, stop.superseded) as pulse, ending_told(attempt, stop):
        story = Story(attempt, methods, spec.parallel.workers_per_trial)
        try:
            compared = run_comparison(
                root,
                ray_address=ray_address,
                listener=story.take,
                preparing=story.preparing,
                build_threads=build_threads,
                access=access,
            )
        finally:
            story.tell_hours()
        write_comparison(compared, spec.model_dump(mode="json"), root)
        result = {
            "attempt": attempt.number,
            "spec_hash": mark,
            "state": "SUCCEEDED",
            "comparison": compared,
            "peak_memory_bytes": pulse.peak_memory_bytes,
        }
        attempt.publish_result(result)
        attempt.append("job.finished", f"{len(methods)} methods compared", {"methods": methods})
    return result


class Story:
    """How far the methods have come, told in the comparison's journal."""

    def __init__(self, attempt: Attempt, methods: Sequence[str], workers: int) -> None:
        self._attempt = attempt
        self._methods = list(methods)
        self._workers = workers
        self._at = ""
        self._told = -1.0
        self._hours: Hours | None = None
        self._told_hours = _hours_told(attempt)

    def preparing(self, share: float, message: str) -> None:
        """What all methods share is made."""
        if share - self._told >= 0.1 or share >= 1.0:
            self._told = share
            data = {"phase": "preparing", "progress": round(share, 3)}
            self._attempt.append("job.phase", message or "preparing", data)

    def take(self, method: str, record: Record) -> None:
        """One record of a method's own journal."""
        if method != self._at:
            self.tell_hours()
            self._at = method
            sweep = RunDir(self._attempt.run.root / "sweeps" / method).attempt(record["attempt"])
            self._hours = Hours.of(sweep, self._workers)
            place = self._methods.index(method)
            data = {"phase": "comparing", "progress": round(place / len(self._methods), 3), "method": method}
            self._attempt.append("job.phase", f"{method}: method {place + 1} of {len(self._methods)}", data)
        if self._hours is not None:
            self._hours.take(record)
        if record["type"] in _TOLD:
            kind = "method.finished" if record["type"] == "job.finished" else f"method.{record['type']}"
            self._attempt.append(kind, f"{method}: {record['message']}", {"method": method, **record["data"]})

    def tell_hours(self) -> None:
        """Say what the method at work has taken, less what earlier attempts have said of it."""
        if self._hours is None:
            return
        spent = self._hours.spent - self._told_hours.get(self._at, 0.0)
        data = {"method": self._at, "accelerator_hours": round(max(0.0, spent), 6)}
        self._hours = None
        self._attempt.append(SPENT, f"{self._at}: {data['accelerator_hours']:.3g} accelerator-hours", data)


def _hours_told(attempt: Attempt) -> dict[str, float]:
    """Accelerator-hours by method, as the attempts before this one have told them."""
    told: dict[str, float] = {}
    for earlier in attempt.run.attempts():
        if earlier.number < attempt.number:
            for record in read_journal(earlier):
                if record["type"] == SPENT:
                    method = record["data"]["method"]
                    told[method] = told.get(method, 0.0) + record["data"]["accelerator_hours"]
    return told
