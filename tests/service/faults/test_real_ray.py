"""Rows 4, 5, 8 and 15 on a real Ray head: its death with and without memory, an orphan, an answer that is lost."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from service.ids import submission_id
from sweeps.run_dir import RunDir, read_journal
from tests.service.faults.conftest import Make
from tests.service.faults.invariants import check
from tests.service.faults.proxy import Proxy
from tests.service.faults.real_ray import RealRay
from tests.service.faults.world import MIDWAY, lives, wait

pytestmark = pytest.mark.ray


def test_a_lost_answer_then_a_lost_head_then_an_orphan(installation: Make, undisturbed: Path) -> None:
    world = installation(ray=RealRay)
    world.hold(*MIDWAY)
    with Proxy(("127.0.0.1", world.ray.port)) as proxy:
        world.reconciler(
            settings=replace(world.settings, ray_jobs_url=f"http://127.0.0.1:{proxy.port}"), ray_timeout_s=5.0
        )
        api = world.api()
        proxy.become("one-way")
        (world.home / "escape").touch()
        one = world.post_sweep(api, "one")
        wait(lambda: len(world.starts()) == 1)
        wait(lambda: world.row(one).reason == "RAY_UNREACHABLE")
        proxy.become("open")
        (world.home / "escape").unlink()
        two = world.post_sweep(api, "two")
        world.midway(one, two)
        assert world.ray.jobs() == {submission_id(sweep_id, 1): "RUNNING" for sweep_id in (one, two)}

        orphan = world.starts()[0]["pid"]
        os.kill(orphan, signal.SIGSTOP)
        world.ray.kill(spare=[orphan])
        world.ray.start()
        for sweep_id in (one, two):
            second = RunDir(world.settings.run_dir(sweep_id)).attempt(2)
            wait(lambda second=second: len(read_journal(second)) > 2)  # type: ignore[misc]
        os.kill(orphan, signal.SIGCONT)
        wait(lambda: not lives(orphan))
        world.release()
        world.settle()
    for sweep_id in (one, two):
        assert (world.row(sweep_id).state, world.row(sweep_id).attempt) == ("SUCCEEDED", 2)
    check(world, like=undisturbed)


def test_a_head_that_remembers_a_job_that_died_with_it(installation: Make, undisturbed: Path) -> None:
    world = installation(ray=RealRay, keep=True, heartbeat_hung_s=12.0)
    world.hold(*MIDWAY)
    reconciler = world.reconciler()
    sweep_id = world.post_sweep(world.api(), "one")
    world.midway(sweep_id)
    reconciler.signal(signal.SIGSTOP)  # or it might ask for the end of that job before we look
    world.ray.kill()
    world.ray.start(keep=True)
    assert world.ray.jobs() == {submission_id(sweep_id, 1): "RUNNING"}, "a lie"
    reconciler.signal(signal.SIGCONT)
    world.release()
    world.settle()
    assert (world.row(sweep_id).state, world.row(sweep_id).attempt) == ("SUCCEEDED", 2)
    check(world, like=undisturbed)
