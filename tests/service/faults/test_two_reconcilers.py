"""Row 3: the leader stands still beyond its lease, another takes over, the first goes on where it was."""

import signal
import threading
from pathlib import Path

import pytest

from service.ids import submission_id
from service.local_process import free_ports
from tests.service.faults.conftest import Make
from tests.service.faults.invariants import check
from tests.service.faults.world import wait


@pytest.mark.parametrize("place", ["before_intent", "after_intent", "after_spec", "after_submit", "before_ingest"])
def test_the_first_goes_on_while_the_second_works(on_postgres: Make, undisturbed: Path, place: str) -> None:
    world = on_postgres()
    world.hold()
    sweep_id = world.post_sweep(world.api(), "one")
    first = world.reconciler(f"stop:{place}")
    first.stopped()
    world.reconciler()
    world.until(sweep_id, "RUNNING")
    first.signal(signal.SIGCONT)
    world.release()
    world.until(sweep_id, "SUCCEEDED")
    world.settle()
    wait(lambda: first.answers() and first.process.exitcode is None)
    assert world.ray.created() == [submission_id(sweep_id, 1)]
    check(world, like=undisturbed)


@pytest.mark.parametrize("place", ["after_spec", "before_ingest"])
def test_the_first_comes_back_when_all_is_over(on_postgres: Make, undisturbed: Path, place: str) -> None:
    world = on_postgres()
    sweep_id = world.post_sweep(world.api(), "one")
    first = world.reconciler(f"stop:{place}")
    first.stopped()
    second = world.reconciler()
    world.until(sweep_id, "SUCCEEDED")
    before = world.row(sweep_id)
    second.kill()
    first.signal(signal.SIGCONT)
    following = world.post_sweep(world.api(port=second.settings.bind_port), "two")
    world.until(following, "SUCCEEDED")  # the first one leads again
    world.settle()
    assert world.row(sweep_id).version == before.version, "the stale writer changed no row"
    check(world, like=undisturbed)


def test_a_process_that_stands_still_within_a_transaction_holds_nobody_up_for_ever(on_postgres: Make) -> None:
    world = on_postgres()
    world.hold()
    healthy = world.api()
    frozen = world.api("stop:post.before_commit", port=free_ports(1)[0])
    world.reconciler()
    sweep_id = world.post_sweep(healthy, "one")
    world.until(sweep_id, "RUNNING")
    path = f"/v1/sweeps/{sweep_id}/cancel"
    wait(frozen.answers)  # one that is to stand still is not waited for when it starts
    patient = {"key": "frozen", "patience_s": 600}
    asked = threading.Thread(target=world.history.ask, args=(frozen.url, "POST", path), kwargs=patient)
    asked.start()
    frozen.stopped()  # it has the sweep's row
    world.release()
    world.until(sweep_id, "SUCCEEDED")
    frozen.signal(signal.SIGCONT)
    asked.join(240)
    assert [call.status for call in world.history.calls if call.key == "frozen"] == [503], "what was not stored"
    late = world.history.ask(frozen.url, "POST", path, key="frozen")
    assert (late.status, late.answer["current_state"]) == (409, "SUCCEEDED")
    world.settle()
    check(world)


def test_a_cancel_that_the_first_has_not_seen_is_final(on_postgres: Make) -> None:
    world = on_postgres()
    world.hold()
    api = world.api()
    sweep_id = world.post_sweep(api, "one")
    first = world.reconciler("stop:after_spec")
    first.stopped()  # about to submit
    world.cancel(api, sweep_id)
    world.reconciler()
    world.until(sweep_id, "CANCELLED")
    assert world.ray.created() == []
    first.signal(signal.SIGCONT)
    wait(lambda: world.ray.jobs() == {submission_id(sweep_id, 1): "STOPPED"})  # it was submitted, and does not run on
    world.settle()
    check(world)
