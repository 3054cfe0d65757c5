"""Rows 4, 5 and 8 with Ray's stand-in: the head dies, with its drivers or without; and orphans come back.

`test_real_ray.py` has the same with a real one.
"""

import os
import signal
from pathlib import Path

import pytest

from service.ids import submission_id
from sweeps.run_dir import RunDir, read_journal
from tests.service.faults.conftest import Make
from tests.service.faults.invariants import check
from tests.service.faults.world import MIDWAY, lives, wait


def test_a_head_without_memory_and_its_drivers_die(on_both: Make, undisturbed: Path) -> None:
    world = on_both()
    world.hold(*MIDWAY)
    world.reconciler()
    api = world.api()
    ids = [world.post_sweep(api, name) for name in ("one", "two")]
    world.midway(*ids)
    world.ray.kill()
    world.kill_drivers()
    world.release()
    world.ray.start()
    world.settle()
    for sweep_id in ids:
        assert (world.row(sweep_id).state, world.row(sweep_id).attempt) == ("SUCCEEDED", 2)
    check(world, like=undisturbed, heads=2)


def test_drivers_that_outlive_their_head_are_believed_over_it(installation: Make, undisturbed: Path) -> None:
    world = installation(heartbeat_stale_s=120.0)  # a heart may be slow here
    world.hold(*MIDWAY)
    world.reconciler()
    sweep_id = world.post_sweep(world.api(), "one")
    world.midway(sweep_id)
    world.ray.kill()
    world.ray.start()
    wait(lambda: world.row(sweep_id).reason == "DRIVER_GONE")
    world.release()
    world.settle()
    assert (world.row(sweep_id).state, world.row(sweep_id).attempt) == ("SUCCEEDED", 1)
    check(world, like=undisturbed, heads=2)


def test_a_cancel_reaches_a_driver_that_ray_has_forgotten(installation: Make) -> None:
    world = installation()
    world.hold(*MIDWAY)
    world.reconciler()
    api = world.api()
    sweep_id = world.post_sweep(api, "one")
    world.midway(sweep_id)
    world.ray.kill()
    world.ray.start()
    assert world.cancel(api, sweep_id).status == 202
    world.until(sweep_id, "CANCELLED")
    wait(lambda: not lives(world.starts()[0]["pid"]))
    world.settle()
    check(world, heads=2)


@pytest.mark.parametrize("wish", ["run", "cancel"])
def test_a_head_that_remembers_says_running_and_is_not_believed(
    installation: Make, undisturbed: Path, wish: str
) -> None:
    world = installation(keep=True, heartbeat_hung_s=12.0)
    world.hold(*MIDWAY)
    reconciler = world.reconciler()
    api = world.api()
    sweep_id = world.post_sweep(api, "one")
    world.midway(sweep_id)
    reconciler.signal(signal.SIGSTOP)  # or it might ask for the end of that job before we look
    world.ray.kill()
    world.kill_drivers()
    world.ray.start(keep=True)
    assert world.ray.jobs() == {submission_id(sweep_id, 1): "RUNNING"}, "a lie"
    reconciler.signal(signal.SIGCONT)
    world.release()
    if wish == "cancel":
        world.cancel(api, sweep_id)
    world.settle()
    expected = ("SUCCEEDED", 2) if wish == "run" else ("CANCELLED", 1)
    assert (world.row(sweep_id).state, world.row(sweep_id).attempt) == expected
    check(world, like=undisturbed)


def test_an_orphan_that_wakes_up_while_its_successor_works_changes_nothing(on_both: Make, undisturbed: Path) -> None:
    world = on_both()
    world.hold(*MIDWAY)
    world.reconciler()
    sweep_id = world.post_sweep(world.api(), "one")
    world.midway(sweep_id)
    orphan = world.starts()[0]["pid"]
    os.kill(orphan, signal.SIGSTOP)
    world.ray.kill()
    world.ray.start()
    wait(lambda: any(start["attempt"] == 2 for start in world.starts()))
    wait(lambda: len(read_journal(RunDir(world.settings.run_dir(sweep_id)).attempt(2))) > 2)
    os.kill(orphan, signal.SIGCONT)
    wait(lambda: not lives(orphan))  # before the release: with nothing to hold it, it could end before its next beat
    world.release()
    world.settle()
    late = read_journal(RunDir(world.settings.run_dir(sweep_id)).attempt(1))
    assert (late[-1]["type"], late[-1]["data"]["reason"]) == ("job.stopped", "a newer attempt has taken over")
    assert (world.row(sweep_id).state, world.row(sweep_id).attempt) == ("SUCCEEDED", 2)
    check(world, like=undisturbed, heads=2)


def test_an_orphan_that_heeds_nothing_writes_to_the_end_and_is_not_accepted(
    installation: Make, undisturbed: Path
) -> None:
    world = installation()
    world.hold(*MIDWAY)
    world.reconciler()
    (world.home / "deaf").touch()
    sweep_id = world.post_sweep(world.api(), "one")
    world.midway(sweep_id)
    (world.home / "deaf").unlink()
    world.ray.kill()
    world.ray.start()
    wait(lambda: any(start["attempt"] == 2 for start in world.starts()))
    wait(lambda: len(read_journal(RunDir(world.settings.run_dir(sweep_id)).attempt(2))) > 2)
    world.release()  # both go on, side by side
    world.settle()
    wait(lambda: not lives(world.starts()[0]["pid"]))
    assert "its result is not accepted" in world.logs()[f"{submission_id(sweep_id, 1)}.log"]
    assert (world.row(sweep_id).state, world.row(sweep_id).attempt) == ("SUCCEEDED", 2)
    check(world, like=undisturbed, heads=2)
