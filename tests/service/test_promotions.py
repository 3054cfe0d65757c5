"""Promotions over fakes: evidence, gate, aliases, approval, a deployment that follows, the way back, and refusals."""

from typing import Any

import pytest

from service.auth import create_key
from tests.fakes import FakeEvaluator, evidence
from tests.service.conftest import Plane

GOOD = {"win_rate": (0.6, 0.7), "capability": (0.0, 0.1), "length_ratio": (0.9, 1.1), "repetition": (0.0, 0.1)}
GOOD |= {"eos_rate": (0.95, 1.0), "empty_rate": (0.0, 0.01), "chosen_drop": (0.1, 0.3), "accuracy_gain": (0.1, 0.2)}
RAMBLES = {**GOOD, "win_rate": (0.9, 0.95), "length_ratio": (5.0, 6.0)}


def won(plane: Plane, name: str = "a", told: dict[str, Any] | None = None) -> str:
    """A sweep that succeeded with two trials; what its finals showed is `told`."""
    sweep_id: str = plane.post(name)["id"]
    plane.turn()
    plane.drive(sweep_id).start().search([0.5, 0.7]).finish(winner=1, evidence=told)
    plane.jobs.become(f"{sweep_id.replace('_', '-')}-a1", "SUCCEEDED")
    plane.turn()
    return sweep_id


def promote(plane: Plane, sweep_id: str | None = None, **more: Any) -> Any:
    body = {"model": "chat", **({"sweep": sweep_id} if sweep_id else {}), **more}
    return plane.client.post("/v1/promotions", json=body)


def shown(plane: Plane, promotion_id: str) -> dict[str, Any]:
    found: dict[str, Any] = plane.client.get(f"/v1/promotions/{promotion_id}").json()
    return found


def aliases(plane: Plane) -> dict[str, int]:
    found: dict[str, int] = plane.client.get("/v1/registry/models/chat").json()["aliases"]
    return found


def champion(plane: Plane, name: str = "a") -> str:
    """Version 1 in production, on the evidence of its sweep's finals."""
    promotion_id: str = promote(plane, won(plane, name, evidence(GOOD)), approval="auto").json()["id"]
    plane.turn(2)
    assert shown(plane, promotion_id)["state"] == "SUCCEEDED"
    return promotion_id


def evaluate(plane: Plane, promotion_id: str, told: dict[str, Any]) -> FakeEvaluator:
    """The job that the promotion waits for runs and publishes."""
    plane.turn(2)
    evaluation_id = shown(plane, promotion_id)["evaluation"]
    driver = FakeEvaluator(plane.settings.run_dir(evaluation_id), 1)
    driver.finish(told)
    plane.jobs.become(f"{evaluation_id.replace('_', '-')}-a1", "SUCCEEDED")
    plane.turn(2)
    return driver


def test_the_finals_are_evidence_enough_where_nothing_is_in_production(plane: Plane) -> None:
    answer = promote(plane, won(plane, told=evidence(GOOD)))
    wish = answer.json()
    assert (answer.status_code, wish["state"], wish["version"], wish["champion"]) == (202, "PENDING", 1, None)
    assert answer.headers["location"] == f"/v1/promotions/{wish['id']}"
    assert aliases(plane) == {}, "a request moves nothing"
    plane.turn(2)
    now = shown(plane, wish["id"])
    assert (now["state"], now["reason"], now["evaluation"]) == ("AWAITING_APPROVAL", "GATE_PASSED", None)
    assert now["decision"]["state"] == "PASS" and now["evidence"]["source"] == "finals"
    assert aliases(plane) == {"candidate": 1}
    plane.turn(3)
    assert shown(plane, wish["id"]) == now, "it waits for a person"

    approved = plane.client.post(f"/v1/promotions/{wish['id']}/approve")
    assert (approved.status_code, approved.json()["reason"]) == (202, "APPROVE_REQUESTED")
    plane.turn()
    assert shown(plane, wish["id"])["state"] == "SUCCEEDED"
    assert aliases(plane) == {"candidate": 1, "production": 1}
    happened = ["promotion.requested", "gate.passed", "alias.moved"]
    happened += ["promotion.approve_requested", "alias.moved", "promotion.succeeded"]
    assert plane.events(wish["id"]) == happened
    told = plane.client.get(f"/v1/promotions/{wish['id']}/events").json()["data"]
    assert told[1]["data"]["evidence"]["figures"]["win_rate"]["low"] == 0.6
    assert told[4]["data"] == {"model": "chat", "alias": "production", "from": None, "to": 1, "promotion": wish["id"]}
    assert told[4]["actor"].startswith("key_"), "who approved"
    of_model = plane.client.get("/v1/registry/models/chat/events").json()["data"]
    assert [event["type"] for event in of_model] == ["model.created", "model.version_registered", *["alias.moved"] * 2]
    assert plane.client.post(f"/v1/promotions/{wish['id']}/approve").json()["allowed"] == ["rollback"]


def test_a_champion_is_met_in_a_job_and_a_deployment_follows_there_and_back(plane: Plane) -> None:
    champion(plane)
    body = {"name": "chat", "model": "chat@production"}
    deployment = plane.client.post("/v1/deployments", json=body).json()
    assert (deployment["model"], deployment["model_version"]) == ("chat@production", 1)
    plane.turn()
    where = f"/v1/deployments/{deployment['id']}"
    assert plane.client.get(where).json()["state"] == "READY"

    second = won(plane, "b", evidence(GOOD))
    wish = promote(plane, second, approval="auto", gate={"prompts": 50, "max_prompts": 100}).json()
    plane.turn(2)
    now = shown(plane, wish["id"])
    assert (now["state"], now["champion"], now["reason"]) == ("RUNNING", 1, "EVALUATING")
    evaluation = plane.client.get(f"/v1/evaluations/{now['evaluation']}").json()
    assert (evaluation["against"], evaluation["candidate"]) == ("champion", "chat, version 2")
    assert evaluation["gate"]["prompts"] == 50
    name = f"{now['evaluation'].replace('_', '-')}-a1"
    run_dir = plane.settings.run_dir(now["evaluation"])
    wanted = f" -m sweeps evaluate {run_dir}/spec.json --out {run_dir} --attempt 1"
    assert plane.jobs.entrypoints[name].endswith(wanted)
    assert plane.client.get("/v1/sweeps").json()["data"][0]["id"] == second, "it is not listed as a sweep"

    plane.deployer.ready = False
    spec = evaluate(plane, wish["id"], evidence(GOOD)).spec
    assert spec.reference.path.endswith("trl_0001/checkpoint") and spec.reference.label == "chat, version 1"
    assert aliases(plane) == {"candidate": 2, "production": 2}
    rolling = plane.client.get(where).json()
    assert (rolling["state"], rolling["reason"], rolling["model_version"]) == ("READY", "ROLLING", 2)
    assert plane.client.get("/v1/models").json()["data"][0]["id"] == "chat", "the old one answers"
    plane.deployer.ready = True
    plane.deployer.become(deployment["id"], "READY")
    plane.turn()
    there = plane.client.get(where).json()
    assert (there["reason"], there["revision"], there["sweep"]) == ("READY", 2, second)
    assert plane.deployer.declared[deployment["id"]].model_path.startswith(str(plane.settings.run_dir(second)))

    assert plane.client.post(f"/v1/promotions/{wish['id']}/rollback").status_code == 202
    plane.turn(3)
    assert shown(plane, wish["id"])["state"] == "ROLLED_BACK"
    assert aliases(plane) == {"candidate": 2, "production": 1}
    back = plane.client.get(where).json()
    assert (back["state"], back["reason"], back["model_version"], back["revision"]) == ("READY", "READY", 1, 3)
    told = plane.client.get(f"{where}/events").json()["data"]
    moved = [event["data"] for event in told if event["type"] == "deployment.weight_changed"]
    assert [(each["from"], each["to"], each["promotion"]) for each in moved] == [(1, 2, wish["id"]), (2, 1, wish["id"])]
    assert [event["type"] for event in told].count("deployment.rolled_out") == 2


def test_a_serve_that_forgot_a_model_on_the_way_is_no_longer_ready(plane: Plane) -> None:
    champion(plane)
    deployment = plane.client.post("/v1/deployments", json={"name": "chat", "model": "chat@production"}).json()
    plane.turn()
    wish = promote(plane, won(plane, "b"), approval="auto").json()
    plane.deployer.ready = False
    evaluate(plane, wish["id"], evidence(GOOD))
    where = f"/v1/deployments/{deployment['id']}"
    assert plane.client.get(where).json()["reason"] == "ROLLING"
    plane.deployer.silent = True
    plane.turn()
    assert plane.client.get(where).json()["state"] == "READY", "silence says nothing about it"
    plane.deployer.silent = False
    plane.deployer.become(deployment["id"], "FAILED", "no memory")
    plane.deployer.ready = True
    plane.turn(40)
    back = plane.client.get(where).json()
    assert (back["state"], back["reason"], back["model_version"]) == ("READY", "ROLLED_BACK", 1), "it answers on"
    assert "revision 2 cannot be loaded: no memory" in back["message"]
    assert plane.deployer.declared[deployment["id"]].revision == 1, "and is not sent after the alias again"
    plane.deployer.ready = False
    plane.deployer.states.clear()  # its cluster was restarted
    plane.turn(7)
    assert plane.client.get(where).json()["state"] == "PENDING"


def test_a_rambling_candidate_that_a_naive_judge_prefers_is_stopped(plane: Plane) -> None:
    champion(plane)
    wish = promote(plane, won(plane, "b"), approval="auto").json()
    evaluate(plane, wish["id"], evidence(RAMBLES, reasons=("control padded: expected ...",)))
    now = shown(plane, wish["id"])
    assert (now["state"], now["reason"]) == ("FAILED", "GATE_FAILED")
    assert "INVALID" in now["message"] and "length_ratio" in now["message"]
    assert now["evidence"]["figures"]["win_rate"]["low"] > 0.7, "although it wins"
    assert aliases(plane) == {"candidate": 1, "production": 1}
    assert plane.events(wish["id"])[-1] == "gate.failed"
    assert plane.client.post(f"/v1/promotions/{wish['id']}/approve").json()["allowed"] == []


def test_open_finals_buy_an_evaluation_and_open_at_the_cap_holds(plane: Plane) -> None:
    open_ = evidence({**GOOD, "win_rate": (0.45, 0.6)})
    wish = promote(plane, won(plane, told=open_)).json()
    evaluate(plane, wish["id"], open_)
    now = shown(plane, wish["id"])
    assert (now["state"], now["reason"], aliases(plane)) == ("HELD", "INCONCLUSIVE", {})
    gates = [kind for kind in plane.events(wish["id"]) if kind.startswith(("gate", "evaluation"))]
    assert gates == ["gate.inconclusive", "evaluation.started", "gate.inconclusive"]
    assert promote(plane, version=1).status_code == 202, "another try, with more prompts, is free"


def test_evidence_that_leaves_out_a_condition_is_not_enough(plane: Plane) -> None:
    partly = evidence({"win_rate": (0.6, 0.7)})
    wish = promote(plane, won(plane, told=partly)).json()
    plane.turn()
    assert shown(plane, wish["id"])["state"] == "RUNNING"
    other = promote(plane, version=1)
    assert (other.status_code, other.json()["existing"]) == (409, wish["id"])


def test_a_wish_can_be_aborted_and_its_evaluation_ends_with_it(plane: Plane) -> None:
    wish = promote(plane, won(plane)).json()
    plane.turn(2)
    evaluation_id = shown(plane, wish["id"])["evaluation"]
    assert plane.client.post(f"/v1/promotions/{wish['id']}/rollback").json()["allowed"] == ["abort"]
    assert plane.client.post(f"/v1/promotions/{wish['id']}/abort").status_code == 202
    plane.turn(4)
    assert shown(plane, wish["id"])["state"] == "CANCELLED"
    assert plane.client.get(f"/v1/evaluations/{evaluation_id}").json()["state"] == "CANCELLED"
    assert "evaluation" in plane.client.post(f"/v1/evaluations/{evaluation_id}/cancel").json()["detail"]


def test_an_evaluation_that_fails_fails_the_promotion_with_its_words(plane: Plane) -> None:
    wish = promote(plane, won(plane)).json()
    plane.turn(2)
    evaluation_id = shown(plane, wish["id"])["evaluation"]
    FakeEvaluator(plane.settings.run_dir(evaluation_id), 1).fail("the judge gave no answer")
    plane.turn(2)
    now = shown(plane, wish["id"])
    assert (now["state"], now["message"]) == ("FAILED", "the judge gave no answer")


def test_only_the_promotion_in_production_can_be_rolled_back(plane: Plane) -> None:
    first = champion(plane)
    refused = plane.client.post(f"/v1/promotions/{first}/rollback")
    assert (refused.status_code, refused.json()["code"]) == (409, "nothing_before")
    wish = promote(plane, won(plane, "b"), approval="auto").json()
    evaluate(plane, wish["id"], evidence(GOOD))
    assert plane.client.post(f"/v1/promotions/{first}/rollback").json()["code"] == "not_in_production"
    assert promote(plane, version=2).json()["code"] == "already_in_production"


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({"model": "A b"}, "/model", "pattern"),
        ({}, "/sweep", "either a sweep"),
        ({"sweep": "swp_x", "version": 1}, "/sweep", "either a sweep"),
        ({"sweep": "swp_x", "comparison": "cmp_x"}, "/sweep", "or a comparison"),
        ({"sweep": "swp_x", "method": "dpo"}, "/method", "is for a comparison"),
        ({"comparison": "cmp_x", "checkpoint": "base"}, "/checkpoint", "is for a sweep"),
        ({"comparison": "cmp_x"}, "/comparison", "there is no comparison"),
        ({"version": 1, "checkpoint": "winner"}, "/checkpoint", "is for a sweep"),
        ({"sweep": "swp_x"}, "/sweep", "no sweep"),
        ({"sweep": "{won}", "checkpoint": "trl_9"}, "/checkpoint", "none of"),
        ({"sweep": "{won}", "gate": {"conditions": {"win": ">0.5"}}}, "/gate/conditions/win", "unknown figure"),
        ({"sweep": "{won}", "gate": "lax"}, "/gate", ""),
        ({"sweep": "{won}", "gate": {"capability": "/no/such.jsonl"}}, "/gate/capability", "no file"),
        ({"sweep": "{won}", "gate": {"capability": "../x"}}, "/gate/capability", "no file"),
        ({"sweep": "{won}", "approval": "never"}, "/approval", ""),
        ({"sweep": "{won}", "force": True}, "/force", "unknown"),
    ],
)
def test_a_promotion_is_refused_by_name(plane: Plane, body: dict[str, Any], pointer: str, words: str) -> None:
    sweep_id = won(plane)
    filled = {key: sweep_id if value == "{won}" else value for key, value in body.items()}
    answer = promote(plane, **{"model": "chat", **filled})
    assert answer.status_code == 422
    faults = {fault["pointer"]: fault["message"] for fault in answer.json()["errors"]}
    assert pointer in faults and words in faults[pointer], faults
    assert plane.client.get("/v1/registry/models").json()["data"] == [], "nothing half-made"


def test_a_sweep_without_a_judge_says_what_to_gate_on(plane: Plane) -> None:
    rows = plane.settings.store.parent / "rows.jsonl"
    rows.write_text("{}")
    sweep_id = plane.post("u", dataset=str(rows))["id"]
    plane.turn()
    plane.drive(sweep_id).start().search([0.5]).finish()
    plane.turn()
    fault = promote(plane, sweep_id).json()["errors"][0]
    assert fault["pointer"] == "/gate/conditions/win_rate" and "accuracy_gain" in fault["message"]
    gate = {"conditions": {"win_rate": None, "accuracy_gain": ">0"}}
    assert promote(plane, sweep_id, gate=gate).status_code == 202


def test_the_registry_lists_models_and_versions(plane: Plane) -> None:
    sweep_id = won(plane)
    assert plane.client.post("/v1/registry/models", json={"name": "chat"}).status_code == 201
    assert plane.client.post("/v1/registry/models", json={"name": "chat"}).status_code == 409
    where = "/v1/registry/models/chat/versions"
    for checkpoint, number in (("winner", 1), ("trl_0000", 2), ("trl_0001", 1), ("base", 3)):
        answer = plane.client.post(where, json={"sweep": sweep_id, "checkpoint": checkpoint})
        assert (answer.status_code, answer.json()["version"]) == (201, number), "a checkpoint is one version"
    page = plane.client.get(f"{where}?limit=2").json()
    assert ([row["version"] for row in page["data"]], page["next"]) == ([3, 2], "2")
    assert [row["version"] for row in plane.client.get(f"{where}?after=2").json()["data"]] == [1]
    assert plane.client.get(f"{where}/1").json()["checkpoint"] == "trl_0001"
    for path in (f"{where}/9", "/v1/registry/models/no", "/v1/promotions/no", "/v1/evaluations/no"):
        assert plane.client.get(path).status_code == 404
    assert plane.client.get("/v1/registry/models/chat").json()["versions"] == 3
    refused = plane.client.post("/v1/deployments", json={"name": "x", "model": "chat@production"})
    assert (refused.status_code, refused.json()["code"]) == (409, "alias_not_set")


def test_an_evaluation_alone_promotes_nobody(plane: Plane) -> None:
    sweep_id = won(plane)
    body = {"name": "look", "sweep": sweep_id, "gate": {"prompts": 20, "max_prompts": 20}}
    wish = plane.client.post("/v1/evaluations", json=body).json()
    plane.turn()
    FakeEvaluator(plane.settings.run_dir(wish["id"]), 1).finish(evidence(GOOD))
    plane.turn()
    found = plane.client.get(f"/v1/evaluations/{wish['id']}").json()
    assert (found["state"], found["decision"]["state"], found["against"]) == ("SUCCEEDED", "PASS", "base")
    assert found["evidence"]["figures"]["win_rate"]["n"] == 100
    (listed,) = plane.client.get("/v1/evaluations?name=look").json()["data"]
    assert listed["evidence"] is None
    assert plane.client.post("/v1/deployments", json={"name": "x", "sweep": wish["id"]}).status_code == 422
    assert plane.client.get("/v1/registry/models").json()["data"] == []


def test_repeated_wishes_are_one_wish(plane: Plane) -> None:
    sweep_id = won(plane, told=evidence(GOOD))
    body, headers = {"model": "chat", "sweep": sweep_id}, {"idempotency-key": "k"}
    first, again = (plane.client.post("/v1/promotions", json=body, headers=headers) for _ in range(2))
    assert first.json() == again.json() and again.headers["idempotency-replayed"] == "true"
    plane.turn()
    verb = f"/v1/promotions/{first.json()['id']}/approve"
    assert [plane.client.post(verb).status_code for _ in range(2)] == [202, 202]
    assert plane.events(first.json()["id"]).count("promotion.approve_requested") == 1
    where = f"/v1/promotions/{first.json()['id']}/events"
    assert plane.client.get(f"{where}?limit=2").json()["has_more"]
    plane.turn()
    stream = plane.client.get(f"{where}?stream=true").text
    assert stream.count("event: alias.moved") == 2 and stream.endswith("event: done\ndata: {}\n\n")
    tag = plane.client.get(first.headers["location"]).headers["etag"]
    assert plane.client.get(first.headers["location"], headers={"if-none-match": tag}).status_code == 304


def test_promoting_needs_its_scope(plane: Plane) -> None:
    sweep_id = won(plane)
    for scopes, status in ((["read", "jobs:write"], 403), (["models:promote"], 202)):
        key = create_key(plane.store, "narrow", scopes=scopes, clock=plane.clock)
        headers = {"authorization": f"Bearer {key}"}
        answer = plane.client.post("/v1/promotions", json={"model": "chat", "sweep": sweep_id}, headers=headers)
        assert answer.status_code == status, answer.text
        read = plane.client.get("/v1/promotions", headers=headers)
        assert read.status_code == (200 if "read" in scopes else 403)
    assert read.json()["scope"] == "read" and read.headers["content-type"] == "application/problem+json"
    with pytest.raises(ValueError, match="unknown scope 'all'"):
        create_key(plane.store, "x", scopes=["all"])


