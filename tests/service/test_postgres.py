"""The same service on PostgreSQL: a whole life, from POST to a deleted deployment."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import Settings
from tests.service.conftest import Plane, make_plane
from tests.service.postgres import fresh_database
from tests.service.two_projects import ask, routes, settle, twin


@pytest.fixture
def plane(postgres: Path, tmp_path: Path) -> Iterator[Plane]:
    """The default one, on PostgreSQL."""
    url = fresh_database(postgres)
    yield from make_plane(Settings(database_url=url, store=tmp_path / "store", reconcile=False))


def test_a_whole_life(plane: Plane) -> None:
    sweep_id = plane.post("a")["id"]
    queued = plane.post("b")["id"]
    plane.turn()
    driver = plane.drive(sweep_id).start()
    driver.create(0)
    assert plane.client.post(f"/v1/sweeps/{sweep_id}/pause", headers={"idempotency-key": "p"}).status_code == 202
    plane.turn()
    change = plane.settings.run_dir(sweep_id) / "control/00000001.json"
    facts = {"seq": 1, "file": change.name, "action": "pause", "edit": json.loads(change.read_text())}
    driver.attempt.append("control.applied", "paused", facts)
    plane.turn()
    assert plane.sweep(sweep_id)["reason"] == "PAUSED"
    plane.client.post(f"/v1/sweeps/{sweep_id}/resume")
    plane.jobs.become(f"{sweep_id.replace('_', '-')}-a1", "FAILED")
    plane.turn(23)
    plane.drive(sweep_id, 2).start().search([0.5, 0.7]).finish(winner=1)
    plane.turn()
    shown = plane.sweep(sweep_id)
    assert (shown["state"], shown["attempt"], shown["trials"]) == ("SUCCEEDED", 2, {"SUCCEEDED": 2})
    edits = plane.client.get(f"/v1/sweeps/{sweep_id}/edits").json()["data"]
    assert [(edit["action"], edit["state"]) for edit in edits] == [("pause", "applied"), ("resume", "refused")]
    assert [trial["number"] for trial in plane.client.get(f"/v1/sweeps/{sweep_id}/trials").json()["data"]] == [0, 1]
    stream = plane.client.get(f"/v1/sweeps/{sweep_id}/events?stream=true").text
    assert stream.endswith("event: done\ndata: {}\n\n")

    plane.client.post(f"/v1/sweeps/{queued}/cancel", headers={"idempotency-key": "c"})
    plane.turn(2)
    assert plane.sweep(queued)["state"] == "CANCELLED"

    wish = plane.client.post("/v1/deployments", json={"name": "best", "sweep": sweep_id}).json()
    plane.turn()
    path = f"/v1/deployments/{wish['id']}"
    assert plane.client.get(path).json()["state"] == "READY"
    plane.client.delete(path, headers={"if-match": "*"})
    plane.turn(2)
    assert plane.client.get(path).json()["state"] == "DELETED"
    assert plane.client.get("/v1/sweeps?state=CANCELLED").json()["data"][0]["created_at"].endswith("Z")


@pytest.fixture
def wide(postgres: Path, tmp_path: Path) -> Iterator[Plane]:
    """One that runs what two projects have at once."""
    settings = Settings(database_url=fresh_database(postgres), store=tmp_path / "store", reconcile=False)
    yield from make_plane(settings, max_running_sweeps=50)


def test_two_projects_are_apart_here_too(wide: Plane) -> None:
    """Every path with an id, and the log; `test_matrix.py` asks all of the rest on SQLite."""
    south, north = settle(wide, "south"), settle(wide, "north")
    strangers = {name: twin(id) for name, id in south.ids.items()}
    for method, path, _ in routes(wide):
        answers = [ask(wide, method, path, ids, north.headers) for ids in (south.ids, strangers)]
        assert "{" not in path or answers[0].status_code == answers[1].status_code >= 400, f"{method} {path}"
        shown = answers[0].text if method == "GET" and "{" not in path and path != "/v1/audit" else ""
        assert not [word for word in south.known_by if word in shown], f"{method} {path}"
    odd = wide.client.post("/v1/sweeps/%00/cancel", headers=south.headers)
    assert odd.status_code == 422 and "NUL" in odd.json()["detail"], "PostgreSQL's refusal is not its failure"
    log = wide.client.get("/v1/audit?action=POST%20/v1/sweeps", headers=south.headers).json()["data"]
    assert [row["target"] for row in log] == [south.ids["sweep_id"], south.ids["won"]]
