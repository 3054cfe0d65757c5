"""Row 10: the database goes away, is locked, or drops its connections, while clients ask and sweeps run."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from sqlalchemy import create_engine, text

from tests.service import postgres as server
from tests.service.faults.conftest import Make
from tests.service.faults.invariants import check
from tests.service.faults.world import Member, World, wait


def test_a_database_that_crashes_and_comes_back(on_postgres: Make, postgres: Path, undisturbed: Path) -> None:
    world = on_postgres(max_running_sweeps=3)
    world.reconciler()
    api = world.api()
    watcher = world.watch(world.post_sweep(api, "first"))
    with _clients_at_work(world, api):
        for _ in range(2):
            server.stop(postgres)
            try:
                wait(lambda: _probe(api, "readyz") == 503)
                assert _probe(api, "healthz") == 200, "alive, though not ready"
                _next_answer(world, 503)
            finally:
                server.start(postgres)
            wait(lambda: _probe(api, "readyz") == 200)
            _next_answer(world, 202)
    _answers_were_honest(world)
    world.settle()
    watcher.join(240)
    check(world, like=undisturbed)


def test_connections_that_are_cut_under_load(on_postgres: Make, postgres: Path, undisturbed: Path) -> None:
    world = on_postgres(max_running_sweeps=3)
    world.reconciler()
    api = world.api()
    cut = text("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'simpo'")
    admin = create_engine(server.socket_url(postgres, "postgres"), isolation_level="AUTOCOMMIT")
    with _clients_at_work(world, api), admin.connect() as connection:
        for _ in range(15):
            wait(lambda: connection.execute(cut).scalar_one() > 0)  # whoever was cut off comes back when it can
            threading.Event().wait(0.2)
    admin.dispose()
    _answers_were_honest(world)
    world.settle()
    check(world, like=undisturbed)


def test_a_database_that_somebody_else_locks(installation: Make, undisturbed: Path, tmp_path: Path) -> None:
    world = installation()
    world.reconciler()
    api = world.api()
    first = world.post_sweep(api, "first")
    world.until(first, "RUNNING", "SUCCEEDED")
    somebody = sqlite3.connect(tmp_path / "simpo.db", isolation_level=None, timeout=120)
    with _clients_at_work(world, api):
        somebody.execute("BEGIN EXCLUSIVE")
        try:
            _next_answer(world, 503)
            assert world.history.ask(api.url, "GET", f"/v1/sweeps/{first}").status == 200, "reads go on"
            assert (_probe(api, "healthz"), _probe(api, "readyz")) == (200, 200)
        finally:
            somebody.execute("ROLLBACK")
            somebody.close()
        _next_answer(world, 202)
    _answers_were_honest(world)
    world.settle()
    check(world, like=undisturbed)


def test_a_start_needs_no_lock_where_nothing_is_to_be_migrated(installation: Make, tmp_path: Path) -> None:
    world = installation()
    somebody = sqlite3.connect(tmp_path / "simpo.db", isolation_level=None)
    somebody.execute("BEGIN EXCLUSIVE")
    api = world.api()
    assert world.history.ask(api.url, "GET", "/v1/sweeps").status == 200
    somebody.close()


@contextmanager
def _clients_at_work(world: World, api: Member) -> Iterator[None]:
    """Four clients that order one sweep after another, each until it is accepted, and cancel every second one."""
    over = threading.Event()

    def work(client: int) -> None:
        n = 0
        while not over.is_set():
            sweep_id = world.post_sweep(api, f"c{client}-{n}")
            if n % 4:
                world.cancel(api, sweep_id)
            world.history.ask(api.url, "GET", f"/v1/sweeps/{sweep_id}")
            n += 1
            over.wait(0.3)

    clients = [threading.Thread(target=work, args=(client,)) for client in range(4)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        over.set()
        for client in clients:
            client.join(240)


def _next_answer(world: World, status: int) -> None:
    seen = len(world.history.calls)
    wait(lambda: any(call.status == status for call in world.history.calls[seen:]))


def _answers_were_honest(world: World) -> None:
    """Every refusal says that, and when, asking again may help; nothing was a 500."""
    assert {call.status for call in world.history.calls} <= {0, 200, 202, 409, 503}
    for call in world.history.calls:
        if call.status == 503:
            assert (call.answer["code"], call.answer["retryable"]) == ("database_unavailable", True)
            assert int(call.headers["retry-after"]) > 0


def _probe(api: Member, path: str) -> int:
    return httpx.get(f"{api.url}/{path}", trust_env=False, timeout=120).status_code
