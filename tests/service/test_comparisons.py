"""Comparisons over fakes: a Ray job like a sweep's, with its own verb; the result, cancel, events, refusals."""

from pathlib import Path
from typing import Any

from sweeps.run_dir import RunDir
from tests.fakes import FakeComparer, evidence
from tests.service.conftest import Plane
from tests.service.test_datasets import stored
from tests.service.test_promotions import GOOD, evaluate, promote
from tests.service.test_promotions import shown as promoted

Json = dict[str, Any]
SIDES = ("candidate", "reference", "base")
BODY: Json = {"name": "mine", "methods": ["sft", "simpo"], "budget": {"trials": 4, "steps": 40}}


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


def test_a_methods_winner_is_deployed_like_a_sweeps(plane: Plane) -> None:
    body = create(plane)

    def deploy(name: str, **source: Any) -> Any:
        return plane.client.post("/v1/deployments", json={"name": name, "comparison": body["id"], **source})

    early = deploy("early")
    assert (early.status_code, early.json()["code"]) == (409, "comparison_not_succeeded")
    plane.turn()
    FakeComparer(plane.settings.run_dir(body["id"])).finish(losers=["sft"])
    plane.turn()
    best = deploy("best")
    assert best.status_code == 202, best.text
    assert (best.json()["sweep"], best.json()["checkpoint"]) == (body["id"], "simpo")
    plane.turn()
    assert plane.client.get(f"/v1/deployments/{best.json()['id']}").json()["state"] == "READY"
    own = plane.settings.run_dir(body["id"]) / "sweeps" / "simpo"
    assert plane.deployer.declared[best.json()["id"]].model_path.startswith(str(own.resolve()))
    for source, pointer, text in (
        ({"method": "sft"}, "/method", "none of those that have a winner: simpo"),
        ({"checkpoint": "base"}, "/checkpoint", "is for a sweep"),
        ({"sweep": "swp_1"}, "/sweep", "either a sweep, or a comparison"),
        ({"comparison": "cmp_x"}, "/comparison", "there is no comparison"),
    ):
        fault = deploy("other", **source).json()["errors"][0]
        assert fault["pointer"] == pointer and text in fault["message"], fault
    alone = plane.client.post("/v1/deployments", json={"name": "b", "sweep": "swp_1", "method": "simpo"})
    assert alone.json()["errors"][0]["pointer"] == "/method"


def test_a_methods_winner_is_promoted_like_a_sweeps(plane: Plane) -> None:
    body = create(plane)
    plane.turn()
    FakeComparer(plane.settings.run_dir(body["id"])).finish()
    for name in BODY["methods"]:
        own = RunDir(plane.settings.run_dir(body["id"]) / "sweeps" / name)
        base = own.root / "prepared" / "base"
        base.mkdir(parents=True)
        (base / "config.json").write_text("{}")
        best = {"trial_id": "trl_0000", "checkpoint": "attempts/1/trials/trl_0000/checkpoint"}
        found = {"best": best, "base": {"checkpoint": "prepared/base"}, "evidence": evidence(GOOD)}
        own.claim(1).publish_result({"attempt": 1, "state": "SUCCEEDED", **found})
    plane.turn()

    first = promote(plane, comparison=body["id"], approval="auto").json()
    plane.turn(2)
    done = promoted(plane, first["id"])
    assert (done["state"], done["evaluation"], done["evidence"]["source"]) == ("SUCCEEDED", None, "finals")
    version = plane.client.get("/v1/registry/models/chat/versions/1").json()
    assert (version["sweep"], version["checkpoint"]) == (body["id"], "simpo"), "the one that leads"

    gate = {"conditions": {"win_rate": ">0.25"}}
    second = promote(plane, comparison=body["id"], method="sft", approval="auto", gate=gate).json()
    evaluate(plane, second["id"], evidence(GOOD))
    plane.turn(2)
    done = promoted(plane, second["id"])
    assert (done["state"], done["version"], done["champion"]) == ("SUCCEEDED", 2, 1), done
    asked = RunDir(plane.settings.run_dir(done["evaluation"])).read_spec()
    sweeps = plane.settings.run_dir(body["id"]).resolve() / "sweeps"
    sides = [Path(asked[side]["path"]).relative_to(sweeps) for side in SIDES]
    assert [side.parts[0] for side in sides] == ["sft", "simpo", "sft"] and sides[2] == Path("sft/prepared/base")
    assert (asked["sweep"]["method"], asked["sweep"]["name"]) == ("sft", "mine-sft")


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
