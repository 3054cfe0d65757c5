"""Deployments: wishes checked at the door, declared to a fake Serve, mirrored, deleted under If-Match."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from service.settings import Settings
from tests.service.conftest import Plane, make_plane


@pytest.fixture
def won(plane: Plane) -> str:
    """A sweep that succeeded with trials 0 and 1; 1 won."""
    return succeeded(plane)


def succeeded(plane: Plane, name: str = "a") -> str:
    """A sweep with two trials and a winner."""
    sweep_id: str = plane.post(name)["id"]
    plane.turn()
    plane.drive(sweep_id).start().search([0.5, 0.7]).finish(winner=1)
    plane.jobs.become(f"{sweep_id.replace('_', '-')}-a1", "SUCCEEDED")
    plane.turn()
    return sweep_id


def deploy(plane: Plane, sweep_id: str, name: str = "best", **more: Any) -> Any:
    """POST a wish."""
    return plane.client.post("/v1/deployments", json={"name": name, "sweep": sweep_id, **more})


def test_accepted_then_observed_ready(plane: Plane, won: str) -> None:
    plane.deployer.ready = False
    answer = deploy(plane, won)
    wish = answer.json()
    assert (answer.status_code, wish["state"], wish["reason"]) == (202, "PENDING", "QUEUED")
    assert answer.headers["location"] == f"/v1/deployments/{wish['id']}"
    assert plane.deployer.calls == [], "no call to Serve in a request"
    plane.turn(2)
    assert plane.client.get(answer.headers["location"]).json()["reason"] == "STARTING"
    plane.deployer.become(wish["id"], "READY")
    plane.turn()
    shown = plane.client.get(answer.headers["location"]).json()
    assert (shown["state"], shown["checkpoint"], shown["sweep"]) == ("READY", "winner", won)
    assert shown["ready_at"] is not None
    declared = plane.deployer.declared[wish["id"]]
    assert declared.name == "best"
    assert declared.model_path == str(plane.settings.run_dir(won) / "attempts/1/trials/trl_0001/checkpoint")
    assert plane.deployer.calls.count("apply") == 1
    assert plane.events(wish["id"]) == ["deployment.requested", "deployment.ready"]


def test_an_adapter_is_served_by_its_bases_replicas(plane: Plane, won: str) -> None:
    base = plane.settings.store / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    checkpoint = plane.settings.run_dir(won) / "attempts/1/trials/trl_0001/checkpoint"
    soup = {"lora": {"rank": 4}, "base": {"hash": "0", "source": str(base)}, "files": {"model.safetensors": "0"}}
    trial = {**soup, "files": {"adapter/adapter_model.safetensors": "0"}}
    for name, text in (
        *(("shared", json.dumps(trial)), ("soup", json.dumps(soup))),
        *(("own", "{}"), ("odd", "[]"), ("none", None)),
    ):
        (checkpoint / "manifest.json").unlink(missing_ok=True)
        if text is not None:
            (checkpoint / "manifest.json").write_text(text)
        assert deploy(plane, won, name).status_code == 202
    plane.turn()
    bases = {d.name: d.base for d in plane.deployer.declared.values()}
    assert bases == {"shared": str(base), "soup": None, "own": None, "odd": None, "none": None}


def test_base_and_trials_can_be_chosen(plane: Plane, won: str) -> None:
    for name, checkpoint in (("base", "base"), ("other", "trl_0000")):
        assert deploy(plane, won, name, checkpoint=checkpoint).status_code == 202
    plane.turn()
    paths = {d.name: d.model_path for d in plane.deployer.declared.values()}
    run_dir = plane.settings.run_dir(won)
    assert paths == {"base": f"{run_dir}/base", "other": f"{run_dir}/attempts/1/trials/trl_0000/checkpoint"}


def test_an_unknown_checkpoint_names_the_choices(plane: Plane, won: str) -> None:
    answer = deploy(plane, won, checkpoint="trl_0009")
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"pointer": "/checkpoint", "message": "'trl_0009' is none of: winner, base, trl_0000, trl_0001"}
    ]


@pytest.mark.parametrize("odd", ["../../etc", "/etc/passwd", "..\\..\\x", "%2e%2e", "trl_0000/../..", ""])
def test_a_checkpoint_is_a_name_not_a_path(plane: Plane, won: str, odd: str) -> None:
    assert deploy(plane, won, checkpoint=odd).status_code == 422


def test_a_path_out_of_the_run_directory_is_not_followed(plane: Plane, won: str) -> None:
    checkpoint = plane.settings.run_dir(won) / "attempts/1/trials/trl_0001/checkpoint"
    (checkpoint / "config.json").unlink()
    checkpoint.rmdir()
    elsewhere = plane.settings.store / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text("{}")
    assert "no longer in the run directory" in deploy(plane, won).json()["detail"]
    checkpoint.symlink_to(elsewhere)
    assert deploy(plane, won).status_code == 422


def test_only_a_sweep_that_succeeded_can_be_deployed(plane: Plane) -> None:
    sweep_id = plane.post()["id"]
    answer = deploy(plane, sweep_id)
    assert (answer.status_code, answer.json()["current_state"]) == (409, "PENDING")
    assert answer.headers["x-should-retry"] == "false"
    assert deploy(plane, "swp_nobody").json()["errors"][0]["pointer"] == "/sweep"


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a b", "a/b", "x" * 64])
def test_names_that_cannot_stand_in_a_url_are_refused(plane: Plane, won: str, name: str) -> None:
    assert deploy(plane, won, name).json()["errors"][0]["pointer"] == "/name"


def test_a_name_is_taken_until_its_deployment_is_gone(plane: Plane, won: str) -> None:
    first = deploy(plane, won).json()
    assert deploy(plane, won).json()["existing"] == first["id"]
    plane.turn()
    path = f"/v1/deployments/{first['id']}"
    assert plane.client.delete(path).status_code == 428
    assert plane.client.delete(path, headers={"if-match": '"1"'}).status_code == 412
    assert plane.client.get(path).json()["state"] == "READY"
    tag = plane.client.get(path).headers["etag"]
    answer = plane.client.delete(path, headers={"if-match": tag})
    assert (answer.status_code, answer.json()["reason"]) == (200, "DELETE_REQUESTED")
    assert plane.client.get("/v1/models").json()["data"] == [], "not offered any more"
    assert plane.client.delete(path, headers={"if-match": "*"}).status_code == 200, "again is fine"
    assert deploy(plane, won).status_code == 409
    plane.turn(2)
    assert plane.deployer.declared == {}
    gone = plane.client.get(path).json()
    assert (gone["state"], gone["ended_at"] is None) == ("DELETED", False)
    assert plane.client.delete(path, headers={"if-match": "*"}).json()["current_state"] == "DELETED"
    assert plane.client.get("/v1/deployments").json()["data"] == []
    assert len(plane.client.get("/v1/deployments?state=DELETED").json()["data"]) == 1
    assert deploy(plane, won).status_code == 202
    plane.turn(2)
    assert len(plane.deployer.declared) == 1


def test_a_model_that_does_not_load_is_failed_with_the_cause_beside_the_good_one(plane: Plane, won: str) -> None:
    good, bad = deploy(plane, won, "good").json()["id"], deploy(plane, won, "bad", checkpoint="base").json()["id"]
    plane.deployer.bad = {f"{plane.settings.run_dir(won)}/base"}
    plane.turn()
    shown = plane.client.get(f"/v1/deployments/{bad}").json()
    assert (shown["state"], shown["reason"]) == ("FAILED", "SERVE_FAILED") and "no model in" in shown["message"]
    assert plane.client.get(f"/v1/deployments/{good}").json()["state"] == "READY"


def test_what_serve_forgot_is_declared_again(plane: Plane, won: str) -> None:
    deployment_id = deploy(plane, won).json()["id"]
    plane.turn()
    plane.deployer.ready = False
    plane.deployer.states.clear()  # its cluster was restarted
    plane.turn(7)
    assert plane.client.get(f"/v1/deployments/{deployment_id}").json()["state"] == "PENDING"
    assert plane.deployer.calls.count("apply") == 2
    plane.deployer.become(deployment_id, "READY")
    plane.turn()
    assert plane.client.get(f"/v1/deployments/{deployment_id}").json()["state"] == "READY"


def test_a_silent_serve_changes_no_state_and_is_left_alone_for_a_while(plane: Plane, won: str) -> None:
    deployment_id = deploy(plane, won).json()["id"]
    plane.turn()
    plane.deployer.silent = True
    plane.turn(40)
    shown = plane.client.get(f"/v1/deployments/{deployment_id}").json()
    assert (shown["state"], shown["reason"]) == ("READY", "SERVE_UNREACHABLE")
    assert len(plane.deployer.calls) < 15
    plane.deployer.silent = False
    plane.turn(31)
    assert plane.client.get(f"/v1/deployments/{deployment_id}").json()["reason"] == "READY"


def test_steady_deployments_cost_few_calls(plane: Plane, won: str) -> None:
    deploy(plane, won)
    plane.turn()
    plane.deployer.calls.clear()
    plane.turn(20)
    assert set(plane.deployer.calls) == {"observe"} and len(plane.deployer.calls) <= 4


def test_the_same_key_makes_one_deployment(plane: Plane, won: str) -> None:
    body = {"name": "best", "sweep": won}
    first, second = (
        plane.client.post("/v1/deployments", json=body, headers={"idempotency-key": "k"}) for _ in range(2)
    )
    assert first.json() == second.json() and second.headers["idempotency-replayed"] == "true"


@pytest.fixture
def without_proxy(settings: Settings) -> Iterator[Plane]:
    yield from make_plane(settings, proxy_models=False)


def test_where_a_gateway_routes_models_the_api_does_not(without_proxy: Plane) -> None:
    assert without_proxy.client.get("/v1/models").status_code == 404


@pytest.fixture
def with_vllm(settings: Settings) -> Iterator[Plane]:
    yield from make_plane(settings, vllm_python="/opt/vllm/bin/python")


def test_an_engine_is_declared_where_it_is_set_up(with_vllm: Plane) -> None:
    won = succeeded(with_vllm)
    chosen, meant = deploy(with_vllm, won, engine="vllm").json(), deploy(with_vllm, won, "other").json()
    assert (chosen["engine"], meant["engine"]) == ("vllm", "transformers")
    with_vllm.turn()
    declared = with_vllm.deployer.declared
    assert [declared[one["id"]].engine for one in (chosen, meant)] == ["vllm", "transformers"]


def test_an_engine_that_is_not_there_is_refused_by_name(plane: Plane, won: str) -> None:
    for engine, words in (("vllm", "SIMPO_VLLM_PYTHON must name a Python that has it"), ("tgi", "vllm")):
        answer = deploy(plane, won, engine=engine)
        assert answer.status_code == 422, answer.text
        (fault,) = answer.json()["errors"]
        assert fault["pointer"] == "/engine" and words in fault["message"]
