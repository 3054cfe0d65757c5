"""The life of a sweep, moved by passes of the reconciler over a fake Ray and a fake driver."""

import pytest

from service.reconcile import Reconciler
from service.settings import Settings
from tests.fakes import FakeDriver
from tests.service.conftest import Plane, make_plane

pytestmark = pytest.mark.quick


def test_from_accepted_to_succeeded(plane: Plane) -> None:
    sweep = plane.post()
    assert (sweep["state"], sweep["reason"]) == ("PENDING", "QUEUED")
    plane.turn()
    shown = plane.sweep(sweep["id"])
    assert (shown["state"], shown["reason"]) == ("PENDING", "STARTING")
    name = f"{sweep['id'].replace('_', '-')}-a1"
    assert list(plane.jobs.jobs) == [name]
    run_dir = plane.settings.run_dir(sweep["id"])
    assert plane.jobs.entrypoints[name].endswith(
        f" -m sweeps run {run_dir}/spec.json --out {run_dir} --attempt 1"
    )
    assert plane.jobs.env[name]["RAY_JOB_STOP_WAIT_TIME_S"] == "15"

    driver = plane.drive(sweep["id"]).start()
    plane.turn()
    shown = plane.sweep(sweep["id"])
    assert (shown["state"], shown["reason"], shown["phase"]) == ("RUNNING", "SEARCHING", "searching")
    driver.search([0.5, 0.7])
    plane.turn()
    shown = plane.sweep(sweep["id"])
    assert shown["trials"] == {"SUCCEEDED": 2}
    assert shown["best"]["trial_id"] == "trl_0001"
    driver.finish(winner=1)
    plane.turn()
    shown = plane.sweep(sweep["id"])
    assert (shown["state"], shown["reason"], shown["phase"], shown["progress"]) == ("SUCCEEDED", "DONE", "done", 1.0)
    assert shown["result"]["best"]["trial_id"] == "trl_0001"
    assert shown["started_at"] < shown["ended_at"]
    assert plane.events(sweep["id"]) == [
        *("job.queued", "job.submitted", "job.started", "job.phase"),
        *("trial.created", "trial.rung", "trial.completed") * 2,
        *("best.updated", "job.finished", "job.succeeded"),
    ]


def test_runs_live_the_same_life(plane: Plane) -> None:
    run = plane.post(kind="runs")
    assert run["id"].startswith("run_") and run["object"] == "run"
    plane.turn()
    plane.drive(run["id"]).start().search([0.6]).finish()
    plane.turn()
    assert plane.sweep(run["id"])["state"] == "SUCCEEDED"


def test_an_idle_service_does_not_bother_ray(plane: Plane) -> None:
    plane.turn(3)
    assert plane.jobs.calls == [] and plane.deployer.calls == []
    sweep = plane.post()
    plane.turn()
    plane.drive(sweep["id"]).start().search([0.6]).finish()
    plane.jobs.become(f"{sweep['id'].replace('_', '-')}-a1", "SUCCEEDED")
    plane.turn(2)
    plane.jobs.calls.clear()
    plane.turn(5)
    assert plane.jobs.calls == []


def test_one_list_call_a_pass_and_no_write_when_nothing_changed(settings: Settings) -> None:
    for plane in make_plane(settings, max_running_sweeps=3):
        ids = [plane.post(name)["id"] for name in ("a", "b", "c")]
        plane.turn()
        for sweep_id in ids:
            plane.drive(sweep_id).start()
        plane.turn()
        versions = [plane.sweep(sweep_id) for sweep_id in ids]
        plane.jobs.calls.clear()
        plane.turn(4)
        assert plane.jobs.calls == ["list"] * 4
        assert [plane.sweep(sweep_id) for sweep_id in ids] == versions


def test_the_queue_is_served_in_order_within_the_limit(plane: Plane) -> None:
    first, second, third = (plane.post(name)["id"] for name in ("a", "b", "c"))
    plane.turn(2)
    assert plane.sweep(first)["reason"] == "STARTING"
    assert [plane.sweep(s)["reason"] for s in (second, third)] == ["QUEUED", "QUEUED"]
    plane.drive(first).start().search([0.5]).finish()
    plane.turn(2)
    assert [plane.sweep(s)["reason"] for s in (first, second, third)] == ["DONE", "STARTING", "QUEUED"]


# -- submission


def test_a_submit_whose_answer_was_lost_is_adopted(plane: Plane) -> None:
    plane.jobs.lose_answers = 1
    sweep = plane.post()
    plane.turn()
    assert plane.sweep(sweep["id"])["reason"] == "STARTING"
    plane.turn(3)
    assert plane.jobs.count("submit") == 1 and len(plane.attempts(sweep["id"])) == 1


def test_a_lost_submit_is_tried_again_under_the_same_id(plane: Plane) -> None:
    plane.jobs.lose_submits = 2
    sweep = plane.post()
    plane.turn()
    assert plane.sweep(sweep["id"])["reason"] == "SUBMIT_REFUSED"
    plane.turn(6)
    assert plane.sweep(sweep["id"])["reason"] == "STARTING"
    assert plane.jobs.count("submit") == 3 and len(plane.jobs.jobs) == 1
    assert [attempt.n for attempt in plane.attempts(sweep["id"])] == [1]


def test_while_ray_is_silent_the_sweep_waits_and_says_so(plane: Plane) -> None:
    plane.jobs.silent = True
    sweep = plane.post()
    plane.turn(40)
    shown = plane.sweep(sweep["id"])
    assert (shown["state"], shown["reason"]) == ("PENDING", "RAY_UNREACHABLE")
    since = shown["stale_since"]
    plane.turn(3)
    assert since is not None and plane.sweep(sweep["id"])["stale_since"] == since, "of the first silent look"
    assert plane.jobs.count("submit") < 10, "back-off"
    plane.jobs.silent = False
    plane.turn(31)
    shown = plane.sweep(sweep["id"])
    assert (shown["reason"], shown["stale_since"]) == ("STARTING", None)


def test_a_ray_that_always_refuses_ends_the_sweep(plane: Plane) -> None:
    plane.jobs.refusal = "no such resource: driver"
    sweep = plane.post()
    plane.turn(70)
    shown = plane.sweep(sweep["id"])
    assert shown["state"] == "FAILED"
    assert shown["error"]["class"] == "SYSTEM_ERROR" and "no such resource" in shown["error"]["message"]


def test_a_store_that_cannot_be_written_is_waited_for(plane: Plane) -> None:
    plane.settings.store.write_text("a file where a directory should be")
    sweep = plane.post()
    plane.turn()
    assert plane.sweep(sweep["id"])["reason"] == "STORE_UNWRITABLE"
    plane.settings.store.unlink()
    plane.turn(3)
    assert plane.sweep(sweep["id"])["reason"] == "STARTING"


# -- lost drivers


def started(plane: Plane) -> tuple[str, str, FakeDriver]:
    """A sweep whose driver has begun: id, submission id, driver."""
    sweep_id = plane.post()["id"]
    plane.turn()
    driver = plane.drive(sweep_id).start()
    plane.turn()
    return sweep_id, f"{sweep_id.replace('_', '-')}-a1", driver


@pytest.mark.parametrize("word", ["FAILED", "SUCCEEDED", "STOPPED", None])
def test_a_job_that_ray_ended_is_lost_only_when_its_heart_stands_still(plane: Plane, word: str | None) -> None:
    sweep_id, name, orphan = started(plane)
    if word is None:
        plane.jobs.jobs.clear()
    else:
        plane.jobs.become(name, word)
    for _ in range(30):
        orphan.beat()
        plane.turn()
    shown = plane.sweep(sweep_id)
    assert (shown["state"], shown["reason"], shown["attempt"]) == ("RUNNING", "DRIVER_GONE", 1)
    plane.turn(22)
    assert plane.sweep(sweep_id)["attempt"] == 2
    assert [attempt.state for attempt in plane.attempts(sweep_id)] == ["LOST", "SUBMITTED"]
    assert plane.jobs.entrypoints[f"{name[:-1]}2"].endswith("--attempt 2")


def test_rays_word_alone_never_makes_success(plane: Plane) -> None:
    sweep_id, name, _ = started(plane)
    plane.jobs.become(name, "SUCCEEDED")
    plane.turn(25)
    assert plane.sweep(sweep_id)["state"] == "RUNNING"
    assert plane.sweep(sweep_id)["attempt"] == 2


def test_attempts_are_limited_and_the_end_says_why(plane: Plane) -> None:
    sweep_id, name, _ = started(plane)
    plane.jobs.log = "Traceback ...\nRuntimeError: boom"
    for n in (1, 2, 3):
        plane.jobs.become(f"{name[:-1]}{n}", "FAILED", "entrypoint exited with 1\nRuntimeError: boom")
        plane.turn(25)
    shown = plane.sweep(sweep_id)
    assert (shown["state"], shown["attempt"], shown["reason"]) == ("FAILED", 3, "SYSTEM_ERROR")
    assert shown["error"]["code"] == "driver_lost"
    assert "FAILED" in shown["error"]["message"] and "boom" in shown["error"]["message"]
    assert shown["error"]["log_tail"].endswith("RuntimeError: boom")
    assert plane.events(sweep_id).count("attempt.lost") == 3
    assert plane.events(sweep_id)[-1] == "job.failed"


def test_a_stale_running_is_stopped_after_long_silence_and_then_lost(settings: Settings) -> None:
    for plane in make_plane(settings, heartbeat_hung_s=40.0):
        sweep_id, name, _ = started(plane)
        plane.turn(35)
        assert plane.jobs.count("stop") == 0
        plane.turn(10)
        assert plane.jobs.jobs[name].status == "STOPPED"
        assert plane.sweep(sweep_id)["attempt"] == 2


def test_a_fresh_process_gives_every_heart_its_full_time(plane: Plane) -> None:
    sweep_id, name, _ = started(plane)
    plane.jobs.become(name, "FAILED")
    plane.turn(15)
    fresh = Reconciler(
        store=plane.store, jobs=plane.jobs, deployer=plane.deployer, settings=plane.settings, clock=plane.clock
    )
    plane.reconciler.stop()
    plane.reconciler = fresh
    plane.turn(15)
    assert plane.sweep(sweep_id)["attempt"] == 1
    plane.turn(10)
    assert plane.sweep(sweep_id)["attempt"] == 2


def test_clock_jumps_expire_nothing(plane: Plane) -> None:
    sweep_id, name, _ = started(plane)
    plane.jobs.become(name, "FAILED")
    for jump in (3600.0, -7200.0, 172800.0):
        plane.clock.jump(jump)
        plane.turn(3)
    assert plane.sweep(sweep_id)["attempt"] == 1


def test_a_users_mistake_found_by_the_driver_ends_it_at_once(plane: Plane) -> None:
    sweep_id, _, driver = started(plane)
    from_driver = "/data/x.jsonl, line 7: this line is not valid JSON"
    driver.fail(from_driver)
    plane.turn()
    shown = plane.sweep(sweep_id)
    assert (shown["state"], shown["attempt"]) == ("FAILED", 1)
    assert shown["error"]["class"] == "USER_ERROR" and shown["error"]["message"] == from_driver
    assert plane.events(sweep_id)[-2:] == ["attempt.failed", "job.failed"]


def test_a_drivers_own_failure_is_tried_again_at_once(plane: Plane) -> None:
    sweep_id, _, driver = started(plane)
    driver.fail("CUDA is gone", "SYSTEM_ERROR")
    plane.turn(2)
    assert [attempt.state for attempt in plane.attempts(sweep_id)] == ["FAILED", "SUBMITTED"]
    assert "job.restarted" in plane.events(sweep_id)


def test_a_driver_that_dies_between_result_and_last_word_has_succeeded(plane: Plane) -> None:
    sweep_id, _, driver = started(plane)
    driver.search([0.5]).finish(last_word=False)
    plane.turn(2)
    assert plane.sweep(sweep_id)["state"] == "RUNNING"
    plane.turn(5)
    assert plane.sweep(sweep_id)["state"] == "SUCCEEDED"


@pytest.mark.parametrize("ray_says", [None, "FAILED"])
def test_the_last_word_of_an_orphan_is_waited_for(plane: Plane, ray_says: str | None) -> None:
    sweep_id, name, driver = started(plane)
    if ray_says is None:
        del plane.jobs.jobs[name]
    else:
        plane.jobs.become(name, ray_says)
    driver.search([0.5]).finish(last_word=False)
    plane.turn(2)
    assert plane.sweep(sweep_id)["state"] == "RUNNING"
    driver.attempt.append("job.finished", "finished", {})
    plane.turn()
    assert plane.sweep(sweep_id)["state"] == "SUCCEEDED"
    assert "job.finished" in plane.events(sweep_id)


def test_a_result_of_another_spec_is_not_accepted(plane: Plane) -> None:
    sweep_id, _, _ = started(plane)
    result = plane.settings.run_dir(sweep_id) / "attempts/1/result.json"
    result.write_text('{"attempt": 1, "spec_hash": "another", "state": "SUCCEEDED"}')
    plane.turn(2)
    assert plane.sweep(sweep_id)["attempt"] == 2


def test_what_an_orphan_wrote_before_its_successor_claimed_is_not_lost(plane: Plane) -> None:
    sweep_id, name, orphan = started(plane)
    orphan.create(0)
    plane.jobs.become(name, "FAILED")
    plane.turn(23)
    orphan.end(0, value=0.4)  # after attempt 1 was given up, before attempt 2 began to read
    plane.drive(sweep_id, 2).start()
    plane.turn()
    orphan.create(9)  # after that: fenced out
    plane.turn()
    trials = plane.client.get(f"/v1/sweeps/{sweep_id}/trials").json()["data"]
    assert [(trial["id"], trial["state"], trial["value"]) for trial in trials] == [("trl_0000", "SUCCEEDED", 0.4)]


def test_a_trials_result_is_recorded_once(plane: Plane) -> None:
    sweep_id, name, first = started(plane)
    first.create(0)
    first.end(0, value=0.4)
    first.create(1)
    plane.turn()
    plane.jobs.become(name, "FAILED")
    plane.turn(22)
    second = plane.drive(sweep_id, 2).start()
    second.create(0)
    second.end(0, value=0.9)
    second.create(1)
    second.end(1, "trial.pruned", value=0.2)
    plane.turn()
    trials = plane.client.get(f"/v1/sweeps/{sweep_id}/trials").json()["data"]
    assert [(t["state"], t["value"], t["attempt"]) for t in trials] == [("SUCCEEDED", 0.4, 1), ("PRUNED", 0.2, 2)]


# -- cancelling


def test_a_waiting_sweep_is_cancelled_without_ray(plane: Plane) -> None:
    sweep = plane.post()
    answer = plane.client.post(f"/v1/sweeps/{sweep['id']}/cancel")
    assert answer.status_code == 202
    assert (answer.json()["desired"], answer.json()["reason"]) == ("CANCEL", "CANCEL_REQUESTED")
    plane.turn()
    assert plane.sweep(sweep["id"])["state"] == "CANCELLED"
    assert plane.jobs.calls == []


def test_a_running_sweep_is_stopped_and_confirmed_first(plane: Plane) -> None:
    sweep_id, name, driver = started(plane)
    driver.create(0)
    plane.jobs.stops_at_once = False
    plane.client.post(f"/v1/sweeps/{sweep_id}/cancel")
    plane.turn(3)
    assert plane.sweep(sweep_id)["state"] == "CANCELLING"
    driver.create(1)
    plane.jobs.become(name, "STOPPED")
    plane.turn()
    shown = plane.sweep(sweep_id)
    # Its last words are read, and its open trials closed.
    assert (shown["state"], shown["trials"]) == ("CANCELLED", {"CANCELLED": 2})
    again = plane.client.post(f"/v1/sweeps/{sweep_id}/cancel")
    assert again.status_code == 409
    assert (again.json()["current_state"], again.json()["allowed"]) == ("CANCELLED", [])
    assert again.headers["x-should-retry"] == "false"


def test_cancel_wins_over_a_result_of_the_same_moment(plane: Plane) -> None:
    sweep_id, _, driver = started(plane)
    driver.search([0.6]).finish()
    plane.client.post(f"/v1/sweeps/{sweep_id}/cancel")
    plane.turn(2)
    assert plane.sweep(sweep_id)["state"] == "CANCELLED"


def test_cancel_waits_for_a_silent_ray_and_says_so(plane: Plane) -> None:
    sweep_id, _, _ = started(plane)
    plane.jobs.silent = True
    plane.client.post(f"/v1/sweeps/{sweep_id}/cancel")
    plane.turn(3)
    assert (plane.sweep(sweep_id)["state"], plane.sweep(sweep_id)["reason"]) == ("CANCELLING", "RAY_UNREACHABLE")
    plane.jobs.silent = False
    plane.turn(3)
    assert plane.sweep(sweep_id)["state"] == "CANCELLED"


def test_a_job_that_turns_up_after_its_sweep_ended_is_stopped(plane: Plane) -> None:
    plane.jobs.lose_submits = 1
    sweep_id = plane.post()["id"]
    plane.turn()
    plane.client.post(f"/v1/sweeps/{sweep_id}/cancel")
    plane.turn(2)
    assert plane.sweep(sweep_id)["state"] == "CANCELLED"
    name = f"{sweep_id.replace('_', '-')}-a1"
    plane.jobs.become(name, "RUNNING")  # the submit was in flight all the time
    plane.turn(2)
    assert plane.jobs.jobs[name].status == "STOPPED"
    plane.turn(2)
    plane.jobs.calls.clear()
    plane.turn(3)
    assert plane.jobs.calls == []


# -- one reconciler at a time


def test_a_second_reconciler_waits_for_the_lease(settings: Settings) -> None:
    for plane in make_plane(settings, reconcile_interval_s=1000.0):  # a lease is thrice as long, by a real clock
        second = Reconciler(
            store=plane.store, jobs=plane.jobs, deployer=plane.deployer, settings=plane.settings, clock=plane.clock
        )
        plane.turn()
        sweep_id = plane.post()["id"]
        second.run_once()
        assert plane.sweep(sweep_id)["reason"] == "QUEUED"
        plane.reconciler.stop()
        second.run_once()
        assert plane.sweep(sweep_id)["reason"] == "STARTING"


def test_a_broken_run_directory_does_not_stop_the_others(settings: Settings) -> None:
    for plane in make_plane(settings, max_running_sweeps=2):
        broken, sound = plane.post("broken")["id"], plane.post("sound")["id"]
        plane.turn()
        journal = plane.settings.run_dir(broken) / "attempts/1/journal"
        journal.mkdir(parents=True)
        (journal / "00000001.jsonl").write_text('{"seq": 1, "type": 5}\n')
        plane.drive(sound).start().search([0.5]).finish()
        plane.turn(2)
        assert plane.sweep(sound)["state"] == "SUCCEEDED"
        assert plane.sweep(broken)["reason"] == "RUN_DIR_UNREADABLE"
