"""Row 2: kill -9 of the reconciler at every place of its work, and what the next one makes of it."""

from pathlib import Path

import pytest

from service.ids import submission_id
from tests.service.faults.conftest import Make
from tests.service.faults.invariants import check
from tests.service.faults.world import wait

BEFORE_RAY = ("before_intent", "after_intent", "after_spec")
PLACES = (*BEFORE_RAY, "after_submit", "after_record", "before_ingest", "after_ingest")


def test_at_every_place_of_a_sweeps_life(on_both: Make, undisturbed: Path) -> None:
    world = on_both()
    world.hold()
    api = world.api()
    sweep_id = world.post_sweep(api, "one")
    for place in PLACES:
        world.reconciler(place).died()
        if place in BEFORE_RAY:
            assert world.ray.created() == [], place
    world.release()
    world.reconciler()
    world.until(sweep_id, "SUCCEEDED")
    world.settle()
    assert world.ray.created() == [submission_id(sweep_id, 1)], "one job, whoever submitted it"
    check(world, like=undisturbed)


def test_in_the_middle_of_a_cancel(on_both: Make) -> None:
    world = on_both()
    world.hold()
    api, reconciler = world.api(), world.reconciler("mid_cancel")
    sweep_id = world.post_sweep(api, "one")
    world.until(sweep_id, "RUNNING")
    assert world.cancel(api, sweep_id).status == 202
    reconciler.died()
    assert world.row(sweep_id).state == "CANCELLING"
    world.reconciler()
    world.until(sweep_id, "CANCELLED")
    world.settle()
    assert world.ray.jobs() == {submission_id(sweep_id, 1): "STOPPED"}
    check(world)


def test_in_the_middle_of_a_deployment(installation: Make, undisturbed: Path) -> None:
    world = installation()
    api, reconciler = world.api(), world.reconciler("mid_deploy")
    sweep_id = world.post_sweep(api, "one")
    world.until(sweep_id, "SUCCEEDED")
    wish = {"name": "best", "sweep": sweep_id}
    made = world.history.insist(api.url, "POST", "/v1/deployments", key="d", body=wish)
    assert made.status == 202
    reconciler.died()
    path = f"/v1/deployments/{made.answer['id']}"
    assert world.history.ask(api.url, "GET", path).answer["state"] == "PENDING", "Serve has it, nobody has seen it"
    world.reconciler()
    wait(lambda: world.history.ask(api.url, "GET", path).answer["state"] == "READY")
    assert list(world.ray.applications()) == [made.answer["id"]]
    again = world.history.insist(api.url, "POST", "/v1/deployments", key="d", body=wish)
    assert again.answer["id"] == made.answer["id"]
    assert world.history.ask(api.url, "DELETE", path).acknowledged
    wait(lambda: world.history.ask(api.url, "GET", path).answer["state"] == "DELETED")
    assert world.ray.applications() == {}
    world.settle()  # the driver, too, has left
    check(world, like=undisturbed)


@pytest.mark.parametrize("place", ["after_submit", "before_ingest"])
def test_twice_at_the_same_place(installation: Make, undisturbed: Path, place: str) -> None:
    world = installation()
    sweep_id = world.post_sweep(world.api(), "one")
    for _ in range(2):
        world.reconciler(place).died()
    world.reconciler()
    world.until(sweep_id, "SUCCEEDED")
    world.settle()
    assert world.ray.created() == [submission_id(sweep_id, 1)]
    check(world, like=undisturbed)
