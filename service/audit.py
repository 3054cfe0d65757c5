"""The audit log: one row for each change that somebody made or was refused, in the transaction of the change.

Nobody calls it: the sessions of a request (`service.tenancy`) tell the recorder what they are about to write, so
a route that is added later is noted too. What changed nothing (a repeated POST, a wish that was there already) has no
row.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from sqlalchemy import delete, insert, inspect, select
from sqlalchemy.orm import ORMExecuteState, Session
from sqlalchemy.orm.attributes import get_history
from sqlalchemy.orm.base import PassiveFlag

from service.auth import Caller
from service.clock import Clock
from service.ids import first_id, new_id
from service.models_people import AuditEntry
from service.store import Store, rows_changed
from service.tenancy import PROJECT

log = logging.getLogger(__name__)

DONE = "done"
REFUSED = "refused"
_CONSEQUENCES = frozenset({"audit", "events", "idempotency", "webhook_deliveries"})
"""Tables whose rows come with a change and are none themselves."""
_CHANGES = "changes"
_ADDED = insert(AuditEntry.metadata.tables["audit"])


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request, as the log tells it."""

    caller: Caller
    scope: str
    """What the request needed."""
    action: str
    """Method and route."""
    named: Collection[str]
    """What its path names."""
    request_id: str


@dataclass(kw_only=True)
class _Change:
    row: Any
    new: bool
    before: str | None
    gone: bool = False


@dataclass(kw_only=True)
class _Changes:
    rows: dict[int, _Change] = field(default_factory=dict)
    bulk: bool = False


class Recorder:
    """Notes what the sessions of one request change."""

    def __init__(self, asked: Asked, clock: Clock) -> None:
        self._asked = asked
        self._clock = clock

    def before_flush(self, session: Session) -> None:
        """Remember what a row was before its first change in this transaction."""
        known = _changes(session).rows
        for row in [*session.new, *session.dirty, *session.deleted]:
            if type(row).__tablename__ in _CONSEQUENCES:
                continue
            if id(row) not in known and (row not in session.dirty or session.is_modified(row)):
                new = row in session.new
                known[id(row)] = _Change(row=row, new=new, before=None if new else _hash(_before(row)))
            if row in session.deleted and id(row) in known:
                known[id(row)].gone = True

    def bulk(self, state: ORMExecuteState) -> None:
        """An UPDATE or DELETE that names no row."""
        mapper = state.bind_mapper
        if mapper is None or mapper.class_.__tablename__ not in _CONSEQUENCES:
            _changes(state.session).bulk = True

    def before_commit(self, session: Session) -> None:
        """Add the row of the log, if anything changed."""
        session.flush()
        changes = _changes(session)
        if not changes.rows and not changes.bulk:
            return
        main = _main(list(changes.rows.values()), self._asked.named)
        entry = _entry(
            self._asked,
            self._clock,
            session.info[PROJECT],
            outcome=DONE,
            object=_id(main.row) if main is not None else next(iter(self._asked.named), None),
            before=None if main is None else main.before,
            after=None if main is None or main.gone else _hash(_values(main.row)),
        )
        # Not as a row of the session: another flush for it alone took a tenth of a create.
        session.connection().execute(_ADDED, entry)


def note_refusal(store: Store, asked: Asked, clock: Clock) -> None:
    """Write down that a caller was refused for want of rights. Nothing else was changed by the request."""
    object = next(iter(asked.named), None)
    with store.write() as session:
        entry = _entry(asked, clock, asked.caller.project, outcome=REFUSED, object=object, before=None, after=None)
        session.connection().execute(_ADDED, entry)


def forget(store: Store, now: datetime, *, days: int, at_once: int = 500, batches: int = 100) -> int:
    """Delete the entries of every project that are older; returns how many, which a line of the log tells too.

    In short transactions, so that nobody's request waits; what is left after so many of them is for the next hour.
    """
    before, gone = now - timedelta(days=days), 0
    oldest = select(AuditEntry.id).where(AuditEntry.id < first_id("aud", before)).order_by(AuditEntry.id).limit(at_once)
    for _ in range(batches):
        with store.write() as session:
            deleted = rows_changed(session.execute(delete(AuditEntry).where(AuditEntry.id.in_(oldest))))
        gone += deleted
        if deleted < at_once:
            break
    if gone:
        log.info(
            "%d entries of the audit log are gone: all but the newest %d days (%s)", gone, days, before.isoformat()
        )
    return gone


def plain_path(path: str) -> str:
    """A path as it was sent, which may hold anything, in letters that every database takes."""
    return quote(path)[:200]


def _entry(
    asked: Asked, clock: Clock, project: str, *, outcome: str, object: str | None, **hashes: str | None
) -> dict[str, Any]:
    now = clock.now()
    return {
        "id": new_id("aud", now),
        "project": project,
        "actor": asked.caller.key_id,
        "actor_name": asked.caller.name,
        "scope": asked.scope,
        "action": asked.action,
        "object": None if object is None else quote(object, safe="/@:")[:127],
        "outcome": outcome,
        "request_id": asked.request_id,
        "created_at": now,
        **hashes,
    }


def _changes(session: Session) -> _Changes:
    found: _Changes = session.info.setdefault(_CHANGES, _Changes())
    return found


def _main(changes: list[_Change], named: Collection[str]) -> _Change | None:
    """The row that the request was about: what its path names, else the last that somebody made by it."""
    for change in changes:
        if not change.new and {str(getattr(change.row, key, None)) for key in ("id", "name")} & set(named):
            return change
    made = [change for change in changes if change.new and hasattr(change.row, "created_by")]
    return made[-1] if made else next(iter(changes), None)


def _id(row: Any) -> str:
    return "/".join(str(part) for part in inspect(row).identity or ())


def _values(row: Any) -> Mapping[str, Any]:
    """Its columns, without nulls: a new row does not have those yet."""
    held = inspect(row).dict
    return {key: held[key] for key in _columns(row) if held.get(key) is not None}


def _before(row: Any) -> Mapping[str, Any]:
    """The same, as they were read."""
    values = dict(_values(row))
    for key in _columns(row):
        history = get_history(row, key, PassiveFlag.PASSIVE_NO_INITIALIZE)
        if history.added or history.deleted:
            values[key] = history.deleted[0] if history.deleted else None
    return {key: value for key, value in values.items() if value is not None}


def _columns(row: Any) -> list[str]:
    return [attribute.key for attribute in inspect(row).mapper.column_attrs]


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
