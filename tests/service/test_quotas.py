"""Quotas over the API: what holds a sweep, what a person is told of it, and what is refused at once."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from service.auth import create_key
from service.models_people import AuditEntry
from service.models_quotas import Usage
from service.settings import Settings
from tests.service.conftest import Plane, make_plane
from tests.service.test_edits import answer, started

ALIKE = {"concurrent_sweeps": None, "concurrent_trials": None, "accelerator_hours": None}


@pytest.fixture
def roomy(settings: Settings) -> Iterator[Plane]:
    """Ten places, and two trials at once for each project where nobody says otherwise."""
    yield from make_plane(settings, max_running_sweeps=10, project_trials=4)


def _set(plane: Plane, project: str = "default", **quotas: Any) -> dict[str, Any]:
    answer = plane.client.patch(f"/v1/projects/{project}/quotas", json=quotas, headers={"if-match": "*"})
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


def _quotas(plane: Plane, key: str | None = None) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key or plane.key}"}
    shown: dict[str, Any] = plane.client.get("/v1/quotas", headers=headers).json()
    return shown


def test_who_waits_for_a_quota_says_which_and_who_is_ahead(roomy: Plane) -> None:
    _set(roomy, concurrent_sweeps=1)
    first, second, third = (roomy.post(name)["id"] for name in "abc")
    roomy.turn()
    assert roomy.sweep(first)["reason"] == "STARTING" and roomy.sweep(first)["queue"] is None
    shown = roomy.sweep(third)
    assert (shown["state"], shown["reason"]) == ("PENDING", "QUOTA")
    assert shown["queue"] == {"place": 2, "of": 2, "after": second}
    assert "quota concurrent_sweeps: 1" in shown["message"]
    assert f"Place 2 of 2 in its project's line, after {second}." in shown["message"]
    roomy.client.post(f"/v1/sweeps/{second}/cancel")
    assert "Place 1 of 1 in its project's line." in roomy.sweep(third)["message"]
    _set(roomy, concurrent_sweeps="unlimited")
    roomy.turn()
    assert roomy.sweep(third)["reason"] == "STARTING"


def test_a_place_that_changed_is_not_answered_with_not_modified(plane: Plane) -> None:
    plane.post("a")
    before, waits = plane.post("b")["id"], plane.post("c")["id"]
    plane.turn()
    assert plane.sweep(waits)["reason"] == "QUEUED" and "1 may run at once" in plane.sweep(waits)["message"]
    known = {"if-none-match": plane.client.get(f"/v1/sweeps/{waits}").headers["etag"]}
    assert plane.client.get(f"/v1/sweeps/{waits}", headers=known).status_code == 304
    plane.client.post(f"/v1/sweeps/{before}/cancel")
    assert plane.client.get(f"/v1/sweeps/{waits}", headers=known).status_code == 200


def test_priority_is_a_parameter_of_the_request(plane: Plane) -> None:
    plane.post("first")
    plane.turn()
    for word in ("low", "normal", "high"):
        answer = plane.client.post(f"/v1/runs?priority={word}", json={"name": word, "learning_rate": 1e-4})
        assert answer.status_code == 202 and answer.json()["priority"] == word
    line = _quotas(plane)["queue"]
    assert [each["name"] for each in line] == ["high", "normal", "low"]
    assert [(each["place"], each["after"]) for each in line] == [(1, None), (2, line[0]["id"]), (3, line[1]["id"])]
    assert plane.client.post("/v1/sweeps?priority=urgent", json={"name": "x"}).status_code == 422


def test_a_key_stands_for_the_priority_too(plane: Plane) -> None:
    headers = {"idempotency-key": "one"}
    assert plane.client.post("/v1/sweeps", json={"name": "a"}, headers=headers).status_code == 202
    again = plane.client.post("/v1/sweeps?priority=normal", json={"name": "a"}, headers=headers)
    assert again.headers["idempotency-replayed"] == "true"
    other = plane.client.post("/v1/sweeps?priority=high", json={"name": "a"}, headers=headers)
    assert other.json()["code"] == "idempotency_key_reused"


def test_a_repeated_request_is_answered_as_the_first_was_whatever_was_said_since(roomy: Plane) -> None:
    body, headers = {"name": "a", "parallel": {"trials": 4}, "budget": {"trials": 8}}, {"idempotency-key": "k"}
    first = roomy.client.post("/v1/sweeps", json=body, headers=headers)
    _set(roomy, concurrent_trials=1)
    again = roomy.client.post("/v1/sweeps", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202) and again.json() == first.json()
    roomy.turn()
    shown = roomy.sweep(first.json()["id"])
    assert shown["reason"] == "QUOTA" and "since then (quota concurrent_trials: 1)" in shown["message"]


@pytest.mark.parametrize("dry", ["", "?validate_only=true"])
def test_what_can_never_be_met_is_refused_by_field(roomy: Plane, dry: str) -> None:
    _set(roomy, accelerator_hours=10)
    for body, pointer in (
        ({"parallel": {"trials": 5}, "budget": {"trials": 8}}, "/parallel/trials"),
        ({"budget": {"accelerator_hours": 10.5}}, "/budget/accelerator_hours"),
    ):
        answer = roomy.client.post(f"/v1/sweeps{dry}", json={"name": "a", **body})
        assert answer.status_code == 422 and [e["pointer"] for e in answer.json()["errors"]] == [pointer]
        assert "ask for" in answer.json()["detail"]
    methods = {"methods": ["dpo", "simpo"], "budget": {"accelerator_hours": 6}}
    answer = roomy.client.post(f"/v1/comparisons{dry}", json={"name": "a", **methods})
    assert answer.status_code == 422 and "12 hours" in answer.json()["detail"]
    assert roomy.counts()["sweeps"] == 0
    fits = {"parallel": {"trials": 5}, "budget": {"trials": 4}}
    assert roomy.client.post(f"/v1/sweeps{dry}", json={"name": "a", **fits}).status_code in (200, 202)


def test_hours_are_waited_for_until_the_month_is_over(roomy: Plane) -> None:
    _set(roomy, accelerator_hours=2)
    first = roomy.post("a")["id"]
    roomy.turn()
    with roomy.store.write() as session:
        session.add(Usage(sweep_id=first, month="2026-09", seconds=7200.0))
    second = roomy.post("b")["id"]
    roomy.turn(2)
    shown = roomy.sweep(second)
    assert shown["reason"] == "QUOTA" and "are spent (quota accelerator_hours: 2 a month)" in shown["message"]
    told = _quotas(roomy)
    assert (told["used"]["accelerator_hours"], told["left"]["accelerator_hours"], told["period"]) == (2.0, 0.0, "month")
    roomy.clock.advance(timedelta(days=31).total_seconds())
    roomy.turn()
    assert roomy.sweep(second)["reason"] == "STARTING"


def test_hours_asked_for_are_promised(roomy: Plane) -> None:
    _set(roomy, accelerator_hours=10)
    roomy.post("a", budget={"accelerator_hours": 7})
    large = roomy.post("b", budget={"accelerator_hours": 7})["id"]
    small = roomy.post("c", budget={"accelerator_hours": 2})["id"]
    roomy.turn()
    assert roomy.sweep(small)["reason"] == "STARTING", "what waits for hours alone stands aside"
    assert "more than its project has left" in roomy.sweep(large)["message"]
    told = _quotas(roomy)
    assert (told["promised_hours"], told["left"]["accelerator_hours"], told["waiting"]) == (9.0, 1.0, 1)


def test_a_larger_budget_is_a_larger_promise(roomy: Plane) -> None:
    _set(roomy, accelerator_hours=10)
    sweep_id, driver = started(roomy)
    assert _quotas(roomy)["promised_hours"] == 0.0
    answer(driver.attempt, 1, "extend", edit={"action": "extend", "accelerator_hours": 4})
    roomy.turn()
    assert roomy.sweep(sweep_id)["state"] == "RUNNING"
    assert _quotas(roomy)["promised_hours"] == pytest.approx(4, abs=0.01)


def test_an_extension_beyond_the_quota_is_refused_by_name(roomy: Plane) -> None:
    _set(roomy, accelerator_hours=10)
    sweep_id = roomy.post("a", budget={"accelerator_hours": 4})["id"]
    roomy.post("b", budget={"accelerator_hours": 3})
    roomy.turn()

    def extend(hours: float) -> Any:
        return roomy.client.post(f"/v1/sweeps/{sweep_id}/extend", json={"accelerator_hours": hours})

    never = extend(10.5)
    assert (never.status_code, never.json()["errors"][0]["pointer"]) == (422, "/accelerator_hours")
    assert "its project may use 10 a month (quota accelerator_hours)" in never.json()["detail"]
    now = extend(8)
    assert (now.status_code, now.json()["code"]) == (409, "quota_exceeded"), now.text
    assert "more than its project has left (quota accelerator_hours: 10 a month)" in now.json()["detail"]
    assert roomy.client.get(f"/v1/sweeps/{sweep_id}/edits").json()["data"] == []
    assert extend(7).status_code == 202, "its own four hours are not counted twice"
    waits = roomy.post("c", budget={"accelerator_hours": 9})["id"]
    fits = roomy.client.post(f"/v1/sweeps/{waits}/extend", json={"accelerator_hours": 10})
    assert fits.status_code == 202, "what waits can wait for its hours too"


def test_what_has_no_budget_ends_when_its_project_has_no_hours_left(roomy: Plane) -> None:
    sweep_id, driver = started(roomy)
    promised = roomy.post("promised", budget={"accelerator_hours": 2})["id"]
    run = roomy.post("run", "runs")["id"]
    roomy.turn()
    finals = roomy.drive(run).start()
    finals.attempt.append("job.phase", "finals", {"phase": "finals", "progress": 0.0})
    _set(roomy, accelerator_hours=2)
    roomy.turn()
    assert roomy.sweep(sweep_id)["state"] == "RUNNING"
    with roomy.store.write() as session:
        session.add(Usage(sweep_id=sweep_id, month="2026-09", seconds=7200.0))
    driver.beat()
    roomy.turn(3)
    ended = roomy.sweep(sweep_id)
    assert (ended["state"], ended["reason"], ended["error"]["code"]) == ("CANCELLED", "QUOTA", "quota_spent")
    assert "are spent (quota accelerator_hours: 2 a month)" in ended["message"]
    assert "ask an operator" in ended["message"]
    assert roomy.events(sweep_id)[-3:] == ["job.cancel_requested", "job.cancelling", "job.cancelled"]
    assert roomy.sweep(promised)["state"] == "PENDING", "what was promised goes on"
    assert roomy.sweep(run)["state"] == "RUNNING", "nothing is saved by ending what trains no more"


def test_quotas_are_shown_set_and_noted(roomy: Plane) -> None:
    told = _quotas(roomy)
    assert told["limits"] == {**ALIKE, "concurrent_trials": 4} and told["said"] == {
        **ALIKE,
        "period": None,
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "tokens_per_day": None,
    }
    roomy.post("a")
    roomy.turn()
    told = _set(roomy, concurrent_sweeps=3, concurrent_trials="unlimited", accelerator_hours=1.5, period="total")
    assert told["limits"] == {"concurrent_sweeps": 3, "concurrent_trials": None, "accelerator_hours": 1.5}
    assert told["used"] == {"concurrent_sweeps": 1, "concurrent_trials": 2, "accelerator_hours": 0.0}
    assert told["left"] == {"concurrent_sweeps": 2, "concurrent_trials": None, "accelerator_hours": 1.5}
    told = _set(roomy, concurrent_trials=None)
    assert told["limits"]["concurrent_trials"] == 4 and told["said"]["concurrent_sweeps"] == 3
    with roomy.store.read() as session:
        noted = session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    changes = [each for each in noted if each.action == "PATCH /v1/projects/{project_id}/quotas"]
    assert [(each.object, each.before is None) for each in changes] == [("default", True), ("default", False)]


def test_a_change_needs_the_tag_of_what_it_changes(plane: Plane) -> None:
    path, change = "/v1/projects/default/quotas", {"concurrent_sweeps": 2}
    assert plane.client.patch(path, json=change).status_code == 428
    tag = plane.client.get(path).headers["etag"]
    assert plane.client.patch(path, json=change, headers={"if-match": tag}).status_code == 200
    assert plane.client.patch(path, json=change, headers={"if-match": tag}).status_code == 412


@pytest.mark.parametrize(
    "body",
    [
        {"concurrent_sweeps": 0},
        {"concurrent_trials": -1},
        {"concurrent_trials": 1.5},
        {"accelerator_hours": -1},
        {"accelerator_hours": "many"},
        {"period": "week"},
        {"gpus": 1},
    ],
)
def test_a_wrong_quota_is_refused_by_name(plane: Plane, body: dict[str, Any]) -> None:
    answer = plane.client.patch("/v1/projects/default/quotas", json=body, headers={"if-match": "*"})
    assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"].startswith(f"/{next(iter(body))}")


def test_projects_share_the_places_and_see_their_own_alone(settings: Settings) -> None:
    for plane in make_plane(settings, max_running_sweeps=2):
        other = plane.client.post("/v1/projects", json={"name": "team-b"}).json()["id"]
        key = create_key(plane.store, "b", project=other, role="admin")
        mine = [plane.post(name)["id"] for name in "abc"]
        theirs = {"authorization": f"Bearer {key}"}
        late = plane.client.post("/v1/sweeps", json={"name": "late"}, headers=theirs).json()["id"]
        plane.turn()
        assert plane.sweep(mine[0])["reason"] == "STARTING" and plane.sweep(mine[1])["reason"] == "QUEUED"
        shown = plane.client.get(f"/v1/sweeps/{late}", headers=theirs).json()
        assert shown["reason"] == "STARTING", "one each, though it came last"
        assert [each["id"] for each in _quotas(plane)["queue"]] == mine[1:]
        assert _quotas(plane, key)["queue"] == [] and _quotas(plane, key)["project"] == other
        capacity = plane.client.get("/v1/capacity", headers=theirs).json()
        assert capacity["sweeps"] == {"running": 2, "waiting": 2, "limit": 2}
        assert capacity["project"] == {"running": 1, "waiting": 0}
        refused = plane.client.patch(f"/v1/projects/{other}/quotas", json={}, headers={**theirs, "if-match": "*"})
        assert refused.status_code == 403, "nobody raises his own quotas"
        assert plane.client.get("/v1/projects/prj_none/quotas").status_code == 404
