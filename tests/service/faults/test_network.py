"""Row 14: the network between reconciler and Ray, and between API and database: cut, deaf in one direction, slow."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from service.ids import submission_id
from service.settings import Settings
from tests.service.faults.conftest import Make
from tests.service.faults.invariants import check
from tests.service.faults.proxy import Manner, Proxy
from tests.service.faults.world import Member, World, wait

PATIENCE_S = 1.0


@pytest.mark.parametrize("manner", ["refuse", "swallow", "one-way", "late"])
def test_between_reconciler_and_ray_while_it_submits(installation: Make, undisturbed: Path, manner: Manner) -> None:
    world = installation()
    with _ray_behind(world) as (proxy, settings):
        world.reconciler(settings=settings, ray_timeout_s=PATIENCE_S)
        api = world.api()
        proxy.become(manner)
        sweep_id = world.post_sweep(api, "one")
        wait(lambda: world.row(sweep_id).reason == "RAY_UNREACHABLE")
        shown = world.history.ask(api.url, "GET", f"/v1/sweeps/{sweep_id}")
        assert (shown.status, shown.answer["state"]) == (200, "PENDING")
        since = _stale_since(world, api, sweep_id)
        assert _stale_since(world, api, sweep_id) == since, "of the first silent look"
        if manner in ("one-way", "late"):
            wait(lambda: world.ray.created() == [submission_id(sweep_id, 1)])  # it arrived, and nobody knows
        proxy.become("open")
        world.until(sweep_id, "SUCCEEDED")
        assert world.row(sweep_id).stale_since is None
        world.settle()
        assert world.ray.created() == [submission_id(sweep_id, 1)]
        check(world, like=undisturbed)


@pytest.mark.parametrize("manner", ["refuse", "swallow", "one-way"])
def test_between_reconciler_and_ray_while_it_looks(installation: Make, undisturbed: Path, manner: Manner) -> None:
    world = installation()
    world.hold()
    with _ray_behind(world) as (proxy, settings):
        world.reconciler(settings=settings, ray_timeout_s=PATIENCE_S)
        api = world.api()
        sweep_id, other = world.post_sweep(api, "one"), world.post_sweep(api, "other")
        world.until(sweep_id, "RUNNING")
        world.until(other, "RUNNING")
        proxy.become(manner)
        wait(lambda: world.row(sweep_id).reason == "RAY_UNREACHABLE")
        assert _stale_since(world, api, sweep_id) and _stale_since(world, api, other)
        assert world.cancel(api, other).status == 202
        world.release()
        world.until(sweep_id, "SUCCEEDED")  # what the driver writes is read, Ray or not
        assert world.row(sweep_id).stale_since is None, "what is over is no guess"
        assert world.row(other).state != "CANCELLED", "not before Ray has confirmed it"
        assert _stale_since(world, api, other)
        proxy.become("open")
        world.settle()
        assert (world.row(other).state, world.row(other).stale_since) == ("CANCELLED", None)
        check(world, like=undisturbed)


def test_a_slow_network_only_makes_it_slow(installation: Make, undisturbed: Path) -> None:
    world = installation()
    with _ray_behind(world) as (proxy, settings):
        world.reconciler(settings=settings)
        proxy.become("slow")
        sweep_id = world.post_sweep(world.api(), "one")
        world.until(sweep_id, "SUCCEEDED")
        assert world.row(sweep_id).attempt == 1
        proxy.become("open")
        world.settle()
        check(world, like=undisturbed)


@pytest.mark.parametrize("manner", ["refuse", "swallow", "one-way"])
def test_between_api_and_database(on_postgres: Make, postgres: Path, undisturbed: Path, manner: Manner) -> None:
    world = on_postgres()
    world.reconciler()
    with Proxy(postgres / ".s.PGSQL.5432") as proxy:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/simpo"
        api = world.api(settings=replace(world.settings, database_url=url))
        first = world.post_sweep(api, "first")
        proxy.become(manner)
        with ThreadPoolExecutor(60) as pool:  # more than the API has threads
            asked = [pool.submit(world.post_sweep, api, f"s{n}") for n in range(60)]
            threading.Event().wait(1.0)
            assert min(_healthy_after(api) for _ in range(3)) < 5, "alive, whatever its database does"
            proxy.become("open")
            ids = [future.result(timeout=300) for future in asked]
        assert {call.status for call in world.history.calls} <= {0, 202, 409, 503}
        for sweep_id in ids:
            assert world.cancel(api, sweep_id).status in (202, 409)
        world.until(first, "SUCCEEDED")
        world.settle()
        check(world, like=undisturbed)


def test_between_reconciler_and_database(on_postgres: Make, postgres: Path, undisturbed: Path) -> None:
    world = on_postgres()
    world.hold()
    with Proxy(postgres / ".s.PGSQL.5432") as proxy:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/simpo"
        world.reconciler(settings=replace(world.settings, database_url=url))
        sweep_id = world.post_sweep(world.api(), "one")
        world.until(sweep_id, "RUNNING")
        proxy.become("swallow")
        world.reconciler()  # takes over when the lease has run out
        world.release()
        world.until(sweep_id, "SUCCEEDED")
        proxy.become("open")  # the first one is back, and finds that it does not lead
        world.settle()
        check(world, like=undisturbed)


def test_a_mark_goes_with_the_next_answer(installation: Make, undisturbed: Path) -> None:
    world = installation()
    world.hold()
    with _ray_behind(world) as (proxy, settings):
        world.reconciler(settings=settings, ray_timeout_s=PATIENCE_S)
        api = world.api()
        sweep_id = world.post_sweep(api, "one")
        world.until(sweep_id, "RUNNING")
        assert world.row(sweep_id).stale_since is None
        proxy.become("refuse")
        _stale_since(world, api, sweep_id)
        proxy.become("open")
        wait(lambda: world.row(sweep_id).stale_since is None)
        wait(lambda: world.row(sweep_id).reason != "RAY_UNREACHABLE")
        world.release()
        world.settle()
        check(world, like=undisturbed)


def _healthy_after(api: Member) -> float:
    """Seconds until it said so; of several looks the shortest counts, for any process may be held up once."""
    begun = time.monotonic()
    assert httpx.get(f"{api.url}/healthz", trust_env=False, timeout=120).status_code == 200
    return time.monotonic() - begun


def _stale_since(world: World, api: Member, sweep_id: str) -> str:
    """What clients are shown, as soon as a look at Ray has failed."""
    wait(lambda: world.row(sweep_id).stale_since is not None)
    since = world.history.ask(api.url, "GET", f"/v1/sweeps/{sweep_id}").answer["stale_since"]
    assert isinstance(since, str)
    return since


@contextmanager
def _ray_behind(world: World) -> Iterator[tuple[Proxy, Settings]]:
    with Proxy(("127.0.0.1", world.ray.port)) as proxy:
        yield proxy, replace(world.settings, ray_jobs_url=f"http://127.0.0.1:{proxy.port}")
