"""Row 13: the wall clocks of API, reconciler and drivers jump, each for itself. Nothing expires, order is by number."""

import itertools
from pathlib import Path

import pytest

from service.models import Event
from tests.service.faults.conftest import Make
from tests.service.faults.invariants import check, gather
from tests.service.faults.toy_driver import body
from tests.service.faults.world import World

JUMPS_S = (3600.0, -3600.0, 172_800.0, -172_800.0)


def test_the_apis_clock_is_set_while_clients_ask(on_both: Make, undisturbed: Path) -> None:
    world = on_both()
    world.reconciler()
    api = world.api(clock="api-clock")
    first = world.post_sweep(api, "before")
    for n, jump_s in enumerate(JUMPS_S):
        world.set_clock("api-clock", jump_s)
        world.post_sweep(api, f"s{n}")
        again = world.history.insist(api.url, "POST", "/v1/sweeps", key="key-before", body=body("before"))
        assert (again.status, again.headers["idempotency-replayed"]) == (202, "true")
    world.settle()
    listed = world.history.ask(api.url, "GET", "/v1/sweeps?limit=2")
    found = [sweep["id"] for sweep in listed.answer["data"]]
    while listed.answer["has_more"]:
        listed = world.history.ask(api.url, "GET", f"/v1/sweeps?limit=2&after={found[-1]}")
        found += [sweep["id"] for sweep in listed.answer["data"]]
    assert len(found) == len(set(found)) == 1 + len(JUMPS_S)
    assert first in found
    check(world, like=undisturbed)


def test_the_reconcilers_clock_is_set_while_sweeps_run(on_both: Make, undisturbed: Path) -> None:
    world = on_both()
    world.hold(1, 8)
    world.reconciler(clock="reconciler-clock")
    api = world.api()
    kept, cancelled = (world.post_sweep(api, name) for name in ("kept", "cancelled"))
    for sweep_id in (kept, cancelled):
        world.until(sweep_id, "RUNNING")
    for jump_s in JUMPS_S:
        world.set_clock("reconciler-clock", jump_s)
        world.post_sweep(api, f"by{jump_s:.0f}".replace("-", "minus"))  # wakes nobody; what waits is looked at
    world.cancel(api, cancelled)
    world.release()
    world.settle()
    assert (world.row(kept).state, world.row(kept).attempt) == ("SUCCEEDED", 1), "no heart was lost"
    check(world, like=undisturbed)


def test_a_reconciler_that_starts_in_two_days_forgets_no_key(installation: Make, undisturbed: Path) -> None:
    world = installation()
    api = world.api()
    first = world.post_sweep(api, "one")
    world.set_clock("reconciler-clock", 172_800.0)
    world.reconciler(clock="reconciler-clock")
    world.until(first, "SUCCEEDED")
    assert world.post_sweep(api, "one") == first
    world.settle()
    check(world, like=undisturbed)


@pytest.mark.parametrize("jump_s", [172_800.0, -172_800.0])
def test_a_drivers_clock_is_wrong(installation: Make, undisturbed: Path, jump_s: float) -> None:
    world = installation()
    world.set_clock("clock", jump_s)
    world.reconciler()
    sweep_id = world.post_sweep(world.api(), "one")
    world.settle()
    assert (world.row(sweep_id).state, world.row(sweep_id).attempt) == ("SUCCEEDED", 1)
    moments = [event.created_at for event in _events(world, sweep_id)]
    assert any(later < earlier for earlier, later in itertools.pairwise(moments)), "order is by number, not by time"
    check(world, like=undisturbed)


def _events(world: World, sweep_id: str) -> list[Event]:
    return gather(world).events[sweep_id]
