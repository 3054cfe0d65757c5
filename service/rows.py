"""What may be done to the rows. Every write locks its row first, so checks and changes are one.

SQLite locks by BEGIN IMMEDIATE (Store.write), PostgreSQL by SELECT FOR UPDATE; the version in every UPDATE is the net.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session, defer

from service import events, marks
from service.auth import Caller
from service.errors import Conflict, NotFound, illegal_transition, invalid
from service.ids import new_id, submission_id
from service.models import COMPARISON, EVALUATION, Attempt, Deployment, Sweep, Trial
from service.models_data import Dataset, DatasetUse
from service.models_edits import SweepEdit
from service.states import (
    DEPLOYMENT_MOVES,
    LIVE,
    MOVES,
    TRIAL_OVER,
    AttemptState,
    DeploymentState,
    EditState,
    State,
    TrialState,
    allowed_verbs,
)
from service.usage import Meter

PREFIXES: Mapping[str, str] = {"sweep": "swp", "run": "run", EVALUATION: "evl", COMPARISON: "cmp"}
_WORDS: Mapping[str, str] = {EVALUATION: "evaluation", COMPARISON: "comparison"}


@dataclass(frozen=True, kw_only=True)
class Order:
    """A validated wish, ready to be stored."""

    kind: str
    """sweep, run, eval or cmp"""
    name: str
    spec: dict[str, Any]
    """As asked for."""
    plan: dict[str, Any]
    """The SweepSpec, EvaluationSpec or ComparisonSpec to execute."""
    spec_hash: str
    """Of the plan."""
    datasets: Mapping[str, str] = field(default_factory=dict)
    """train, eval -> id of the uploaded dataset behind it, where it is one."""
    priority: int = 0
    """Before others of its project (`service.admission.PRIORITIES`)."""
    slots: int = 1
    """Trials that it may train at once."""
    hours_asked: float | None = None
    """Accelerator-hours of its budget; None: no limit of its own."""


def check_name(session: Session, order: Order, project: str) -> None:
    """Raises Conflict (409) when a live one has the name; a failed or cancelled one's is free."""
    if existing := marks.live_named(session, order.kind, order.name, project):
        raise name_taken(order.kind, order.name, existing)


def create_sweep(
    session: Session, order: Order, caller: Caller, now: datetime, *, validating: bool = False
) -> Sweep:
    """Store a wish with its first event. Raises Conflict (409) when the name is taken.

    `validating`: it waits until somebody moves it to PENDING.
    """
    check_name(session, order, caller.project)
    for role, dataset_id in order.datasets.items():
        _hold_dataset(session, dataset_id, role, caller.project)
    sweep = Sweep(
        id=new_id(PREFIXES[order.kind], now),
        project=caller.project,
        kind=order.kind,
        name=order.name,
        created_by=caller.key_id,
        priority=order.priority,
        slots=order.slots,
        hours_asked=order.hours_asked,
        spec=order.spec,
        plan=order.plan,
        spec_hash=order.spec_hash,
        state=State.VALIDATING if validating else State.PENDING,
        reason="VALIDATING" if validating else "QUEUED",
        message="Its data is looked at." if validating else "Waits for its turn.",
        desired="RUN",
        attempt=0,
        event_seq=0,
        created_at=now,
    )
    session.add(sweep)
    session.add_all(DatasetUse(sweep_id=sweep.id, role=role, dataset_id=id) for role, id in order.datasets.items())
    first = "job.validating" if validating else "job.queued"
    events.append(session, sweep, first, "Accepted.", {"name": order.name}, now=now, actor=caller.key_id)
    session.flush()
    return sweep


def _hold_dataset(session: Session, dataset_id: str, role: str, project: str) -> None:
    """Lock a dataset, so that it is not deleted between the look at it and this sweep. Raises Invalid (422)."""
    wanted = select(Dataset).where(Dataset.id == dataset_id, Dataset.project == project)
    found = session.scalar(wanted.with_for_update())
    if found is None or found.state == "DELETED":
        raise invalid([(f"/dataset/{role}", f"there is no dataset {dataset_id}")])


def name_taken(kind: str, name: str, existing: str) -> Conflict:
    """409: names are the natural key."""
    return Conflict(
        f"The name {name!r} belongs to {existing}: choose another name.",
        code="name_taken",
        errors=[("/name", f"taken by {kind} {existing}")],
        facts={"existing": existing},
    )


def want_cancel(session: Session, kind: str, sweep_id: str, caller: Caller, now: datetime) -> Sweep:
    """Record the wish to cancel; the reconciler does it. Raises NotFound, or Conflict (409) when it is over."""
    sweep = lock_sweep(session, sweep_id)
    if sweep is None or sweep.kind != kind:
        raise no_such(kind, sweep_id)
    if sweep.desired == "CANCEL" and sweep.state in LIVE:
        return sweep
    if "cancel" not in allowed_verbs(sweep.state):
        raise illegal_transition(_WORDS.get(kind, kind), sweep.state, "cancel", allowed_verbs(sweep.state))
    sweep.desired = "CANCEL"
    sweep.reason, sweep.message = "CANCEL_REQUESTED", "Will be cancelled."
    events.append(session, sweep, "job.cancel_requested", "Cancel requested.", now=now, actor=caller.key_id)
    return sweep


def no_such(kind: str, id: str) -> NotFound:
    """404."""
    return NotFound(f"There is no {_WORDS.get(kind, kind)} {id}.")


def lock_sweep(session: Session, sweep_id: str) -> Sweep | None:
    """The row, ours until the transaction ends."""
    return session.scalar(select(Sweep).where(Sweep.id == sweep_id).with_for_update())


def lock_deployment(session: Session, deployment_id: str) -> Deployment | None:
    """Likewise."""
    return session.scalar(select(Deployment).where(Deployment.id == deployment_id).with_for_update())


def lock_current(session: Session, sweep_id: str, n: int) -> tuple[Sweep, Attempt] | None:
    """A sweep and its open attempt `n`, locked; None when `n` does not count any more: the fence."""
    sweep = lock_sweep(session, sweep_id)
    attempt = session.get(Attempt, (sweep_id, n))
    if sweep is None or attempt is None or sweep.attempt != n or attempt.ended_at is not None:
        return None
    return sweep, attempt


def open_attempt(session: Session, sweep: Sweep, now: datetime) -> Attempt:
    """The intent to submit, committed before anything is written or called elsewhere. `sweep` is locked."""
    sweep.attempt += 1
    attempt = Attempt(
        sweep_id=sweep.id,
        n=sweep.attempt,
        submission_id=submission_id(sweep.id, sweep.attempt),
        state=AttemptState.CREATED,
        reason="",
        journal_seq=0,
        submit_failures=0,
        created_at=now,
    )
    session.add(attempt)
    return attempt


def end_attempt(
    session: Session, attempt: Attempt, state: AttemptState, reason: str, now: datetime, last: datetime | None = None
) -> None:
    """Nothing that this attempt writes from now on counts; what it has running counts until `last`, its last beat."""
    attempt.state, attempt.reason, attempt.ended_at = state, reason, now
    Meter(session, session.get_one(Sweep, attempt.sweep_id)).close(attempt.n, last and min(last, now))
    session.flush()  # before a next one is inserted: only one may be open


def move(session: Session, sweep: Sweep, new: State, reason: str, message: str, now: datetime) -> None:
    """Change the state of a locked row along the table."""
    assert new in MOVES[sweep.state], f"{sweep.id}: {sweep.state} -> {new}"
    sweep.state = new
    explain(sweep, reason, message)
    if new == State.RUNNING:
        sweep.started_at = sweep.started_at or now
    if not MOVES[new]:
        sweep.ended_at, sweep.stale_since = now, None
        session.execute(
            update(Trial)
            .where(Trial.sweep_id == sweep.id, Trial.state.not_in(TRIAL_OVER))
            .values(state=TrialState.CANCELLED, reason=f"The {sweep.kind} ended first.", ended_at=now)
        )
        sweep.trial_counts = marks.trial_counts(session, [sweep.id]).get(sweep.id, {})
        late = {"state": EditState.REFUSED, "message": f"The {sweep.kind} ended first.", "answered_at": now}
        unanswered = (SweepEdit.sweep_id == sweep.id) & (SweepEdit.state == EditState.PENDING)
        session.execute(update(SweepEdit).where(unanswered).values(**late, version=SweepEdit.version + 1))


def explain(sweep: Sweep, reason: str, message: str) -> None:
    """Say why it is in its state. The same words again write nothing."""
    if (sweep.reason, sweep.message) != (reason, message):
        sweep.reason, sweep.message = reason, message


def live_sweeps(
    session: Session, submissions: Collection[str] | None = None
) -> list[tuple[Sweep, Attempt | None]]:
    """Everything not over, oldest first, with its open attempt: one query, whatever their number, without specs.

    `submissions`: only those whose open attempt is one of these.
    """
    joined = (
        select(Sweep, Attempt)
        .options(defer(Sweep.spec), defer(Sweep.plan), defer(Sweep.result))
        .outerjoin(Attempt, (Attempt.sweep_id == Sweep.id) & Attempt.ended_at.is_(None))
        .where(Sweep.state.in_(LIVE))
        .order_by(Sweep.created_at, Sweep.id)
    )
    if submissions is not None:
        joined = joined.where(Attempt.submission_id.in_(submissions))
    return [(sweep, attempt) for sweep, attempt in session.execute(joined)]


def look_again(session: Session, sweep_id: str, n: int) -> None:
    """Ray was given the job of an attempt that had ended meanwhile: see to it once more that it does not go on."""
    attempt = session.get(Attempt, (sweep_id, n))
    if attempt is not None and attempt.ended_at is not None:
        attempt.released_at = None


def unreleased_attempts(session: Session) -> Sequence[Attempt]:
    """Attempts that ended for us while Ray may still run their job."""
    query = select(Attempt).where(Attempt.released_at.is_(None), Attempt.ended_at.is_not(None))
    return session.scalars(query).all()


def new_deployment(
    name: str, source: Mapping[str, Any], created_by: str, now: datetime, *, project: str
) -> Deployment:
    """A wish to serve, to be added. `source`: the columns that say what."""
    first = {"state": DeploymentState.PENDING, "reason": "QUEUED", "message": "Waits for Serve."}
    return Deployment(
        id=new_id("dep", now),
        project=project,
        name=name,
        created_by=created_by,
        revision=1,
        desired="SERVE",
        event_seq=0,
        created_at=now,
        **source,
        **first,
    )


def want_deletion(session: Session, row: Deployment, actor: str, now: datetime) -> None:
    """Record the wish to take a locked deployment away. Raises Conflict (409) where its state does not allow it."""
    allowed = allowed_verbs(row.state, DEPLOYMENT_MOVES)
    if "delete" not in allowed:
        raise illegal_transition("deployment", row.state, "delete", allowed)
    row.desired = "DELETE"
    row.reason, row.message = "DELETE_REQUESTED", "Will be deleted."
    events.append(session, row, "deployment.delete_requested", "Delete requested.", now=now, actor=actor)


def wanted_deployments(session: Session) -> list[Deployment]:
    """Every deployment that is not gone."""
    return list(session.scalars(select(Deployment).where(Deployment.state != "DELETED").order_by(Deployment.id)))
