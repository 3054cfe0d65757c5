"""Row 1: kill -9 of the API, between request and commit, between commit and answer, and anywhere; clients ask again."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.service.faults.conftest import Make
from tests.service.faults.invariants import check
from tests.service.faults.toy_driver import body
from tests.service.faults.world import Member, World, wait


@pytest.mark.parametrize("place", ["post.before_commit", "post.after_commit"])
def test_between_request_and_answer(on_both: Make, undisturbed: Path, place: str) -> None:
    world = on_both()
    world.reconciler()
    wish, dying = body("one"), world.api(place)
    assert world.history.ask(dying.url, "POST", "/v1/sweeps", key="k", body=wish).status == 0
    dying.died()
    dying = world.api(place)
    first = world.history.ask(dying.url, "POST", "/v1/sweeps", key="k", body=wish)
    if place == "post.before_commit":
        assert first.status == 0, "nothing was stored, so it is tried again, and dies again"
        dying.died()
        dying = world.api()
        first = world.history.ask(dying.url, "POST", "/v1/sweeps", key="k", body=wish)
        assert "idempotency-replayed" not in first.headers
    else:
        assert first.headers["idempotency-replayed"] == "true", "it was stored, and is only answered once more"
    assert first.status == 202
    world.settle()
    dying.kill()
    check(world, like=undisturbed)


def test_an_api_anywhere_while_clients_ask_and_watch(on_postgres: Make, undisturbed: Path) -> None:
    world = on_postgres(max_running_sweeps=3)
    world.reconciler()
    _kill_five_times(world, world.api, undisturbed)


def test_the_whole_service_anywhere_while_clients_ask_and_watch(installation: Make, undisturbed: Path) -> None:
    world = installation(max_running_sweeps=3)
    _kill_five_times(world, partial(world.api, whole=True), undisturbed)


def _kill_five_times(world: World, start: Callable[[], Member], undisturbed: Path) -> None:
    chance = random.Random(20260902)
    api = start()
    watchers = [world.watch(world.post_sweep(api, "watched"))]
    over = threading.Event()
    ordered: list[int] = []

    def ask(n: int) -> None:
        sweep_id = world.post_sweep(api, f"s{n}")  # the port stays the same over all restarts
        if n % 3 == 0:
            world.cancel(api, sweep_id)
        ordered.append(n)
        while not over.is_set():
            world.history.ask(api.url, "GET", f"/v1/sweeps/{sweep_id}", patience_s=5)
            over.wait(0.1)

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask, n) for n in range(6)]
        try:
            member = api
            for _ in range(5):
                threading.Event().wait(chance.uniform(0.0, 0.5))
                member.kill()
                member = start()
            wait(lambda: len(ordered) == 6, told=lambda: ordered)  # what is ordered later is over later
            world.settle()
        finally:
            over.set()
    for each in [*(future.result for future in asking), *(watcher.join for watcher in watchers)]:
        each(timeout=240)
    check(world, like=undisturbed)
