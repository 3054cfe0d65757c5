"""Accelerator-hours: how long trials have held their slots, over all attempts of a sweep. Light.

An hour is an hour of one training process: the time from a trial's start to its end, as the journal has both, times its
workers. Where there is no accelerator these are hours of CPU processes. Retrainings of finalists count, and so does
what a pause lets lie idle, for the processes are held; preparing and finals do not, for they run in the driver. What a
dead attempt had running is counted until its last heartbeat.

Everything is read from journal records, this attempt's as they are written: so a resumed attempt counts what its
predecessors spent, and counts it as they did.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sweeps.run_dir import Attempt, Record, read_heartbeat, read_journal

HOURS_REASON = "the accelerator-hours budget was spent"
"""How a trial says that they have stopped it."""

BEGINS = ("trial.created", "replicate.created")
ENDS = tuple(
    f"{kind}.{how}" for kind in ("trial", "replicate") for how in ("completed", "pruned", "infeasible", "failed")
)
"""Records that take a slot, and those that leave it."""

Slot = tuple[str, int]
"""A trial, and the number of its retraining: 0 for none."""


def slot_of(data: dict[str, Any]) -> Slot:
    """Whose slot a record of these speaks of."""
    return str(data["trial_id"]), int(data.get("replicate") or 0)


class Hours:
    """A running sum. `take` is a listener of the attempt's journal; `spent` may be asked from any thread."""

    def __init__(self, workers: int, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._workers = workers
        self._now = now
        self._closed_s = 0.0
        self._open: dict[Slot, datetime] = {}

    @classmethod
    def of(cls, attempt: Attempt, workers: int) -> "Hours":
        """With all that the attempts before this one have spent."""
        hours = cls(workers)
        for earlier in attempt.run.attempts():
            if earlier.number < attempt.number:
                for record in read_journal(earlier):
                    hours.take(record)
                beat = read_heartbeat(earlier)
                hours.close(None if beat is None else _moment(beat["at"]))
        return hours

    def take(self, record: Record) -> None:
        """One record of a journal, in its order."""
        kind = record["type"]
        if kind in BEGINS:
            self._open[slot_of(record["data"])] = _moment(record["at"])
        elif kind in ENDS:
            self._end(slot_of(record["data"]), _moment(record["at"]))

    def close(self, last: datetime | None) -> None:
        """The attempt is over: nothing of it holds a slot after this moment."""
        for slot in list(self._open):
            self._end(slot, last or self._open[slot])

    @property
    def spent(self) -> float:
        """Hours until now."""
        now = self._now()
        running = sum(max(0.0, (now - began).total_seconds()) for began in list(self._open.values()))
        return (self._closed_s + running) * self._workers / 3600

    def _end(self, slot: Slot, moment: datetime) -> None:
        began = self._open.pop(slot, moment)
        self._closed_s += max(0.0, (moment - began).total_seconds())


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
