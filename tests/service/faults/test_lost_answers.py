"""Row 15: Ray's answer to a submission is lost, in each of the four ways that were measured. One job, adopted."""

from pathlib import Path

import pytest

from service.ids import submission_id
from tests.service.faults.conftest import Make
from tests.service.faults.invariants import check
from tests.service.faults.world import wait

PATIENCE_S = 1.0


@pytest.mark.parametrize("manner", ["lost", "unsaid", "slow", "late"])
def test_one_job_whatever_became_of_the_answer(installation: Make, undisturbed: Path, manner: str) -> None:
    world = installation()
    world.ray.script(manner, patience_s=PATIENCE_S)
    world.reconciler(ray_timeout_s=PATIENCE_S)
    sweep_id = world.post_sweep(world.api(), "one")
    world.until(sweep_id, "SUCCEEDED")
    world.settle()
    assert world.ray.created() == [submission_id(sweep_id, 1)]
    check(world, like=undisturbed)


def test_many_in_a_row_of_all_kinds(on_both: Make, undisturbed: Path) -> None:
    world = on_both(max_running_sweeps=4)
    world.ray.script(*["lost", "unsaid", "late", "lost", "slow", "unsaid", "lost", "late"], patience_s=PATIENCE_S)
    world.reconciler(ray_timeout_s=PATIENCE_S)
    api = world.api()
    ids = [world.post_sweep(api, f"s{n}") for n in range(4)]
    world.settle()
    assert [world.row(sweep_id).state for sweep_id in ids] == ["SUCCEEDED"] * 4
    assert sorted(world.ray.created()) == sorted(submission_id(sweep_id, 1) for sweep_id in ids)
    check(world, like=undisturbed)


def test_cancelled_while_its_submission_is_on_the_way(installation: Make) -> None:
    world = installation()
    world.hold()
    world.ray.script("late", patience_s=PATIENCE_S)
    world.reconciler(ray_timeout_s=PATIENCE_S)
    api = world.api()
    sweep_id = world.post_sweep(api, "one")
    wait(lambda: world.row(sweep_id).attempt == 1)  # whoever has noted that hands it to Ray, whatever comes now
    world.cancel(api, sweep_id)
    world.until(sweep_id, "CANCELLED")
    wait(lambda: world.ray.jobs() == {submission_id(sweep_id, 1): "STOPPED"})  # it turns up later, and does not run on
    world.settle()
    check(world)
