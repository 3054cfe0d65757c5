"""Comparisons over fakes: a Ray job like a sweep's, with its own verb; the result, cancel, events, refusals."""

from pathlib import Path
from typing import Any

from sweeps.comparison_hash import comparison_hash
from sweeps.run_dir import Attempt, RunDir
from tests.service.conftest import Plane
from tests.service.test_datasets import stored

Json = dict[str, Any]
BODY: Json = {"name": "mine", "methods": ["sft", "simpo"], "budget": {"trials": 4, "steps": 40}}


class FakeComparer:
    """What the job of a comparison leaves in its directory. Making it claims the attempt."""

    def __init__(self, run_dir: Path, attempt: int = 1) -> None:
        self.run = RunDir(run_dir)
        self.attempt: Attempt = self.run.claim(attempt)
        data = {"phase": "comparing", "progress": 0.5, "method": "simpo"}
        self.attempt.append("job.phase", "simpo: method 2 of 2", data)
        self.attempt.beat({})

    def finish(self) -> None:
        mark = comparison_hash(self.run.read_spec())
        compared = {"leaderboard": [{"rank": 1, "name": "simpo"}], "verdicts": []}
        result = {"attempt": self.attempt.number, "spec_hash": mark, "state": "SUCCEEDED", "comparison": compared}
        self.attempt.publish_result(result)
        self.attempt.append("job.finished", "2 methods compared", {})


def create(plane: Plane, **changes: Any) -> Json:
    answer = plane.client.post("/v1/comparisons", json={**BODY, **changes})
    assert answer.status_code == 202, answer.text
    body: Json = answer.json()
    assert answer.headers["location"] == f"/v1/comparisons/{body['id']}"
    return body


def shown(plane: Plane, comparison_id: str) -> Json:
    found: Json = plane.client.get(f"/v1/comparisons/{comparison_id}").json()
    return found


def test_a_comparison_runs_as_one_job_and_shows_its_result(plane: Plane) -> None:
    body = create(plane)
    assert body["id"].startswith("cmp_") and (body["object"], body["state"]) == ("comparison", "PENDING")
    assert body["methods"] == ["sft", "simpo"]
    plane.turn()
    (command,) = plane.jobs.entrypoints.values()
    assert " -m sweeps compare " in command and command.endswith("--attempt 1")
    driver = FakeComparer(plane.settings.run_dir(body["id"]))
    plane.turn()
    running = shown(plane, body["id"])
    assert (running["state"], running["reason"], running["progress"]) == ("RUNNING", "COMPARING", 0.5)
    driver.finish()
    plane.turn()
    done = shown(plane, body["id"])
    assert done["state"] == "SUCCEEDED" and done["result"]["leaderboard"][0]["name"] == "simpo"
    (listed,) = plane.client.get("/v1/comparisons?state=SUCCEEDED&name=mine").json()["data"]
    assert listed["id"] == body["id"] and listed["result"] is None
    told = plane.client.get(f"/v1/comparisons/{body['id']}/events").json()["data"]
    happened = ["job.queued", "job.submitted", "job.phase", "job.finished", "job.succeeded"]
    assert [event["type"] for event in told] == happened
    for kind in ("sweeps", "runs", "evaluations"):
        assert plane.client.get(f"/v1/{kind}/{body['id']}").status_code == 404
    refused = plane.client.post("/v1/deployments", json={"name": "a", "sweep": body["id"]})
    assert refused.status_code == 422 and "no sweep or run" in refused.json()["detail"]


def test_a_lost_one_is_resumed_and_a_cancelled_one_ends(plane: Plane) -> None:
    body = create(plane)
    plane.turn()
    FakeComparer(plane.settings.run_dir(body["id"]))
    plane.turn()
    plane.jobs.become(f"{body['id'].replace('_', '-')}-a1", "FAILED")
    plane.turn(2)
    plane.clock.advance(plane.settings.heartbeat_stale_s + 1)
    plane.turn(2)
    assert [attempt.n for attempt in plane.attempts(body["id"])] == [1, 2]
    assert plane.client.post(f"/v1/comparisons/{body['id']}/cancel").status_code == 202
    plane.turn(2)
    assert shown(plane, body["id"])["state"] == "CANCELLED"
    assert plane.client.post(f"/v1/comparisons/{body['id']}/cancel").json()["code"] == "illegal_transition"


def test_data_by_id_plans_and_refusals(plane: Plane) -> None:
    dataset = stored(plane)
    body = create(plane, dataset=dataset["id"])
    assert body["spec"]["dataset"]["train"].endswith(f"{dataset['id']}/rows.jsonl")
    refused = plane.client.delete(f"/v1/datasets/{dataset['id']}", headers={"if-match": "*"})
    assert (refused.json()["code"], refused.json()["existing"]) == ("dataset_in_use", body["id"])
    answer = plane.client.post("/v1/comparisons?validate_only=true", json={**BODY, "name": "other"})
    assert answer.status_code == 200 and set(answer.json()["plan"]) == {"sft", "simpo"}
    for change, pointer in (
        ({"methods": ["sft"]}, "/methods"),
        ({"methods": ["sft", "nope"]}, "/methods/1"),
        ({"dataset": "dst_0"}, "/dataset/train"),
        ({"base_model": "/no/model"}, "/base_model"),
        ({"nope": 1}, "/nope"),
    ):
        problem = plane.client.post("/v1/comparisons", json={**BODY, "name": "x", **change}).json()
        assert problem["status"] == 422 and problem["errors"][0]["pointer"].startswith(pointer), problem
    assert plane.client.post("/v1/comparisons", json=BODY).json()["code"] == "name_taken"
    key = {"idempotency-key": "k"}
    twice = [plane.client.post("/v1/comparisons", json={**BODY, "name": "k"}, headers=key) for _ in range(2)]
    assert twice[0].json() == twice[1].json()
