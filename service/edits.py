"""Edits of a sweep on their way: a request's body -> row -> file in the run directory -> the driver's answer.

A request writes the row, under the next number of the sweep. The reconciler writes the file of that number, whole and
exclusively; a file that is there with the same content is adopted, so being cut off in between doubles nothing. The
driver answers in its journal, and the first answer counts.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service import events
from service.auth import Caller
from service.clock import Clock
from service.errors import Conflict, NotFound, illegal_transition, invalid, pointer_of
from service.models import Sweep, Trial
from service.models_edits import SweepEdit
from service.plain_types import check_types
from service.rows import lock_sweep, no_such
from service.run_dirs import run_of
from service.settings import Settings
from service.states import LIVE, TRIAL_OVER, EditState, allowed_verbs
from service.store import Store
from sweeps.control import APPLIED, EDITS, parse_edit
from sweeps.faults import SpecError
from sweeps.run_dir import Record, RunDirError, UnwritableRunDir

log = logging.getLogger(__name__)

_WAITS = "Waits for the driver, which answers once it is there."
_MOST = 10**8  # numbers of files beyond it were given by no service


def checked_edit(action: str, body: Mapping[str, Any], trial_id: str | None = None) -> dict[str, Any]:
    """The edit as its file will hold it. `trial_id`: of the path. Raises Invalid (422) with one pointer per fault."""
    path = {"action": action, **({"trial_id": trial_id} if trial_id is not None else {})}
    if twice := [(pointer_of([key]), "unknown: the path says it") for key in path if key in body]:
        raise invalid(twice)
    try:
        values: dict[str, Any] = parse_edit({**body, **path}).model_dump(mode="json")
    except SpecError as error:
        raise invalid([(pointer_of(field.split(".")) if field else "", text) for field, text in error.faults]) from None
    check_types(EDITS[action], body)
    return values


def want_edit(
    session: Session, kind: str, sweep_id: str, edit: Mapping[str, Any], caller: Caller, now: datetime
) -> SweepEdit:
    """Store the wish to change a sweep or run. Raises NotFound (404), or Conflict (409) where its state forbids it."""
    sweep, action = lock_sweep(session, sweep_id), str(edit["action"])
    if sweep is None or sweep.kind != kind:
        raise no_such(kind, sweep_id)
    allowed = allowed_verbs(sweep.state)
    if "cancel" not in allowed:  # what can still be cancelled can still be changed
        raise illegal_transition(kind, sweep.state, action, allowed)
    if sweep.desired == "CANCEL":
        why: dict[str, Any] = {"current_state": sweep.state, "allowed": allowed}
        raise Conflict(f"This {kind} is about to be cancelled.", code="illegal_transition", facts=why)
    trial_id = edit.get("trial_id")
    if trial_id is not None:
        _check_trial(session, sweep, str(trial_id), action)
    highest = session.scalar(select(func.max(SweepEdit.number)).where(SweepEdit.sweep_id == sweep_id))
    row = SweepEdit(
        sweep_id=sweep_id,
        number=(highest or 0) + 1,
        action=action,
        edit=dict(edit),
        actor=caller.key_id,
        state=EditState.PENDING,
        message=_WAITS,
        trial_id=trial_id,
        created_at=now,
    )
    session.add(row)
    facts = {"number": row.number, "action": action, "edit": row.edit}
    events.append(
        session, sweep, "sweep.edited", f"Edit {row.number} asked for: {action}.", facts, now=now, actor=caller.key_id
    )
    session.flush()
    return row


def edits_of(session: Session, sweep_id: str, *, after: int, limit: int, order: str) -> Sequence[SweepEdit]:
    """Edits past the cursor, by number."""
    query = select(SweepEdit).where(SweepEdit.sweep_id == sweep_id)
    if order == "asc":
        query = query.where(SweepEdit.number > after).order_by(SweepEdit.number)
    else:
        query = (query.where(SweepEdit.number < after) if after else query).order_by(SweepEdit.number.desc())
    return session.scalars(query.limit(limit)).all()


def edit_id(number: int) -> str:
    """Opaque to clients; sorts by number."""
    return f"edt_{number:08d}"


def number_of(cursor: str) -> int | None:
    """The inverse; None for what is no id of an edit."""
    match = re.fullmatch(r"edt_([0-9]{8,9})", cursor)
    return int(match[1]) if match else None


def open_edits(session: Session) -> tuple[frozenset[str], frozenset[str]]:
    """Of the sweeps that are not over: ids of those with an edit to be written, and of those that are paused."""
    unwritten = (SweepEdit.state == EditState.PENDING) & SweepEdit.written_at.is_(None)
    query = select(SweepEdit.sweep_id, SweepEdit.action, SweepEdit.state).join(Sweep, Sweep.id == SweepEdit.sweep_id)
    found = session.execute(query.where(Sweep.state.in_(LIVE), unwritten | _PAUSES).order_by(SweepEdit.number)).all()
    last = {sweep_id: action for sweep_id, action, state in found if state == EditState.APPLIED}
    waiting = frozenset(sweep_id for sweep_id, _, state in found if state == EditState.PENDING)
    return waiting, frozenset(sweep_id for sweep_id, action in last.items() if action == "pause")


def is_paused(session: Session, sweep_id: str) -> bool:
    """Whether the newest of the applied edits that bear on it is a pause."""
    query = select(SweepEdit.action).where(SweepEdit.sweep_id == sweep_id, _PAUSES)
    return session.scalar(query.order_by(SweepEdit.number.desc()).limit(1)) == "pause"


def publish(store: Store, settings: Settings, clock: Clock, sweep_id: str, failpoint: Callable[[str], None]) -> None:
    """Write the files of a sweep's edits that have none yet, in the order of their numbers."""
    unwritten = (SweepEdit.state == EditState.PENDING) & SweepEdit.written_at.is_(None)
    with store.read() as session:
        query = select(SweepEdit).where(SweepEdit.sweep_id == sweep_id, unwritten).order_by(SweepEdit.number)
        found = session.scalars(query).all()
    run = run_of(settings, sweep_id)
    for row in found:
        try:
            run.put_edit(row.number, row.edit)
        except UnwritableRunDir as error:
            log.warning("%s: edit %d: %s", sweep_id, row.number, error)
            return  # a later one must not overtake it; the next pass tries again
        except RunDirError as error:
            _note(store, row, state=EditState.REFUSED, message=error.message, answered_at=clock.now())
            continue
        failpoint("after_edit_file")
        _note(store, row, written_at=clock.now())


def take_answer(session: Session, sweep_id: str, attempt: int, record: Record, at: datetime) -> None:
    """Note what a driver answered, the first time that it does. The sweep is locked.

    An edit that somebody made in the run directory itself gets a row here, so that nobody is given its number.
    """
    data, number = record["data"], record["data"].get("seq")
    if not isinstance(number, int) or not 0 < number < _MOST:
        return
    row = session.get(SweepEdit, (sweep_id, number))
    action, edit = str(data.get("action") or "unreadable")[:16], data.get("edit")
    if row is None:
        row = SweepEdit(sweep_id=sweep_id, number=number, action=action, edit=edit or {}, actor=events.DRIVER)
        row.state, row.created_at = EditState.PENDING, at
        session.add(row)
    elif row.state != EditState.PENDING:
        return  # the first answer counts
    elif row.written_at is None and (row.action, edit or row.edit) != (action, row.edit):
        return  # the file of that number was somebody else's: `publish` says so
    applied = record["type"] == APPLIED
    row.state = EditState.APPLIED if applied else EditState.REFUSED
    said = record["message"] if applied else str(data.get("message") or record["message"])
    row.message = said.removeprefix(f"edit {number}: ")
    row.field = None if applied else data.get("field")
    row.trial_id = data.get("trial_id") or row.trial_id
    row.attempt, row.answered_at, row.written_at = attempt, at, row.written_at or at
    hours = (edit or row.edit).get("accelerator_hours")
    if applied and isinstance(hours, int | float):
        session.get_one(Sweep, sweep_id).hours_asked = float(hours)  # what its project's quota promises it
    session.flush()


_PAUSES = (SweepEdit.state == EditState.APPLIED) & SweepEdit.action.in_(("pause", "resume"))


def _check_trial(session: Session, sweep: Sweep, trial_id: str, action: str) -> None:
    trial = session.get(Trial, (sweep.id, trial_id))
    if trial is None:
        if sweep.started_at is None:
            facts = {"current_state": sweep.state, "allowed": allowed_verbs(sweep.state)}
            raise Conflict("This sweep has not started: it has no trials yet.", code="not_started", facts=facts)
        raise NotFound(f"There is no trial {trial_id} in {sweep.id}.")
    if action == "stop_trial" and trial.state in TRIAL_OVER:
        raise illegal_transition("trial", trial.state, "stop", ["clone"])


def _note(store: Store, row: SweepEdit, **values: Any) -> None:
    with store.write() as session:
        sweep = lock_sweep(session, row.sweep_id)
        fresh = session.get(SweepEdit, (row.sweep_id, row.number), populate_existing=True)
        if sweep is None or fresh is None or fresh.state != EditState.PENDING:
            return  # the sweep ended meanwhile
        for key, value in values.items():
            setattr(fresh, key, value)
