"""Row 12: duplicate, reordered and racing requests, to two APIs over one database."""

import itertools
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from service.local_process import free_ports
from tests.service.faults.conftest import Make
from tests.service.faults.history import Call
from tests.service.faults.invariants import check
from tests.service.faults.toy_driver import body


def test_fifty_posts_of_one_key_at_two_apis_make_one_sweep(on_both: Make, undisturbed: Path) -> None:
    world = on_both()
    urls = [world.api().url, world.api(port=free_ports(1)[0]).url]
    first = _at_once(50, lambda n: world.history.ask(urls[n % 2], "POST", "/v1/sweeps", key="k", body=body("one")))
    assert {call.status for call in first} <= {202, 409}
    assert all(call.answer["code"] == "idempotency_key_in_flight" for call in first if call.status == 409)
    again = world.history.insist(urls[0], "POST", "/v1/sweeps", key="k", body=body("one"))
    assert again.headers["idempotency-replayed"] == "true"
    assert {call.answer["id"] for call in first if call.status == 202} == {again.answer["id"]}
    other = world.history.ask(urls[1], "POST", "/v1/sweeps", key="k", body=body("another"))
    assert (other.status, other.answer["code"]) == (422, "idempotency_key_reused")
    cancel = world.history.ask(urls[1], "POST", f"/v1/sweeps/{again.answer['id']}/cancel", key="k")
    assert cancel.status == 422, "a key belongs to one request, not to one path"
    world.reconciler()
    world.settle()
    check(world, like=undisturbed)


def test_one_key_with_many_bodies_takes_the_first_alone(on_both: Make, undisturbed: Path) -> None:
    world = on_both()
    urls = [world.api().url, world.api(port=free_ports(1)[0]).url]
    calls = _at_once(24, lambda n: world.history.insist(urls[n % 2], "POST", "/v1/sweeps", key="k", body=body(f"s{n}")))
    assert sorted(call.status for call in calls) == [202, *[422] * 23]
    world.reconciler()
    world.settle()
    check(world, like=undisturbed)


def test_a_cancel_wins_every_race_that_it_does_not_come_too_late_for(on_both: Make, undisturbed: Path) -> None:
    world = on_both(max_running_sweeps=3)
    api = world.api()
    world.reconciler()
    chance = random.Random(20260901)
    pauses = [chance.uniform(0.0, 2.0) for _ in range(8)]

    def one(n: int) -> Call:
        sweep_id = world.post_sweep(api, f"s{n}")
        threading.Event().wait(pauses[n])
        return world.cancel(api, sweep_id)

    calls = _at_once(8, one)
    world.settle()
    for call in calls:
        assert (call.status == 202) == (world.row(call.path.split("/")[3]).state == "CANCELLED"), call
    # Requests that come late, and once more: the first POST of what is cancelled by now.
    for call in [call for call in world.history.calls if call.path == "/v1/sweeps"]:
        late = world.history.insist(api.url, "POST", "/v1/sweeps", key=call.key, body=call.body)
        assert (late.status, late.headers["idempotency-replayed"]) == (202, "true")
    check(world, like=undisturbed)


def _at_once(number: int, do: Callable[[int], Call]) -> Sequence[Call]:
    barrier = threading.Barrier(number)

    def started(n: int) -> Any:
        barrier.wait(60)
        return do(n)

    with ThreadPoolExecutor(number) as pool:
        return list(itertools.chain(pool.map(started, range(number))))
