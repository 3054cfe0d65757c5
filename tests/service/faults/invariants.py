"""What must hold after every fault, whatever it was: one checker over database, run directories, Ray, clients and logs.

    I1  every acknowledged POST has exactly one row         I7  a succeeded sweep has the winner of an undisturbed one
    I2  same Idempotency-Key: same id, same body            I8  each attempt has one job at most, no job is without one
    I3  only legal moves; what is over stays over           I9  who watches hears every event once, the end included
    I4  one open attempt of a sweep at most                 I11 (`World.settle`) all is over soon after the fault
    I5  the tables hold what counts of the journals, once   I12 no secret stands in a log
    I6  no more trials than the budget has                  I10 each change that somebody made stands in the audit once

I7 and the order within a run directory are checked by `tests.sweeps.faults.invariants`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from service.ids import submission_id
from service.models import Attempt, Event, Sweep, Trial
from service.models_people import AuditEntry
from service.states import MOVES, TRIAL_OVER
from sweeps.recorded import ENDINGS
from tests.service.faults.history import Call
from tests.service.faults.world import World, lives
from tests.sweeps.faults.invariants import violations as violations_in

_ENDED = {"job.succeeded": "SUCCEEDED", "job.failed": "FAILED", "job.cancelled": "CANCELLED"}
_RENAMED = {"job.failed": "attempt.failed"}


@dataclass(kw_only=True)
class Facts:
    """Everything that the checker looks at."""

    calls: Sequence[Call]
    posts: dict[str, list[Call]]
    sweeps: dict[str, Sweep]
    attempts: Sequence[Attempt]
    trials: Sequence[Trial]
    events: dict[str, list[Event]]
    watched: dict[str, list[str]]
    """Sweep -> ids of the events that somebody heard."""
    created: Sequence[str]
    """Ids of jobs in the order in which Ray made them."""
    jobs: dict[str, str]
    """Id -> status, as Ray says now."""
    starts: Sequence[dict[str, Any]]
    """Drivers that began: run, attempt, pid."""
    audit: Sequence[AuditEntry]
    run_dirs: Path
    logs: dict[str, str]
    secrets: Sequence[str]


def check(world: World, *, like: Path | None = None, heads: int = 1, clocks: bool = True) -> None:
    """Raise AssertionError with every violation.

    `like`: run directory of an undisturbed sweep. `heads`: how many heads Ray had, each without memory: what the first
    one had taken may have been given to the next one too. `clocks`: whether wall clocks could be believed.
    """
    found = list(violations(gather(world), like=like, heads=heads, clocks=clocks))
    assert not found, "\n".join(found)


def gather(world: World) -> Facts:
    """The facts of now."""
    with world.store.read() as session:
        events: dict[str, list[Event]] = {}
        for event in session.scalars(select(Event).order_by(Event.parent_id, Event.seq)):
            events.setdefault(event.parent_id, []).append(event)
        return Facts(
            calls=world.history.calls,
            posts=world.history.posts(),
            sweeps={sweep.id: sweep for sweep in session.scalars(select(Sweep))},
            attempts=session.scalars(select(Attempt).order_by(Attempt.sweep_id, Attempt.n)).all(),
            trials=session.scalars(select(Trial)).all(),
            events=events,
            watched=world.history.watched,
            created=world.ray.created(),
            jobs=world.ray.jobs(),
            starts=world.starts(),
            audit=session.scalars(select(AuditEntry)).all(),
            run_dirs=world.settings.store / "sweeps",
            logs=world.logs(),
            secrets=[world.history.api_key, world.ray.token],
        )


def violations(facts: Facts, *, like: Path | None = None, heads: int = 1, clocks: bool = True) -> Iterator[str]:
    """Every sentence that is not true."""
    yield from _acknowledged(facts)
    yield from _observed(facts)
    for sweep in facts.sweeps.values():
        attempts = [attempt for attempt in facts.attempts if attempt.sweep_id == sweep.id]
        events = facts.events.get(sweep.id, [])
        yield from _life(sweep, attempts, events)
        yield from _journals(facts, sweep, attempts, events)
        yield from _run_dir(facts, sweep, like, clocks)
    yield from _jobs(facts, heads)
    yield from _heard(facts)
    yield from _noted(facts)
    yield from _kept_secret(facts)


def _acknowledged(facts: Facts) -> Iterator[str]:
    """I1, I2; and an acknowledged cancel is final."""
    asked: dict[str, set[str | None]] = {}
    for call in facts.calls:
        if call.method == "POST" and call.path == "/v1/sweeps" and call.body is not None:
            asked.setdefault(call.body["name"], set()).add(call.key)
    rows = Counter(sweep.name for sweep in facts.sweeps.values())
    for name, number in rows.items():
        if number > len(asked.get(name, ())):
            yield f"I1: {number} sweeps are called {name}, {len(asked.get(name, ()))} were asked for"
    for key, calls in facts.posts.items():
        if len({json.dumps(call.answer, sort_keys=True) for call in calls}) > 1:
            yield f"I2: {key} was answered in different ways: {[call.answer for call in calls]}"
        for call in calls:
            if call.path == "/v1/sweeps" and call.answer["id"] not in facts.sweeps:
                yield f"I1: {call.answer['id']} was acknowledged and is not there"
            cancelled = facts.sweeps.get(call.path.split("/")[3]) if call.path.endswith("/cancel") else None
            if cancelled is not None and cancelled.state not in _CANCELLED:
                yield f"{call.path} was acknowledged, and ended as {cancelled.state}"


_CANCELLED = ("CANCELLING", "CANCELLED")


def _observed(facts: Facts) -> Iterator[str]:
    """I3 as clients saw it: each state can be reached from the one seen before."""
    seen: dict[str, str] = {}
    for call in facts.calls:
        if call.method != "GET" or call.answer.get("object") != "sweep":
            continue
        before, now = seen.get(call.answer["id"]), call.answer["state"]
        if before is not None and now not in _reachable(before):
            yield f"I3: {call.answer['id']} was seen {before}, then {now}"
        seen[call.answer["id"]] = now


def _reachable(state: str) -> set[str]:
    found, border = {state}, {state}
    while border := {str(following) for one in border for following in MOVES[one]} - found:
        found |= border
    return found


def _life(sweep: Sweep, attempts: Sequence[Attempt], events: Sequence[Event]) -> Iterator[str]:
    """I3, I4."""
    if [event.seq for event in events] != list(range(1, sweep.event_seq + 1)):
        yield f"{sweep.id}: events are not 1 to {sweep.event_seq}: {[event.seq for event in events]}"
    endings = [event.type for event in events if event.type in _ENDED]
    if endings != [kind for kind, state in _ENDED.items() if state == sweep.state]:
        yield f"I3: {sweep.id} is {sweep.state}, its history says {endings}"
    if endings and events[-1].type != endings[-1]:
        yield f"I3: {sweep.id} goes on after its end: {[event.type for event in events[-5:]]}"
    if sum(attempt.ended_at is None for attempt in attempts) > 1:
        yield f"I4: {sweep.id} has several open attempts"
    if [attempt.n for attempt in attempts] != list(range(1, sweep.attempt + 1)):
        yield f"I4: {sweep.id} has attempts {[attempt.n for attempt in attempts]}, its fence is {sweep.attempt}"
    if sweep.ended_at is not None and any(attempt.ended_at is None for attempt in attempts):
        yield f"I4: {sweep.id} is over, an attempt is not"
    won = [attempt.n for attempt in attempts if attempt.state == "SUCCEEDED"]
    if won != ([sweep.attempt] if sweep.state == "SUCCEEDED" else []):
        yield f"I5: {sweep.id} is {sweep.state}, attempts {won} succeeded"


def _journals(facts: Facts, sweep: Sweep, attempts: Sequence[Attempt], events: Sequence[Event]) -> Iterator[str]:
    """I5, I6: the tables hold of each journal its beginning, once, and of the last one all; trials are what counts."""
    ends: dict[str, tuple[int, Any, Any]] = {}
    fences: dict[int, int] = {}
    journals = {attempt.n: _journal(facts.run_dirs / sweep.id / "attempts" / str(attempt.n)) for attempt in attempts}
    for records in journals.values():
        for record in records:
            if record["type"] == "job.resumed":
                fences |= {int(n): seq for n, seq in record["data"]["read"].items()}
    for n, records in journals.items():
        told = [event for event in events if event.attempt == n and event.journal_seq is not None]
        if [event.journal_seq for event in told] != list(range(1, len(told) + 1)):
            yield f"I5: {sweep.id}, attempt {n}: {[event.journal_seq for event in told]} of its journal are told"
        if sweep.state == "SUCCEEDED" and n == sweep.attempt and len(told) != len(records):
            yield f"I5: {sweep.id}: {len(told)} of {len(records)} records of the last attempt are told"
        for event, record in zip(told, records, strict=False):
            if (event.type, event.data) != (_RENAMED.get(record["type"], record["type"]), record["data"]):
                yield f"I5: {sweep.id}, attempt {n}, record {record['seq']}: told as {event.type} {event.data}"
        for record in records[: fences.get(n)]:
            if record["type"] in ENDINGS.values():
                data = record["data"]
                ends.setdefault(data["trial_id"], (n, data["value"], data["checkpoint"]))
    trials = [trial for trial in facts.trials if trial.sweep_id == sweep.id]
    if len(trials) > sweep.plan["budget"]["trials"]:
        yield f"I6: {sweep.id} has {len(trials)} trials, its budget {sweep.plan['budget']['trials']}"
    for trial in trials:
        if sweep.ended_at is not None and trial.state not in TRIAL_OVER:
            yield f"I3: {sweep.id} is over, {trial.trial_id} is {trial.state}"
        end = (trial.attempt, trial.value, trial.checkpoint)
        if trial.state == "SUCCEEDED" and end != ends.get(trial.trial_id):
            yield f"I5: {sweep.id}, {trial.trial_id}: the table says {end}, what counts is {ends.get(trial.trial_id)}"
    if sweep.state == "SUCCEEDED":
        lies = facts.run_dirs / sweep.id / "attempts" / str(sweep.attempt) / "result.json"
        if not lies.exists() or sweep.result != json.loads(lies.read_text()):
            yield f"I5: the result of {sweep.id} is not that of its attempt {sweep.attempt}"
        if {trial.trial_id for trial in trials if trial.state == "SUCCEEDED"} != set(ends):
            yield f"I5: {sweep.id} succeeded, of {sorted(ends)} the table has {len(trials)}"


def _journal(attempt: Path) -> list[dict[str, Any]]:
    segments = sorted(attempt.glob("journal/*.jsonl"))
    return [json.loads(line) for segment in segments for line in segment.read_text().splitlines()]


def _run_dir(facts: Facts, sweep: Sweep, like: Path | None, clocks: bool) -> Iterator[str]:
    """I7, and the order within."""
    root = facts.run_dirs / sweep.id
    if not list(root.glob("attempts/*/claim.json")):
        return
    # An attempt whose job died before its driver began has no claim; a wrong clock dates claims as it likes.
    excused = ("claims do not rise by one", *(() if clocks else ("claims were not made in the order",)))
    for wrong in violations_in(root, like=like if sweep.state == "SUCCEEDED" else None):
        if not wrong.startswith(excused):
            yield f"{sweep.id}: {wrong}"


def _jobs(facts: Facts, heads: int) -> Iterator[str]:
    """I8: nothing runs twice, nothing runs on."""
    rows = {attempt.submission_id: attempt for attempt in facts.attempts}
    for attempt in facts.attempts:
        if attempt.submission_id != submission_id(attempt.sweep_id, attempt.n):
            yield f"I8: attempt {attempt.n} of {attempt.sweep_id} is called {attempt.submission_id}"
        if attempt.submitted_at is not None and attempt.submission_id not in facts.created:
            yield f"I8: Ray never had {attempt.submission_id}"
    for name, times in Counter(facts.created).items():
        if name not in rows:
            yield f"I8: no row knows the job {name}"
        if times > heads:
            yield f"I8: Ray made {name} {times} times"
    for name, status in facts.jobs.items():
        if status == "RUNNING" and (name not in rows or rows[name].ended_at is not None):
            yield f"I8: {name} still runs"
    begun = Counter((start["run"], start["attempt"]) for start in facts.starts)
    for (run, n), times in begun.items():
        if times > heads:
            yield f"I8: {times} drivers began attempt {n} of {run}"
    for start in facts.starts:
        sweep = facts.sweeps.get(start["run"])
        if sweep is not None and sweep.ended_at is not None and lives(start["pid"]):
            yield f"I8: {start['run']} is over, a driver of attempt {start['attempt']} lives on"


def _heard(facts: Facts) -> Iterator[str]:
    """I9."""
    for sweep_id, ids in facts.watched.items():
        expected = [f"evt_{event.seq:08d}" for event in facts.events[sweep_id]]
        if ids != expected:
            yield f"I9: of {expected} somebody who watched {sweep_id} heard {ids}"


def _noted(facts: Facts) -> Iterator[str]:
    """I10, of sweeps: ordered once, cancelled once at most."""
    done = Counter((entry.object, entry.action) for entry in facts.audit if entry.outcome == "done")
    for sweep in facts.sweeps.values():
        wishes = ["POST /v1/sweeps", *(["POST /v1/sweeps/{sweep_id}/cancel"] if sweep.desired == "CANCEL" else [])]
        found = {action: times for (row, action), times in done.items() if row == sweep.id}
        if found != dict.fromkeys(wishes, 1):
            yield f"I10: of {wishes} on {sweep.id} the audit has {found}"
    for row in {str(row) for row, _ in done if str(row).startswith("swp_")} - set(facts.sweeps):
        yield f"I10: the audit has {row}, which is not there"


def _kept_secret(facts: Facts) -> Iterator[str]:
    """I12."""
    for name, text in facts.logs.items():
        yield from (f"I12: a secret stands in {name}" for secret in facts.secrets if secret in text)
