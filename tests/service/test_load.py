"""What does not show with three rows: statements, rows and file looks per request and per pass, whatever there is."""

import asyncio
import gc
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import event, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from service import events, rows
from service.app import settle
from service.auth import Authenticator, create_key
from service.models import ApiKey, Attempt, Event, Sweep, Trial
from service.plain_types import schemas_of_bodies
from service.schemas import SweepOut, TrialOut
from service.settings import Settings
from service.shown import Shown
from service.sight import MOST_RECORDS, Watch
from service.store import Store
from service.stream import Hub
from sweeps.run_dir import RunDir
from tests.bench.load_data import BODY, Filled, fill, make_live, write_journal
from tests.fakes import FakeClock
from tests.service.conftest import Plane, make_plane
from tests.service.postgres import fresh_database

REQUESTS = {
    "/v1/sweeps/{id}": 1,
    "/v1/sweeps/{id}/trials?limit={n}": 2,
    "/v1/sweeps/{id}/events?limit={n}": 2,
    "/v1/sweeps/{id}/leaderboard": 1,
    "/v1/sweeps?limit={n}": 1,
    "/v1/sweeps?limit={n}&state=SUCCEEDED": 1,
}
"""Path -> statements, of a sweep that is over and has been shown before."""
CREATE = 6
PASS = 26


@pytest.fixture(params=["sqlite", "postgresql"])
def plane(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Plane]:
    """Places for all, on both databases."""
    if request.param == "postgresql":
        settings = replace(settings, database_url=fresh_database(request.getfixturevalue("postgres")))
    yield from make_plane(settings, max_running_sweeps=10_000)


@pytest.fixture
def full(plane: Plane) -> Filled:
    """So many rows that loading them all would show."""
    return fill(plane.store, sweeps=120, trials=60, live=0)


@contextmanager
def told(loaded: Counter[str] | None = None) -> Iterator[list[str]]:
    """Statements sent to any database meanwhile; `loaded`: rows made into objects, by table."""
    statements: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if not statement.startswith("BEGIN"):
            statements.append(statement)

    def count(row: object, context: object) -> None:
        assert loaded is not None
        loaded[type(row).__tablename__] += 1  # type: ignore[attr-defined]

    event.listen(Engine, "before_cursor_execute", note)
    for model in (Sweep, Trial, Event) if loaded is not None else ():
        event.listen(model, "load", count)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)
        for model in (Sweep, Trial, Event) if loaded is not None else ():
            event.remove(model, "load", count)


def test_statements_of_a_request_do_not_grow_with_what_is_stored(plane: Plane, full: Filled) -> None:
    for path, most in REQUESTS.items():
        for number in (1, 50):
            where = path.format(id=full.ids[3], n=number)
            assert plane.client.get(where).status_code == 200  # known key, shown before
            loaded: Counter[str] = Counter()
            with told(loaded) as statements:
                assert plane.client.get(where).status_code == 200
            assert len(statements) <= most, (where, statements)
            assert all(rows <= 51 or "leaderboard" in path for rows in loaded.values()), (where, loaded)


def test_a_page_reads_what_it_has_not_shown_in_two_statements(plane: Plane, full: Filled) -> None:
    plane.client.get("/v1/sweeps?limit=1")
    loaded: Counter[str] = Counter()
    with told(loaded) as statements:
        page = plane.client.get("/v1/sweeps?limit=50").json()
    assert len(page["data"]) == 50 and len(statements) == 2 and loaded["sweeps"] <= 51
    assert page["data"][0] == {**plane.sweep(page["data"][0]["id"]), "result": None}


def test_what_first_requests_would_each_make_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("freeze", "set_threshold"):  # not those of the tests
        monkeypatch.setattr(gc, name, lambda *given: None)
    schemas_of_bodies.cache_clear()
    settle()
    assert schemas_of_bodies.cache_info().currsize == 1


def test_a_create_is_one_transaction_of_few_statements(plane: Plane, full: Filled) -> None:
    plane.client.get("/v1/sweeps?limit=1")
    with told() as statements:
        answer = plane.client.post("/v1/sweeps", json={**BODY, "name": "one"}, headers={"idempotency-key": "k"})
    assert answer.status_code == 202
    assert len(statements) <= CREATE, statements
    assert sum("INSERT INTO audit" in each for each in statements) == 1


def test_a_list_shows_every_change(plane: Plane) -> None:
    def listed() -> dict[str, object]:
        shown: dict[str, object] = plane.client.get("/v1/sweeps").json()["data"][0]
        return shown

    sweep_id = plane.post()["id"]
    assert listed()["state"] == "PENDING"
    plane.turn()
    driver = plane.drive(sweep_id).start()
    for number in range(3):
        driver.create(number)
        plane.turn()
        assert (listed()["trials"], listed()["state"]) == ({"RUNNING": number + 1}, "RUNNING")
    driver.end(0, value=0.5)
    driver.finish()
    plane.turn(2)
    assert (listed()["trials"], listed()["state"]) == ({"SUCCEEDED": 1, "CANCELLED": 2}, "SUCCEEDED")
    assert plane.sweep(sweep_id)["trials"] == {"SUCCEEDED": 1, "CANCELLED": 2}
    with plane.store.write() as session:  # as code of the revision before leaves it
        row = rows.lock_sweep(session, sweep_id)
        assert row is not None and row.trial_counts == {"SUCCEEDED": 1, "CANCELLED": 2}
        row.trial_counts = None
    assert listed()["trials"] == plane.sweep(sweep_id)["trials"] == {"SUCCEEDED": 1, "CANCELLED": 2}


@pytest.mark.quick
def test_what_was_shown_is_forgotten_before_it_is_too_much() -> None:
    shown = Shown(most_bytes=10)
    for number in range(4):
        shown.put(number, b"1234")
        shown.get([0])
    assert shown.get(range(4)) == {0: b"1234", 3: b"1234"}


def test_a_pass_with_nothing_to_do_costs_the_same_for_many(plane: Plane, full: Filled) -> None:
    sent = []
    for names in (make_live(plane.store, plane.settings, full.ids[1:4]), live_all(plane, full)):
        for name in names:
            plane.jobs.become(name, "RUNNING")
        plane.turn(4)
        plane.jobs.calls.clear()
        with told() as statements:
            plane.turn()
        assert plane.jobs.calls == ["list"], "one call of Ray, however many run"
        sent.append(len(statements))
    assert sent[0] == sent[1] <= PASS, sent


def live_all(plane: Plane, full: Filled) -> list[str]:
    """All but the first three."""
    return make_live(plane.store, plane.settings, full.ids[4:])


def test_a_long_journal_is_taken_in_parts_of_few_statements(plane: Plane, full: Filled) -> None:
    sweep_id = full.ids[1]
    (name,) = make_live(plane.store, plane.settings, [sweep_id])
    plane.jobs.become(name, "RUNNING")
    write_journal(plane.settings.run_dir(sweep_id), 3, 2500)
    taken = []
    with told() as statements:
        for _ in range(3):
            plane.turn()
            with plane.store.read() as session:
                taken.append(session.scalars(select(Attempt.journal_seq).where(Attempt.sweep_id == sweep_id)).one())
    assert taken == [2 + MOST_RECORDS, 2 + 2 * MOST_RECORDS, 2502]
    assert len(statements) <= 40 * len(taken), Counter(each[:40] for each in statements)
    assert plane.sweep(sweep_id)["trials"]["RUNNING"] == 100


@pytest.mark.quick
def test_what_follows_waits_for_all_that_was_written(settings: Settings) -> None:
    for plane in make_plane(settings):
        sweep_id = plane.post()["id"]
        plane.turn()
        driver = plane.drive(sweep_id).start()
        driver.attempt.append_many([("trial.progress", "", {"trial_id": "trl_0000", "number": 0}, "info")] * 1500)
        driver.finish()
        plane.turn()
        assert plane.sweep(sweep_id)["state"] == "RUNNING"
        plane.turn()
        assert plane.sweep(sweep_id)["state"] == "SUCCEEDED"
        assert plane.events(sweep_id).count("trial.progress") == 1500


@pytest.mark.quick
def test_between_two_passes_a_glance_takes_what_was_written_without_ray(settings: Settings) -> None:
    for plane in make_plane(settings):
        sweep_id = plane.post()["id"]
        plane.turn()
        driver = plane.drive(sweep_id).start()
        journal = driver.attempt.path / "journal"
        os.utime(journal, (100, 100))  # its time is as coarse as the kernel's clock: we are faster than that
        plane.turn()
        plane.jobs.calls.clear()
        supervisor = plane.reconciler._supervisor
        with told() as statements:
            assert not supervisor.glance()
        assert not statements, "nothing was written: no statement"
        driver.create(0)
        os.utime(journal, (200, 200))
        assert not supervisor.glance()
        assert plane.events(sweep_id)[-1] == "trial.created"
        driver.end(0, value=0.5)
        driver.finish()
        assert supervisor.glance(), "it ended"
        assert plane.sweep(sweep_id)["state"] == "SUCCEEDED" and not plane.jobs.calls


@pytest.mark.quick
def test_a_journal_is_not_listed_again_while_its_time_says_so_but_not_believed_for_ever(tmp_path: Path) -> None:
    clock = FakeClock()
    watch = Watch(clock)
    attempt = RunDir(tmp_path).claim(1)
    attempt.append("job.started", "")
    folder = attempt.path / "journal"
    os.utime(folder, (100, 100))  # long ago: what comes next changes it, however fast

    def seen(after_seq: int) -> int:
        sight = watch.look("a", attempt, after_seq=after_seq, spec_hash="", jobs={})
        return len(sight.records)

    assert seen(0) == 1
    assert seen(1) == 0
    clock.advance(3.0)
    assert seen(1) == 0
    before = folder.stat()
    attempt.append("job.phase", "")
    assert watch.grown() == ["a"]
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))  # a file system that says nothing changed
    assert seen(1) == 0
    clock.advance(31.0)
    assert seen(1) == 1


@pytest.mark.quick
def test_watchers_of_one_sweep_share_every_look(settings: Settings) -> None:
    for plane in make_plane(settings):
        sweep_id = plane.post()["id"]
        hub = Hub(plane.store, poll_s=0.05)

        async def watch(hub: Hub = hub, sweep_id: str = sweep_id, plane: Plane = plane) -> int:
            streams = [hub.stream(sweep_id, 0) for _ in range(40)]
            await asyncio.gather(*map(anext, streams))
            waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
            with told() as statements:
                await asyncio.sleep(0.2)
                looks = len(statements)
            with plane.store.write() as session:
                sweep = rows.lock_sweep(session, sweep_id)
                assert sweep is not None
                events.append(session, sweep, "trial.progress", "", now=plane.clock.now())
            await asyncio.gather(*waiting)
            await hub.close()
            return looks

        assert asyncio.run(watch()) <= 0.2 / 0.05 + 2, "a look each beat, not one for each of 40 watchers"


@pytest.mark.quick
def test_a_writer_that_waits_too_long_is_told(tmp_path: Path, migrated: Path) -> None:
    (tmp_path / "simpo.db").write_bytes(migrated.read_bytes())
    store = Store(f"sqlite:///{tmp_path / 'simpo.db'}", busy_timeout_s=0.02)
    holds, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store.write():
            holds.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert holds.wait(30)
    with pytest.raises(OperationalError, match="locked"), store.write():
        pass
    done.set()
    holder.join()
    with store.write():
        pass
    store.close()


def test_a_request_does_not_wait_until_the_use_of_its_key_is_noted(plane: Plane) -> None:
    key = create_key(plane.store, "busy")
    other = Store(plane.settings.database_url, busy_timeout_s=3600)  # as another process sees it; the test would hang

    def used() -> datetime | None:
        with other.read() as session:
            return session.scalars(select(ApiKey.last_used_at).where(ApiKey.name == "busy")).one()

    for holds in (plane.store, other):
        with holds.write() as session:
            session.scalars(select(ApiKey).where(ApiKey.name == "busy").with_for_update()).one()
            caller = Authenticator(other, plane.clock).caller(f"Bearer {key}")
            assert caller is not None and caller.name == "busy"
            assert used() is None
    assert Authenticator(other, plane.clock).caller(f"Bearer {key}") == caller
    assert used() == plane.clock.now()
    if other.is_sqlite:
        with other.read() as session:
            assert session.connection().exec_driver_sql("PRAGMA busy_timeout").scalar() == 3600 * 1000
    other.close()


def test_what_is_shown_is_what_its_model_says(plane: Plane, full: Filled) -> None:
    for model, shown in (
        (SweepOut, plane.sweep(full.ids[3])),
        (SweepOut, plane.client.get("/v1/sweeps?limit=1").json()["data"][0]),
        (TrialOut, plane.client.get(f"/v1/sweeps/{full.ids[3]}/trials?limit=1").json()["data"][0]),
    ):
        assert model.model_validate(shown, strict=True).model_dump(mode="json") == shown
