"""Sweeps and runs, moved from what was wished to what is: intent rows, submission, watching, restart, cancel.

Each step is observe -> decide -> act -> record, and may be cut off anywhere: the next pass starts from the rows, the
run directory and Ray's list, and comes to the same end.
"""

import contextlib
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from service import edits, events
from service.admission import QUOTA
from service.clock import Clock
from service.cluster import JobInfo, Jobs, JobsError, driver_command, driver_env
from service.fences import fence_off, late_records
from service.ingest import note_checkpoints, take_records
from service.models import COMPARISON, EVALUATION, Attempt, Sweep
from service.pauses import Pauses
from service.quotas import Live, admission, has_news, tell_why
from service.rows import (
    end_attempt,
    explain,
    live_sweeps,
    lock_current,
    lock_sweep,
    look_again,
    move,
    open_attempt,
    unreleased_attempts,
)
from service.run_dirs import name_of, run_of
from service.settings import Settings
from service.sight import SYSTEM_ERROR, USER_ERROR, Sight, Verdict, Watch, judge, last_beat, words
from service.silence import mark_silence
from service.spent import stop_spent
from service.states import LIVE, AttemptState, State
from service.store import Store
from simpo.errors import SimPOError
from sweeps.run_dir import Record, read_journal

log = logging.getLogger(__name__)

JobList = dict[str, JobInfo] | None
_VERBS = {EVALUATION: "evaluate", COMPARISON: "compare"}
_MAX_REFUSALS = 8  # of one submission by a Ray that answers; an unreachable one is waited for without end
_IN_FLIGHT = timedelta(seconds=60)  # a submission whose answer got lost may still turn up so much later


class Supervisor:
    """One pass over everything live. Used by one thread."""

    def __init__(
        self, store: Store, jobs: Jobs, settings: Settings, clock: Clock, failpoint: Callable[[str], None]
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._settings = settings
        self._clock = clock
        self._failpoint = failpoint
        self._watch = Watch(clock)
        self._pauses = Pauses(clock)
        self._paused: frozenset[str] = frozenset()
        self._seen: tuple[frozenset[str], JobList] = (frozenset(), None)
        """What the newest step asked Ray about (submission ids), and the answer."""

    def step(self) -> bool:
        """Look at everything once. True when something ended, so that another look at once is worth it."""
        with self._store.read() as session:
            live = live_sweeps(session)
            unreleased = unreleased_attempts(session)
            unwritten, self._paused = edits.open_edits(session)
        ended = False
        jobs: JobList = {}
        if unreleased or any(attempt is not None for _, attempt in live):
            jobs = self._list()
        mark_silence(self._store, self._clock, live, answered=jobs is not None)
        self._seen = (frozenset(attempt.submission_id for _, attempt in live if attempt and attempt.submitted_at), jobs)
        for sweep, attempt in live:
            try:
                if sweep.id in unwritten and sweep.desired == "RUN" and attempt and attempt.submitted_at:
                    edits.publish(self._store, self._settings, self._clock, sweep.id, self._failpoint)
                ended |= self._step_sweep(sweep, attempt, jobs)
            except (SimPOError, OSError, KeyError, TypeError, ValueError) as error:
                # One unreadable run directory must not stop the others.
                log.exception("%s: skipped in this pass", sweep.id)
                self._explain(sweep, "RUN_DIR_UNREADABLE", f"{type(error).__name__}: {error}")
        self._admit(live)
        stop_spent(self._store, self._settings, self._clock, live)
        for attempt in unreleased:
            self._release(attempt, jobs)
        return ended

    def glance(self) -> bool:
        """Between two steps: take what drivers have written since. No call to Ray. True when something ended."""
        known, jobs = self._seen
        grown = known.intersection(self._watch.grown())
        if not grown:
            return False
        with self._store.read() as session:
            live = live_sweeps(session, grown)
        ended = False
        for sweep, attempt in live:
            if attempt is None or sweep.desired != "RUN":
                continue
            with contextlib.suppress(SimPOError, OSError, KeyError, TypeError, ValueError):  # the next step tells
                ended |= self._look(sweep, attempt, jobs)
        return ended

    def _list(self) -> JobList:
        try:
            return self._jobs.list()
        except JobsError as error:
            log.warning("%s", error)
            return None

    def _step_sweep(self, sweep: Sweep, attempt: Attempt | None, jobs: JobList) -> bool:
        if sweep.desired == "CANCEL":
            return self._cancel(sweep, attempt, jobs)
        if attempt is None:
            return False
        if attempt.submitted_at is None:
            return self._submit(sweep, attempt, jobs)
        return self._look(sweep, attempt, jobs)

    def _explain(self, sweep: Sweep, reason: str, message: str) -> None:
        if (sweep.reason, sweep.message) == (reason, message):
            return
        with self._store.write() as session:
            row = lock_sweep(session, sweep.id)
            if row is not None and row.state in LIVE:
                explain(row, reason, message)

    # -- admission and submission

    def _admit(self, live: Live) -> None:
        """Open the attempts of those whose turn it is, and tell the others what they wait for."""
        with self._store.read() as session:
            decision = admission(session, self._settings, live, self._clock.now())
        waiting = {sweep.id: sweep for sweep, _ in live}
        for sweep in [waiting[sweep_id] for sweep_id in decision.admitted]:
            self._failpoint("before_intent")
            with self._store.write() as session:
                row = lock_sweep(session, sweep.id)
                if row is None or row.state != State.PENDING or row.desired != "RUN" or row.attempt != sweep.attempt:
                    continue
                attempt = open_attempt(session, row, self._clock.now())
                explain(row, "SUBMITTING", "Is handed to Ray.")
            self._failpoint("after_intent")
            self._submit(row, attempt, {})
        if has_news(live, decision):
            with self._store.write() as session:
                tell_why(session, live, decision)

    def _submit(self, sweep: Sweep, attempt: Attempt, jobs: JobList) -> bool:
        """Submit under the attempt's fixed id, or find that it was. Any answer but a clear yes is asked about."""
        name = attempt.submission_id
        if not self._pauses.over(name):
            return False
        refusal: JobsError | None = None
        try:
            adopted = name in (jobs or {})
            if not adopted:
                self._write_spec(sweep)
                self._failpoint("after_spec")
                refusal, adopted = self._try_submit(name, sweep, attempt)
        except JobsError as error:
            return self._not_submitted(sweep, attempt, "RAY_UNREACHABLE", str(error))
        except (SimPOError, OSError) as error:
            return self._not_submitted(sweep, attempt, "STORE_UNWRITABLE", str(error))
        if refusal is not None:
            return self._not_submitted(sweep, attempt, "SUBMIT_REFUSED", str(refusal))
        self._failpoint("after_submit")
        self._pauses.clear(name)
        with self._store.write() as session:
            current = lock_current(session, sweep.id, attempt.n)
            if current is None:
                look_again(session, sweep.id, attempt.n)
            elif current[1].submitted_at is None:
                row, fresh = current
                fresh.state, fresh.submitted_at = AttemptState.SUBMITTED, self._clock.now()
                explain(row, "STARTING", "Ray starts the driver.")
                said = {"attempt": attempt.n, "submission_id": name, "adopted": adopted}
                text = f"Attempt {attempt.n} is with Ray."
                events.append(session, row, "job.submitted", text, said, now=fresh.submitted_at)
        self._failpoint("after_record")
        return False

    def _try_submit(self, name: str, sweep: Sweep, attempt: Attempt) -> tuple[JobsError | None, bool]:
        """(the refusal, if Ray certainly has not the job; whether it had it already, perhaps of a lost answer).

        Raises JobsError when nobody can tell.
        """
        settings = self._settings
        verb = _VERBS.get(sweep.kind, "run")
        where, public = name_of(settings, sweep.id), settings.public_judges
        command = driver_command(settings.driver_python, where, attempt.n, verb=verb, public_judge=public)
        try:
            self._jobs.submit(name, command, driver_env(settings.driver_stop_s))
        except JobsError as error:
            log.warning("%s: submit unclear: %s", name, error)
            return (None, True) if self._jobs.get(name) is not None else (error, False)
        return None, False

    def _write_spec(self, sweep: Sweep) -> None:
        with self._store.read() as session:
            plan = session.get_one(Sweep, sweep.id).plan
        run = run_of(self._settings, sweep.id)
        run.refresh()
        run.write_spec(plan)

    def _not_submitted(self, sweep: Sweep, attempt: Attempt, reason: str, message: str) -> bool:
        self._pauses.longer(attempt.submission_id)
        with self._store.write() as session:
            current = lock_current(session, sweep.id, attempt.n)
            if current is None:
                return False
            row, fresh = current
            fresh.submit_failures += reason == "SUBMIT_REFUSED"
            explain(row, reason, message)
            if fresh.submit_failures < _MAX_REFUSALS:
                return False
            end_attempt(session, fresh, AttemptState.FAILED, message, self._clock.now())
            self._fail(session, row, {"class": SYSTEM_ERROR, "code": "submit_refused", "message": message})
            return True

    # -- watching

    def _look(self, sweep: Sweep, attempt: Attempt, jobs: JobList) -> bool:
        name = attempt.submission_id
        directory = self._watch.directory(name, lambda: run_of(self._settings, sweep.id), attempt.n)
        sight = self._watch.look(
            name, directory, after_seq=attempt.journal_seq, spec_hash=sweep.spec_hash, jobs=jobs
        )
        stale_s = self._settings.heartbeat_stale_s
        verdict = judge(sight, stale_s=stale_s, hung_s=self._settings.heartbeat_hung_s)
        if verdict == Verdict.HUNG:
            self._stop(attempt.submission_id)
        begins = sweep.state == State.PENDING and sight.started
        paused = sweep.id in self._paused
        same = (sweep.reason, sweep.message) == words(sight, sweep.phase, stale_s=stale_s, paused=paused)
        if verdict in (Verdict.WAIT, Verdict.HUNG) and not sight.records and not begins and same:
            return False
        late = late_records(self._store, directory.run, attempt, sight.records)
        log_tail = self._log_tail(attempt) if verdict in (Verdict.FAILED, Verdict.LOST) else ""
        self._failpoint("before_ingest")
        with self._store.write() as session:
            current = lock_current(session, sweep.id, attempt.n)
            if current is None:
                return False
            row, fresh = current
            now = self._clock.now()
            for before, records in late:
                take_records(session, row, session.get_one(Attempt, (sweep.id, before)), records, now)
            take_records(session, row, fresh, sight.records, now)
            if row.state == State.PENDING and sight.started:
                move(session, row, State.RUNNING, "RUNNING", "Runs.", now)
            if row.desired == "CANCEL":
                return False  # cancel is final: it wins over a result that came at the same moment
            if verdict == Verdict.SUCCEEDED:
                self._succeed(session, row, fresh, sight)
            elif verdict in (Verdict.FAILED, Verdict.LOST):
                self._restart_or_fail(session, row, fresh, sight, log_tail)
            else:
                paused = edits.is_paused(session, row.id)
                explain(row, *words(sight, row.phase, stale_s=stale_s, paused=paused))
        self._failpoint("after_ingest")
        return sight.more or verdict not in (Verdict.WAIT, Verdict.HUNG)

    def _succeed(self, session: Session, row: Sweep, attempt: Attempt, sight: Sight) -> None:
        now = self._clock.now()
        assert sight.result is not None
        row.result, row.best = sight.result, sight.result.get("best") or row.best
        row.phase, row.progress = "done", 1.0
        note_checkpoints(session, row.id, sight.result)
        end_attempt(session, attempt, AttemptState.SUCCEEDED, "", now, sight.beat_at)
        move(session, row, State.SUCCEEDED, "DONE", "Succeeded.", now)
        events.append(session, row, "job.succeeded", "Succeeded.", {"best": row.best}, now=now, attempt=attempt.n)
        self._watch.forget(attempt.submission_id)

    def _restart_or_fail(self, session: Session, row: Sweep, attempt: Attempt, sight: Sight, log_tail: str) -> None:
        now = self._clock.now()
        failure = sight.failure or {"class": SYSTEM_ERROR, "message": _lost_because(sight)}
        state = AttemptState.FAILED if sight.failure else AttemptState.LOST
        end_attempt(session, attempt, state, failure["message"], now, sight.beat_at)
        self._watch.forget(attempt.submission_id)
        if sight.failure is None:
            facts = {"attempt": attempt.n, "log_tail": log_tail}
            events.append(session, row, "attempt.lost", failure["message"], facts, now=now, level="warn")
        if failure["class"] != USER_ERROR and attempt.n < self._settings.max_attempts:
            following = open_attempt(session, row, now)
            text = f"Attempt {following.n} resumes, because attempt {attempt.n} ended: {failure['message']}"
            explain(row, "RESTARTING", text)
            facts = {"attempt": following.n, "after": failure["message"]}
            events.append(session, row, "job.restarted", text, facts, now=now, level="warn")
            return
        code = "driver_failed" if sight.failure else "driver_lost"
        self._fail(session, row, {**failure, "code": code, "log_tail": log_tail})

    def _fail(self, session: Session, row: Sweep, error: dict[str, Any]) -> None:
        now = self._clock.now()
        row.error = error
        move(session, row, State.FAILED, error["class"], error["message"], now)
        events.append(session, row, "job.failed", error["message"], error, now=now, level="error")

    # -- cancelling and letting go

    def _cancel(self, sweep: Sweep, attempt: Attempt | None, jobs: JobList) -> bool:
        if attempt is None:
            return self._cancelled(sweep, None, [])
        if sweep.state != State.CANCELLING:
            with self._store.write() as session:
                current = lock_current(session, sweep.id, attempt.n)
                if current is None or current[0].state == State.CANCELLING:
                    return False
                row, now = current[0], self._clock.now()
                move(session, row, State.CANCELLING, "STOPPING", "The driver is being stopped.", now)
                events.append(session, row, "job.cancelling", "The driver is being stopped.", now=now)
            self._failpoint("mid_cancel")
        if jobs is None:
            self._explain(sweep, "RAY_UNREACHABLE", "Ray does not answer; the driver is stopped when it does.")
            return False
        job = jobs.get(attempt.submission_id)
        if job is not None and not job.terminal:
            self._stop(attempt.submission_id)
            return False
        directory = run_of(self._settings, sweep.id).attempt(attempt.n)
        directory.run.place.refresh_attempt(attempt.n)
        return self._cancelled(sweep, attempt, read_journal(directory, attempt.journal_seq), last_beat(directory))

    def _cancelled(
        self, sweep: Sweep, attempt: Attempt | None, records: list[Record], last: datetime | None = None
    ) -> bool:
        with self._store.write() as session:
            row = lock_sweep(session, sweep.id)
            if row is None or row.state not in LIVE or row.attempt != sweep.attempt:
                return False
            now = self._clock.now()
            if attempt is not None:
                current = lock_current(session, sweep.id, attempt.n)
                if current is None:
                    return False
                take_records(session, row, current[1], records, now)
                end_attempt(session, current[1], AttemptState.CANCELLED, "", now, last)
                self._watch.forget(attempt.submission_id)
            why, text = (QUOTA, str(row.error["message"])) if row.error else ("CANCELLED", "Cancelled.")
            move(session, row, State.CANCELLED, why, text, now)
            events.append(session, row, "job.cancelled", text, now=now)
        return True

    def _release(self, attempt: Attempt, jobs: JobList) -> None:
        """See to it that Ray does not go on with what no longer counts."""
        assert attempt.ended_at is not None
        if jobs is None:
            return
        job = jobs.get(attempt.submission_id)
        waited = self._clock.now() - attempt.ended_at > _IN_FLIGHT
        if job is not None and not job.terminal:
            # A driver that published its result leaves by itself.
            if waited or attempt.state != AttemptState.SUCCEEDED:
                self._stop(attempt.submission_id)
            return
        if job is None and attempt.submitted_at is None and not waited:
            return
        self._pauses.clear(f"stop {attempt.submission_id}")
        if attempt.state in (AttemptState.LOST, AttemptState.CANCELLED) and (job is None or job.status == "FAILED"):
            # Ray has lost it, so nobody has stopped it.
            fence_off(self._store, self._settings, attempt)
        with self._store.write() as session:
            session.get_one(Attempt, (attempt.sweep_id, attempt.n)).released_at = self._clock.now()

    def _stop(self, submission_id: str) -> None:
        key = f"stop {submission_id}"
        if not self._pauses.over(key):
            return
        self._pauses.longer(key)
        try:
            self._jobs.stop(submission_id)
        except JobsError as error:
            log.warning("%s: stop: %s", submission_id, error)

    def _log_tail(self, attempt: Attempt) -> str:
        try:
            return self._jobs.logs(attempt.submission_id)
        except JobsError:
            return ""


def _lost_because(sight: Sight) -> str:
    if sight.job is None:
        return "Ray no longer knows the job, and the driver's heartbeat stopped."
    said = f" ({sight.job.message.strip().splitlines()[-1][:300]})" if sight.job.message.strip() else ""
    return f"Ray ended the job as {sight.job.status}{said} without a result, and the driver's heartbeat stopped."
