"""What comes too late, and does not count: a submission of a frozen leader, the records of an orphan."""

import pytest
from sqlalchemy import update

from service.models import Lease
from service.reconcile import Reconciler
from tests.service.conftest import Plane

pytestmark = pytest.mark.quick


def test_a_job_that_a_frozen_leader_submits_after_minutes_is_stopped(plane: Plane) -> None:
    sweep_id = plane.post()["id"]
    name = f"{sweep_id.replace('_', '-')}-a1"

    def stands_still(place: str) -> None:
        if place != "after_spec":
            return
        _end_leases(plane)
        plane.client.post(f"/v1/sweeps/{sweep_id}/cancel")
        plane.turn()
        assert plane.sweep(sweep_id)["state"] == "CANCELLED"
        plane.clock.advance(3600)
        plane.turn(2)
        assert plane.attempts(sweep_id)[0].released_at is not None, "nobody waits for it any more"

    frozen = Reconciler(
        store=plane.store,
        jobs=plane.jobs,
        deployer=plane.deployer,
        settings=plane.settings,
        clock=plane.clock,
        failpoint=stands_still,
    )
    frozen.run_once()
    assert plane.jobs.jobs[name].status == "RUNNING", "it woke up and submitted"
    plane.turn(2)
    assert plane.jobs.jobs[name].status == "STOPPED"
    plane.turn(2)
    plane.jobs.calls.clear()
    plane.turn(2)
    assert plane.jobs.calls == []


def test_what_an_orphan_writes_after_its_successor_has_read_is_nobodys(plane: Plane) -> None:
    sweep_id = plane.post()["id"]
    plane.turn()
    orphan = plane.drive(sweep_id).start()
    orphan.create(0)
    orphan.create(1)
    plane.turn()
    plane.jobs.become(f"{sweep_id.replace('_', '-')}-a1", "FAILED")
    plane.turn(23)
    orphan.end(0, value=0.4)  # its successor reads that
    successor = plane.drive(sweep_id, 2).start()
    orphan.end(1, value=0.9)  # and not that
    plane.turn()
    successor.create(1)
    successor.end(1, value=0.2)
    plane.turn()
    trials = plane.client.get(f"/v1/sweeps/{sweep_id}/trials").json()["data"]
    assert [(trial["attempt"], trial["value"]) for trial in trials] == [(1, 0.4), (2, 0.2)]


def _end_leases(plane: Plane) -> None:
    """As time does, by the database's clock."""
    with plane.store.write() as session:
        session.execute(update(Lease).values(until=0.0))
