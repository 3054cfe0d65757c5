"""A full database for the load bench: one sweep made as the service makes it, then copied by the thousands."""

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Table, delete, insert, literal, select, text, update

from service import events, rows
from service.auth import Authenticator, Caller, create_key
from service.clock import SystemClock
from service.ids import new_id, submission_id
from service.models import Attempt, Base, Sweep, Trial
from service.orders import sweep_order
from service.settings import Settings
from service.store import Store
from sweeps.run_dir import RunDir

BODY = {"base_model": "practice", "method": "simpo", "budget": {"trials": 100}}
"""What the sweeps of the bench ask for."""
_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What lies in the database."""

    key: str
    """API key."""
    caller: Caller
    """Its owner."""
    ids: Sequence[str]
    """Of the sweeps, oldest first; the last ones are live."""


def fill(store: Store, *, sweeps: int, trials: int, live: int = 4) -> Filled:
    """Migrate, then so many sweeps with so many trials and 25 events each; the last `live` of them are PENDING."""
    store.migrate()
    key = create_key(store, "load")
    caller = Authenticator(store, SystemClock()).caller(f"Bearer {key}")
    assert caller is not None
    begin = datetime.now(UTC) - timedelta(days=30)
    with store.write() as session:
        first = rows.create_sweep(session, sweep_order({**BODY, "name": "load-0"}, lambda _: None), caller, begin)
        for number in range(24):
            events.append(session, first, "trial.progress", "On its way.", {"step": number}, now=begin)
        session.add_all(_trial(first.id, number, begin) for number in range(trials))
        session.flush()
        template = dict(session.execute(select(Sweep.__table__)).mappings().one())
    moments = [begin + timedelta(seconds=60 * number) for number in range(1, sweeps)]
    copies = [
        {**template, "id": new_id("swp", at), "name": f"load-{number}", "created_at": at}
        for number, at in enumerate(moments, 1)
    ]
    over = {"state": "SUCCEEDED", "reason": "DONE", "message": "Succeeded.", "phase": "done", "progress": 1.0}
    tried = {"SUCCEEDED": trials - 3 * (trials // 4), "PRUNED": 2 * (trials // 4), "INFEASIBLE": trials // 4}
    over = {**over, "trial_counts": tried}
    ended = {**over, "result": _result(trials), "best": _result(trials)["best"], "ended_at": begin}
    for row in copies[: sweeps - live - 1]:
        row.update(ended)
    for row in copies[sweeps - live - 1 :]:
        row.update(trial_counts=None)
    for part in _parts(copies):
        with store.write() as session:
            session.execute(insert(Base.metadata.tables["sweeps"]), part)
    for table, parent in (("trials", "sweep_id"), ("events", "parent_id")):
        _multiply(store, Base.metadata.tables[table], parent, first.id)
    with store.write() as session:
        session.execute(update(Sweep).where(Sweep.id == first.id).values(version=Sweep.version + 1, **ended))
    _analyze(store)
    return Filled(key=key, caller=caller, ids=[first.id, *(row["id"] for row in copies)])


def make_live(store: Store, settings: Settings, ids: Sequence[str]) -> list[str]:
    """Give these sweeps a running driver each, with a run directory and a heartbeat; returns the submission ids."""
    now = datetime.now(UTC)
    names = [submission_id(id, 1) for id in ids]
    with store.write() as session:
        session.execute(delete(Attempt).where(Attempt.sweep_id.in_(ids)))
        running = {"state": "RUNNING", "reason": "SEARCHING", "message": "Searches.", "phase": "searching"}
        for part in _parts(ids):
            again = {"attempt": 1, "result": None, "trial_counts": None, "ended_at": None, "started_at": now}
            values = {**running, **again, "version": Sweep.version + 1}
            session.execute(update(Sweep).where(Sweep.id.in_(part)).values(values))
        session.execute(
            insert(Attempt),
            [
                {"sweep_id": id, "n": 1, "submission_id": name, "state": "SUBMITTED", "reason": "", "journal_seq": 2}
                | {"submit_failures": 0, "created_at": now, "submitted_at": now}
                for id, name in zip(ids, names, strict=True)
            ],
        )
    for id in ids:
        _run_dir(settings.run_dir(id))
    return names


def _run_dir(root: Path) -> None:
    """As a driver leaves it in the middle of a search, without its care for power cuts."""
    path = RunDir(root).attempt(1).path
    (path / "journal").mkdir(parents=True, exist_ok=True)
    at = datetime.now(UTC).isoformat()
    for seq, kind in ((1, "job.started"), (2, "job.phase")):
        record = {"seq": seq, "attempt": 1, "at": at, "type": kind, "level": "info", "message": "", "data": {}}
        (path / "journal" / f"{seq:08d}.jsonl").write_text(json.dumps(record) + "\n")
    (path / "heartbeat.json").write_text(json.dumps({"attempt": 1, "counter": 1, "at": at, "counts": {}}))


def _trial(sweep_id: str, number: int, at: datetime) -> Trial:
    metrics = {"accuracy": 0.71, "margin": 1.62, "loss": 0.43, "win_rate": 0.58, "length_ratio": 1.04}
    return Trial(
        sweep_id=sweep_id,
        trial_id=f"trl_{number:04d}",
        number=number,
        attempt=1,
        state=("SUCCEEDED", "PRUNED", "PRUNED", "INFEASIBLE")[number % 4],
        params={"beta": 2.5, "gamma_beta_ratio": 0.5, "learning_rate": 8e-7},
        metrics=metrics,
        rungs=[{"step": step, "metrics": metrics} for step in (15, 30, 60)],
        step=120,
        value=0.5 + number / 1000,
        checkpoint=f"attempts/1/trials/trl_{number:04d}/checkpoint",
        seconds=61.5,
        created_at=at,
        ended_at=at,
    )


def _result(trials: int) -> dict[str, Any]:
    """result.json: its ranking has a line for each trial."""
    board = [
        {"rank": number + 1, "trial_id": f"trl_{number:04d}", "value": 0.6 - number / 1000, "tied": False}
        | {"params": {"beta": 2.5, "gamma_beta_ratio": 0.5, "learning_rate": 8e-7}}
        for number in range(trials)
    ]
    return {"attempt": 1, "state": "SUCCEEDED", "method": "simpo", "best": board[0], "leaderboard": board}


def _multiply(store: Store, table: Table, parent: str, first: str) -> None:
    """Give every other sweep the rows that the first one has, inside the database."""
    sweep = Base.metadata.tables["sweeps"]
    columns = [sweep.c.id if column.name == parent else column for column in table.c]
    joined = sweep.join(table, table.c[parent] == literal(first))
    chosen = select(*columns).select_from(joined).where(sweep.c.id != first)
    with store.write() as session:
        session.execute(insert(table).from_select([column.name for column in table.c], chosen, include_defaults=False))


def _analyze(store: Store) -> None:
    """As autovacuum would do by itself a minute later, and SQLite never does."""
    if not store.is_sqlite:
        with store.write() as session:
            session.execute(text("ANALYZE"))


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]


def enqueue(store: Store, number: int, caller: Caller) -> list[str]:
    """So many accepted sweeps, in order; their ids."""
    order = sweep_order(BODY | {"name": "load"}, lambda _: None)
    ids = []
    for _ in range(number):
        with store.write() as session:
            named = replace(order, name=f"load-{secrets.token_hex(6)}")
            ids.append(rows.create_sweep(session, named, caller, datetime.now(UTC)).id)
    return ids


def write_journal(root: Path, first: int, number: int, segment: int = 20) -> None:
    """So many further records of a driver's first attempt, from `first` on: progress of its 100 trials, 20 a file."""
    folder = RunDir(root).attempt(1).path / "journal"
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {"accuracy": 0.71, "margin": 1.62, "loss": 0.43, "win_rate": 0.58, "length_ratio": 1.04}
    at = datetime.now(UTC).isoformat()
    for start in range(first, first + number, segment):
        lines = []
        for seq in range(start, min(start + segment, first + number)):
            trial = 1000 + seq % 100
            data = {"trial_id": f"trl_{trial}", "number": trial, "step": seq // 100, "metrics": metrics}
            record = {"seq": seq, "attempt": 1, "at": at, "type": "trial.progress", "level": "info", "message": ""}
            lines.append(json.dumps({**record, "data": data}) + "\n")
        (folder / f"{start:08d}.jsonl").write_text("".join(lines))
