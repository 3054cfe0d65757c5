"""What is seen of one attempt in one look, and what that means. No database, no network: a pure decision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from service.clock import Clock
from service.cluster import JobInfo
from sweeps.run_dir import Attempt as AttemptDir
from sweeps.run_dir import Heartbeat, Record, RunDir, read_heartbeat, read_journal, read_result

USER_ERROR = "USER_ERROR"
SYSTEM_ERROR = "SYSTEM_ERROR"
CLOSING = "job.finished"
"""The record that a driver writes after its result."""
MOST_RECORDS = 1000
"""Of one look, so that a driver that wrote for hours while nobody read holds up nobody else."""
_CLOSING_S = 5.0
_COARSE_S = 2.0  # FAT's clock, the coarsest, counts so many seconds
_BELIEVED_S = 30.0

_PHASES = {
    "preparing": "Prepares the data and the base model.",
    "searching": "Searches.",
    "finals": "Judges the finalists.",
    "comparing": "Tunes one method after another.",
    "evaluating": "Answers the held-out prompts and judges them.",
    "done": "Publishes the result.",
}

_AFTER_SEARCH = ("finals", "done")


class Verdict(StrEnum):
    """What an attempt is, by the driver's own records first and by Ray's word last."""

    WAIT = "WAIT"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    """The driver said so."""
    LOST = "LOST"
    """Ray does not run it and its heart stands still."""
    HUNG = "HUNG"
    """Ray says it runs, but its heart has long stood still."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One look at an attempt."""

    records: Sequence[Record]
    """Journal records that are not in the tables yet: at most MOST_RECORDS."""
    more: bool
    """There are further ones: first comes what the driver wrote, then what follows from it."""
    started: bool
    """The driver has left some sign of life."""
    quiet_s: float
    """Seconds since this reader saw the heartbeat change, or since it began to look."""
    result: dict[str, Any] | None
    """result.json of this very attempt and spec."""
    last_word: bool
    """The driver has nothing more to say after its result: its closing record is here, or time enough passed."""
    failure: dict[str, Any] | None
    """{class, message} by the driver, or of a result that is not this sweep's."""
    beat_at: datetime | None
    """The driver's last sign of life, by its own clock."""
    ray_answers: bool
    job: JobInfo | None
    """What Ray says; None: it knows no such job, or does not answer."""

    @property
    def gone(self) -> bool:
        """Ray says that nothing runs. A hint: an orphan may live on."""
        return self.ray_answers and (self.job is None or self.job.terminal)

    @property
    def finished(self) -> bool:
        """Ray saw the driver end by itself. A head that forgot it, or calls it failed, may speak of an orphan."""
        return self.job is not None and self.job.status == "SUCCEEDED"


class Watch:
    """Looks at attempts and remembers when their hearts were last seen to beat, by this process's monotonic clock.

    After a restart the memory is empty and every heart gets its full time again: late is safe, early is not.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._beats: dict[str, tuple[int, float]] = {}
        self._results: dict[str, float] = {}
        self._journals: dict[str, _Journal] = {}
        self._directories: dict[str, AttemptDir] = {}

    def directory(self, submission_id: str, run: Callable[[], RunDir], attempt: int) -> AttemptDir:
        """The attempt's part of the run directory; made once, for making a path costs more than to look there."""
        known = self._directories.get(submission_id)
        if known is None:
            known = self._directories[submission_id] = run().attempt(attempt)
        return known

    def grown(self) -> list[str]:
        """Submission ids of those whose journals have changed since their last look."""
        return [name for name, journal in self._journals.items() if _changed_at(journal.path) != journal.seen[0]]

    def look(
        self,
        submission_id: str,
        directory: AttemptDir,
        *,
        after_seq: int,
        spec_hash: str,
        jobs: dict[str, JobInfo] | None,
    ) -> Sight:
        """Read the run directory. `jobs`: Ray's list, None when it does not answer. Raises StorageError."""
        directory.run.place.refresh_attempt(directory.number)
        # The result is read before the journal: what the driver wrote before it published is then seen with it.
        result = read_result(directory)
        beat = read_heartbeat(directory)
        records = self._records(submission_id, directory, after_seq)
        more, records = len(records) > MOST_RECORDS, records[:MOST_RECORDS]
        counter = beat["counter"] if beat else 0
        now = self._clock.monotonic()
        seen, since = self._beats.get(submission_id, (-1, now))
        job = (jobs or {}).get(submission_id)
        # A job without a place has no driver whose silence could mean something, also one whose place was taken back.
        if counter != seen or (job is not None and job.status == "PENDING"):
            since = now
            self._beats[submission_id] = (counter, since)
        failure = next((_failure(record) for record in records if record["type"] == "job.failed"), None)
        if result is not None and (result.get("attempt"), result.get("spec_hash")) != (directory.number, spec_hash):
            failure = {"class": SYSTEM_ERROR, "message": "result.json belongs to another sweep or attempt."}
            result = None
        closing = any(record["type"] == CLOSING for record in records)
        published = now if result is None else self._results.setdefault(submission_id, now)
        return Sight(
            records=records,
            more=more,
            started=beat is not None or bool(records) or after_seq > 0 or result is not None,
            quiet_s=now - since,
            result=result,
            last_word=closing or now - published >= _CLOSING_S,
            failure=failure,
            beat_at=_beat_at(beat),
            ray_answers=jobs is not None,
            job=job,
        )

    def forget(self, submission_id: str) -> None:
        """An attempt that ended needs no memory."""
        self._beats.pop(submission_id, None)
        self._results.pop(submission_id, None)
        self._journals.pop(submission_id, None)
        self._directories.pop(submission_id, None)

    def _records(self, submission_id: str, directory: AttemptDir, after_seq: int) -> Sequence[Record]:
        """The journal's new records. It is not listed again while its directory's time says that nothing was added.

        Such times are as coarse as the file system's clock, so one is believed when a look well after it was first
        seen found nothing more, and for no longer than a while.
        """
        now = self._clock.monotonic()
        known = self._journals.get(submission_id)
        path = directory.path / "journal" if known is None else known.path
        seen = (_changed_at(path), after_seq)
        if known is None or known.seen != seen:
            known = self._journals[submission_id] = _Journal(path=path, seen=seen, since=now)
        elif known.believed_at is not None and now - known.believed_at < _BELIEVED_S:
            return ()
        records = read_journal(directory, after_seq, MOST_RECORDS + 1)
        known.believed_at = now if not records and now - known.since >= _COARSE_S else None
        return records


@dataclass(kw_only=True)
class _Journal:
    """What a look at a journal found."""

    path: Path
    """Its directory."""
    seen: tuple[int, int]
    """(time of the directory in ns, newest record in the tables)"""
    since: float
    """When that was first seen, by our clock."""
    believed_at: float | None = None
    """When there was certainly nothing more; None: look again."""


def judge(sight: Sight, *, stale_s: float, hung_s: float) -> Verdict:
    """The driver's word counts; Ray's word counts only together with a heart that stood still for `stale_s`."""
    if sight.more and sight.failure is None:
        return Verdict.WAIT
    if sight.result is not None:
        # The result is the success; its closing records come a moment later, and belong to the history.
        return Verdict.SUCCEEDED if sight.last_word or sight.finished else Verdict.WAIT
    if sight.failure is not None:
        return Verdict.FAILED
    if sight.gone and sight.quiet_s >= stale_s:
        return Verdict.LOST
    if sight.job is not None and not sight.job.terminal and sight.started and sight.quiet_s >= hung_s:
        return Verdict.HUNG
    return Verdict.WAIT


def last_beat(directory: AttemptDir) -> datetime | None:
    """The last sign of life of an attempt, by its driver's clock."""
    return _beat_at(read_heartbeat(directory))


def words(sight: Sight, phase: str | None, *, stale_s: float, paused: bool = False) -> tuple[str, str]:
    """(reason, message) of an attempt that goes on. `paused`: by the newest edit that its driver has answered."""
    if not sight.ray_answers:
        return "RAY_UNREACHABLE", "Ray does not answer; what the driver writes is still read."
    if sight.gone:
        status = sight.job.status if sight.job else "nothing of it"
        return "DRIVER_GONE", f"Ray says {status}; lost if its heartbeat stands still for {stale_s:g} s."
    if sight.job is not None and sight.job.queued:
        return "QUEUED", sight.job.message
    if not sight.started:
        said = sight.job.message.strip() if sight.job is not None and sight.job.status == "PENDING" else ""
        return "STARTING", said.splitlines()[-1][:300] if said else "Ray starts the driver."
    if paused and phase not in _AFTER_SEARCH:
        return "PAUSED", "No further trial starts and running ones hold, until somebody resumes it."
    return (phase or "running").upper(), _PHASES.get(phase or "", "Runs.")


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _failure(record: Record) -> dict[str, Any]:
    data = record["data"]
    return {"class": data.get("class") or SYSTEM_ERROR, "message": data.get("message") or record["message"]}


def _beat_at(beat: Heartbeat | None) -> datetime | None:
    return None if beat is None else datetime.fromisoformat(beat["at"])
