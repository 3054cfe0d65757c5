"""Projects: a session of one sees and writes its own rows, by whatever statement; no route can forget it."""

import ast
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Select, delete, func, inspect, select, update
from sqlalchemy.orm import aliased

import service.routes
from service import rows, tenancy
from service.app import create_app
from service.auth import Caller
from service.models import Base, Event, Sweep, Trial
from service.store import Store

pytestmark = pytest.mark.quick

NOW = datetime(2026, 9, 1, 9, 30, tzinfo=UTC)
MINE, THEIRS = "prj_mine", "prj_theirs"
ABOUT_ALL = {"admin.py", "keys.py", "projects.py", "audit.py", "health.py", "metrics.py", "quotas.py"}
"""Routes that may look at the whole database: what they are about is not a project's."""


@pytest.fixture
def store(tmp_path: Path, migrated: Path) -> Iterator[Store]:
    (tmp_path / "simpo.db").write_bytes(migrated.read_bytes())
    store = Store(f"sqlite:///{tmp_path / 'simpo.db'}")
    yield store
    store.close()


def sweep_of(store: Store, project: str) -> str:
    order = rows.Order(kind="sweep", name="a", spec={}, plan={}, spec_hash="0" * 64)
    with store.write() as session:
        row = rows.create_sweep(session, order, Caller(key_id="key_1", name="n", project=project), NOW)
        point = {"attempt": 1, "state": "RUNNING", "params": {}, "metrics": {}, "rungs": [], "created_at": NOW}
        session.add(Trial(sweep_id=row.id, trial_id="t1", number=1, **point))
        rows.open_attempt(session, row, NOW)
    return row.id


def test_every_table_is_a_projects_or_named_as_nobodys() -> None:
    """A new table without a project is a hole until somebody says that it is none."""
    assert create_app is not None, "all tables are imported by it"
    lost = [m.class_.__tablename__ for m in Base.registry.mappers if tenancy.owner_of(m) is None]
    assert set(lost) <= tenancy.UNOWNED, "add Owned to the table, or a key to its parent, or name it in UNOWNED"


def selects(table: Any) -> dict[str, Select[Any]]:
    """Ways to ask for the rows of a table."""
    key = inspect(table).primary_key[0].key
    other = aliased(table)
    inner = select(getattr(table, key)).subquery()
    return {
        "rows": select(table),
        "a column": select(getattr(table, key)),
        "a number": select(func.count()).select_from(table).having(func.count() > 0),
        "an alias": select(other),
        "a subquery": select(inner),
        "in": select(table).where(getattr(table, key).in_(select(getattr(other, key)))),
        "locked": select(table).with_for_update(),
    }


@pytest.mark.parametrize("table", [Sweep, Trial, Event], ids=lambda table: table.__tablename__)
def test_no_statement_shows_another_projects_rows(store: Store, table: Any) -> None:
    theirs = sweep_of(store, THEIRS)
    with store.within(MINE).read() as session:
        for name, statement in selects(table).items():
            assert session.execute(statement).all() == [], name
        assert session.get(Sweep, theirs) is None and session.get(Trial, (theirs, "t1")) is None
    with store.within(THEIRS).read() as session:
        for name, statement in selects(table).items():
            assert session.execute(statement).all() != [], name
        assert session.get(Sweep, theirs) is not None and session.get(Trial, (theirs, "t1")) is not None


def test_a_statement_that_could_not_be_narrowed_is_refused(store: Store) -> None:
    """SQLAlchemy takes this for no ORM statement, and would count everybody's rows."""
    live = (Sweep.state == "RUNNING") & (Sweep.kind == "sweep")
    with store.within(MINE).read() as session, pytest.raises(RuntimeError, match="must name a class"):
        session.execute(select(func.count()).where(live))


def test_joins_are_narrowed_on_both_sides(store: Store) -> None:
    mine, theirs = sweep_of(store, MINE), sweep_of(store, THEIRS)
    with store.within(MINE).read() as session:
        joined = select(Sweep.id, Trial.sweep_id).join(Trial, Trial.number == 1)  # crosses the projects
        assert [tuple(row) for row in session.execute(joined)] == [(mine, mine)]
        outer = select(Sweep.id, Trial.trial_id).outerjoin(Trial, Trial.sweep_id == theirs)
        assert [(sweep, trial is None) for sweep, trial in session.execute(outer)] == [(mine, True)]


def test_no_statement_changes_another_projects_rows(store: Store) -> None:
    theirs = sweep_of(store, THEIRS)
    with store.within(MINE).write() as session:
        changed = [
            session.execute(update(Sweep).values(reason="X", version=Sweep.version + 1)),
            session.execute(update(Trial).where(Trial.sweep_id == theirs).values(reason="X")),
            session.execute(delete(Trial).where(Trial.sweep_id == theirs)),
        ]
        assert [result.rowcount for result in changed] == [0, 0, 0]  # type: ignore[attr-defined]
    with store.read() as session:
        assert session.get_one(Sweep, theirs).reason == "QUEUED" and session.get(Trial, (theirs, "t1")) is not None


def test_new_rows_are_the_projects_own(store: Store) -> None:
    with store.within(MINE).write() as session:
        what: dict[str, Any] = {"type": "t", "level": "info", "actor": "a", "message": "", "data": {}}
        session.add(row := Event(parent_id="x", seq=1, created_at=NOW, **what))
    assert row.project == MINE
    with pytest.raises(AssertionError, match="a row of prj_theirs"):
        sweep_of(store.within(MINE), THEIRS)


def test_a_request_without_a_key_sees_no_rows(store: Store) -> None:
    sweep_of(store, MINE)
    with store.within("").read() as session:
        assert session.scalar(select(func.count()).select_from(Sweep)) == 0


def test_routes_reach_the_database_only_through_what_is_narrowed() -> None:
    """`context.everything`, the reconciler's store, and SQL as text would see all projects."""
    offences = []
    for path in sorted(Path(service.routes.__path__[0]).glob("*.py")):
        if path.name in ABOUT_ALL:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "name", None)
            if named in ("everything", "within", "app") and isinstance(node, ast.Attribute):
                offences.append(f"{path.name}: .{named}")
            if named in ("text", "Store", "create_engine") and isinstance(node, ast.alias):
                offences.append(f"{path.name}: imports {named}")
    assert not offences


