"""Live control over fakes: a request stores a row, the reconciler writes its file, the driver's answer comes back."""

import json
from typing import Any

import pytest

from service.reconcile import Reconciler
from service.scopes import scope_of
from sweeps.control import read_edits
from sweeps.run_dir import Attempt, RunDir
from tests.fakes import FakeDriver
from tests.service.conftest import Plane

Json = dict[str, Any]


def ask(plane: Plane, path: str, body: Json | None = None, status: int = 202, key: str | None = None) -> Json:
    headers = {"idempotency-key": key} if key else {}
    answer = plane.client.post(f"/v1/sweeps/{path}", json=body, headers=headers)
    assert answer.status_code == status, answer.text
    found: Json = answer.json()
    return found


def edits(plane: Plane, sweep_id: str, query: str = "") -> list[Json]:
    found: list[Json] = plane.client.get(f"/v1/sweeps/{sweep_id}/edits{query}").json()["data"]
    return found


def started(plane: Plane) -> tuple[str, FakeDriver]:
    sweep_id = plane.post()["id"]
    plane.turn()
    driver = plane.drive(sweep_id).start()
    driver.create(0)
    plane.turn()
    return sweep_id, driver


def files(plane: Plane, sweep_id: str) -> list[tuple[int | None, str]]:
    return [(found.seq, found.edit.action) for found in read_edits(RunDir(plane.settings.run_dir(sweep_id)))]


def answer(
    attempt: Attempt, seq: int, action: str, *, refused: str = "", edit: Json | None = None, **more: Any
) -> None:
    """As `sweeps.desk` answers."""
    facts: Json = {"seq": seq, "file": f"{seq:08d}.json", "action": action, **more}
    if refused:
        attempt.append("control.refused", "no", facts | {"field": "action", "message": refused}, level="warn")
    else:
        edit = edit or json.loads((attempt.run.control / f"{seq:08d}.json").read_text())
        attempt.append("control.applied", f"edit {seq}: {action}", facts | {"edit": edit})


def test_pause_and_resume_from_wish_to_answer(plane: Plane) -> None:
    sweep_id, driver = started(plane)
    wished = ask(plane, f"{sweep_id}/pause")
    assert (wished["number"], wished["action"], wished["state"], wished["object"]) == (1, "pause", "pending", "edit")
    assert files(plane, sweep_id) == [], "a request writes rows and nothing else"
    plane.turn()
    assert files(plane, sweep_id) == [(1, "pause")]
    answer(driver.attempt, 1, "pause")
    plane.turn()
    (told,) = edits(plane, sweep_id)
    assert (told["state"], told["message"], told["attempt"]) == ("applied", "pause", 1)
    assert told["answered_at"] and told["id"] == wished["id"]
    shown = plane.sweep(sweep_id)
    assert (shown["state"], shown["reason"]) == ("RUNNING", "PAUSED")
    plane.turn(2)
    assert plane.sweep(sweep_id) == shown, "nothing is written while nothing changes"
    ask(plane, f"{sweep_id}/resume")
    plane.turn()
    answer(driver.attempt, 2, "resume")
    plane.turn()
    assert plane.sweep(sweep_id)["reason"] == "SEARCHING"
    assert [event for event in plane.events(sweep_id) if event[:5] in ("sweep", "contr")] == [
        *("sweep.edited", "control.applied") * 2,
    ]


def test_a_run_is_paused_and_resumed_and_takes_nothing_else(plane: Plane) -> None:
    run_id = plane.post("one", "runs")["id"]
    plane.turn()
    driver = plane.drive(run_id).start()
    plane.turn()
    for number, (action, reason) in enumerate((("pause", "PAUSED"), ("resume", "SEARCHING")), 1):
        asked = plane.client.post(f"/v1/runs/{run_id}/{action}")
        assert asked.status_code == 202, asked.text
        assert asked.headers["location"] == f"/v1/runs/{run_id}/edits/{asked.json()['id']}"
        plane.turn()
        answer(driver.attempt, number, action)
        plane.turn()
        assert plane.client.get(asked.headers["location"]).json()["state"] == "applied"
        assert plane.sweep(run_id)["reason"] == reason
    told = plane.client.get(f"/v1/runs/{run_id}/edits").json()["data"]
    assert [edit["action"] for edit in told] == ["pause", "resume"]
    assert plane.client.post(f"/v1/runs/{run_id}/extend", json={"trials": 2}).status_code == 404
    ask(plane, f"{run_id}/pause", status=404)
    assert plane.client.post(f"/v1/runs/{plane.post('two')['id']}/pause").status_code == 404
    driver.create(0)
    driver.end(0, value=0.5)
    driver.finish(winner=0)
    plane.turn(2)
    over = plane.client.post(f"/v1/runs/{run_id}/pause")
    assert (over.status_code, over.json()["code"]) == (409, "illegal_transition") and "run" in over.json()["detail"]


def test_a_pause_lasts_over_attempts_and_the_finals_are_not_paused(plane: Plane) -> None:
    sweep_id, driver = started(plane)
    ask(plane, f"{sweep_id}/pause")
    plane.turn()
    answer(driver.attempt, 1, "pause")
    plane.jobs.become(f"{sweep_id.replace('_', '-')}-a1", "FAILED")
    plane.turn(23)
    second = plane.drive(sweep_id, 2).start()
    plane.turn()
    assert plane.sweep(sweep_id)["reason"] == "PAUSED"
    second.attempt.append("job.phase", "finals", {"phase": "finals", "progress": 0.0})
    plane.turn()
    assert plane.sweep(sweep_id)["reason"] == "FINALS"


def test_every_action_reaches_its_file_and_a_refusal_comes_back(plane: Plane) -> None:
    sweep_id, driver = started(plane)
    wishes: list[tuple[str, Json | None]] = [
        ("extend", {"trials": 24}),
        ("space", {"axes": {"beta": {"type": "float", "low": 1.0, "high": 3.0}, "learning_rate": 1e-5}}),
        ("points", {"params": {"beta": 2.0}}),
        ("trials/trl_0000/stop", None),
        ("trials/trl_0000/clone", {"params": {"beta": 2.5}}),
    ]
    for path, body in wishes:
        assert ask(plane, f"{sweep_id}/{path}", body)["state"] == "pending"
    plane.turn()
    actions = ["extend", "space", "add_point", "stop_trial", "clone_trial"]
    assert files(plane, sweep_id) == list(enumerate(actions, 1))
    answer(driver.attempt, 1, "extend", refused="must be more than 40")
    answer(driver.attempt, 3, "add_point", trial_id="trl_0007")
    answer(driver.attempt, 1, "extend", edit={"action": "extend"})  # the first answer counts
    plane.turn()
    told = edits(plane, sweep_id)
    assert [edit["state"] for edit in told] == ["refused", "pending", "applied", "pending", "pending"]
    assert (told[0]["message"], told[0]["pointer"]) == ("must be more than 40", "/action")
    assert [edit["trial"] for edit in told] == [None, None, "trl_0007", "trl_0000", "trl_0000"]
    assert [edit["number"] for edit in edits(plane, sweep_id, f"?order=desc&limit=2&after={told[3]['id']}")] == [3, 2]
    assert plane.client.get(f"/v1/sweeps/{sweep_id}/edits/{told[0]['id']}").json() == told[0]
    driver.end(0, value=0.5)
    driver.finish()
    plane.turn(2)
    assert [edit["state"] for edit in edits(plane, sweep_id)] == ["refused", "refused", "applied", "refused", "refused"]
    assert edits(plane, sweep_id)[1]["message"] == "The sweep ended first."


@pytest.mark.quick
def test_what_is_wrong_is_said_at_once_and_stores_nothing(plane: Plane) -> None:
    sweep_id, _ = started(plane)
    for path, body, pointer in (
        ("pause", {"now": True}, "/now"),
        ("pause", {"action": "cancel"}, "/action"),
        ("extend", {}, "/trials"),
        ("extend", {"trials": 0}, "/trials"),
        ("extend", {"trials": "many", "total_steps": -1}, "/trials"),
        ("space", {"axes": {"beta": None}}, "/axes/beta"),
        ("space", {"axes": {"beta": {"type": "float", "low": 3.0, "high": 1.0}}}, "/axes/beta"),
        ("points", {"params": {}}, "/params"),
        ("trials/trl_0000/clone", {"trial_id": "trl_0001"}, "/trial_id"),
    ):
        problem = ask(plane, f"{sweep_id}/{path}", body, 422)
        assert problem["errors"][0]["pointer"].startswith(pointer), problem
    assert len(ask(plane, f"{sweep_id}/extend", {"trials": "many", "total_steps": -1}, 422)["errors"]) == 2
    headers = {"content-type": "application/json"}
    text = '{"params": {"beta": 1e999}}'
    infinite = plane.client.post(f"/v1/sweeps/{sweep_id}/points", content=text, headers=headers)
    assert infinite.status_code == 422, infinite.text
    ask(plane, f"{sweep_id}/trials/trl_0009/stop", status=404)
    ask(plane, f"{sweep_id}/trials/nobody/clone", status=422)
    assert edits(plane, sweep_id) == [] and scope_of("POST", f"/v1/sweeps/{sweep_id}/pause") == "jobs:write"
    for path in ("edits?after=5", "edits?limit=0"):
        assert plane.client.get(f"/v1/sweeps/{sweep_id}/{path}").status_code == 422
    assert plane.client.get(f"/v1/sweeps/{sweep_id}/edits/edt_00000009").status_code == 404


def test_a_sweep_that_is_over_not_started_or_about_to_end_is_a_conflict(plane: Plane) -> None:
    run_id = plane.post(kind="runs", name="one")["id"]
    ask(plane, f"{run_id}/pause", status=404)
    plane.client.post(f"/v1/runs/{run_id}/cancel")
    plane.turn()
    waiting = plane.post()["id"]
    assert ask(plane, f"{waiting}/extend", {"trials": 30})["state"] == "pending"
    problem = ask(plane, f"{waiting}/trials/trl_0000/stop", status=409)
    assert (problem["code"], problem["current_state"]) == ("not_started", "PENDING")
    plane.turn(2)
    assert files(plane, waiting) == [(1, "extend")]
    driver = plane.drive(waiting).start().search([0.5])
    plane.turn()
    problem = ask(plane, f"{waiting}/trials/trl_0000/stop", status=409)
    assert (problem["current_state"], problem["allowed"]) == ("SUCCEEDED", ["clone"])
    plane.client.post(f"/v1/sweeps/{waiting}/cancel")
    assert "about to be cancelled" in ask(plane, f"{waiting}/pause", status=409)["detail"]
    plane.turn(3)
    problem = ask(plane, f"{waiting}/extend", {"trials": 30}, status=409)
    assert (problem["detail"], problem["allowed"]) == ("A CANCELLED sweep cannot be extended.", [])
    assert driver.attempt.number == 1 and edits(plane, waiting)[0]["state"] == "refused"


def test_a_repeated_key_is_one_edit(plane: Plane) -> None:
    sweep_id, _ = started(plane)
    twice = [ask(plane, f"{sweep_id}/extend", {"trials": 30}, key="k") for _ in range(2)]
    assert twice[0] == twice[1] and len(edits(plane, sweep_id)) == 1
    again = ask(plane, f"{sweep_id}/extend", {"trials": 31}, 422, key="k")
    assert again["code"] == "idempotency_key_reused"


def test_a_reconciler_that_dies_between_file_and_row_doubles_nothing(plane: Plane) -> None:
    sweep_id, driver = started(plane)
    plane.reconciler.stop()

    def die(place: str) -> None:
        if place == "after_edit_file":
            raise RuntimeError(place)

    mortal = Reconciler(
        store=plane.store,
        jobs=plane.jobs,
        deployer=plane.deployer,
        clock=plane.clock,
        settings=plane.settings,
        failpoint=die,
    )
    ask(plane, f"{sweep_id}/pause")
    ask(plane, f"{sweep_id}/extend", {"trials": 30})
    with pytest.raises(RuntimeError):
        mortal.run_once()
    assert files(plane, sweep_id) == [(1, "pause")]
    answer(driver.attempt, 1, "pause")
    mortal.stop()
    plane.turn(2)
    assert files(plane, sweep_id) == [(1, "pause"), (2, "extend")]
    assert [edit["state"] for edit in edits(plane, sweep_id)] == ["applied", "pending"]


def test_an_edit_made_in_the_directory_itself_has_its_number(plane: Plane) -> None:
    sweep_id, driver = started(plane)
    driver.run.add_edit({"action": "resume"})
    ask(plane, f"{sweep_id}/pause")  # under a number that is taken, which nobody knows yet
    answer(driver.attempt, 1, "resume", refused="is not paused")
    plane.turn(2)
    (first,) = edits(plane, sweep_id)
    assert (first["state"], first["action"]) == ("refused", "pause") and "somebody else" in first["message"]
    answer(driver.attempt, 2, "pause", edit={"action": "pause"})
    driver.attempt.append("control.refused", "no number", {"seq": None, "file": "x.json", "action": None})
    plane.turn()
    assert [(edit["number"], edit["actor"] == "driver") for edit in edits(plane, sweep_id)] == [(1, False), (2, True)]
    assert ask(plane, f"{sweep_id}/resume")["number"] == 3
