"""SIMPO_STORE=s3://...: the life of a sweep whose driver shares nothing with the service but a bucket."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.run_dirs import place_in_bucket, run_of
from service.serving.declared import Replicas
from service.settings import Settings
from simpo.errors import ConfigError
from sweeps.working_copy import open_run
from tests.fakes import FakeDriver, FakeEvaluator, evidence
from tests.service.conftest import Plane, make_plane
from tests.service.test_promotions import GOOD
from tests.sweeps.s3_double import S3Double

ENDPOINT = {"type": "openai", "url": "http://127.0.0.1:1/v1", "model": "m", "max_requests": 500}


@pytest.fixture
def plane(settings: Settings, s3: S3Double, tmp_path: Path) -> Iterator[Plane]:
    """Its store is a bucket."""
    bucket = f"s3://{s3.bucket()}/simpo"
    yield from make_plane(replace(settings, store=bucket, copies=tmp_path / "copies"))


def _driver(plane: Plane, sweep_id: str, elsewhere: Path, attempt: int = 1) -> FakeDriver:
    """On a machine of its own."""
    return FakeDriver(open_run(f"{plane.settings.bucket}/sweeps/{sweep_id}", elsewhere), attempt)


def test_from_accepted_to_succeeded(plane: Plane, tmp_path: Path) -> None:
    sweep = plane.post()
    plane.turn()
    place = f"{plane.settings.bucket}/sweeps/{sweep['id']}"
    assert next(iter(plane.jobs.entrypoints.values())).endswith(f"run {place}/spec.json --out {place} --attempt 1")
    driver = _driver(plane, sweep["id"], tmp_path / "machine").start().search([0.5, 0.7])
    assert driver.run.read_spec()["name"] == sweep["name"]
    plane.turn()
    shown = plane.sweep(sweep["id"])
    assert (shown["state"], shown["trials"]) == ("RUNNING", {"SUCCEEDED": 2})
    edit = plane.client.post(f"/v1/sweeps/{sweep['id']}/pause", json={})
    assert edit.status_code == 202, edit.text
    plane.turn()
    driver.run.refresh_edits()
    assert [path.name for path in driver.run.control.iterdir()] == ["00000001.json"]
    driver.finish(winner=1)
    plane.turn()
    shown = plane.sweep(sweep["id"])
    assert (shown["state"], shown["result"]["best"]["trial_id"]) == ("SUCCEEDED", "trl_0001")
    assert plane.client.get("/v1/sweeps/" + sweep["id"]).status_code == 200


def test_a_store_that_is_away_stops_nothing_for_good(plane: Plane, s3: S3Double, tmp_path: Path) -> None:
    sweep = plane.post()
    away = s3.fail("503", times=math.inf)
    plane.turn()
    assert plane.sweep(sweep["id"])["reason"] == "STORE_UNWRITABLE"
    away.times = 0
    plane.clock.advance(60)
    plane.turn()
    driver = _driver(plane, sweep["id"], tmp_path / "machine").start()
    away.times = math.inf
    plane.turn()
    shown = plane.sweep(sweep["id"])
    assert (shown["state"], shown["reason"]) == ("PENDING", "RUN_DIR_UNREADABLE")
    assert "SlowDown" in shown["message"]
    away.times = 0
    driver.search([0.6]).finish()
    plane.turn()
    assert plane.sweep(sweep["id"])["state"] == "SUCCEEDED"


def test_a_lost_driver_is_followed_by_another_elsewhere(plane: Plane, tmp_path: Path) -> None:
    sweep = plane.post()
    plane.turn()
    _driver(plane, sweep["id"], tmp_path / "first").start().search([0.6])
    plane.turn()
    plane.jobs.become(f"{sweep['id'].replace('_', '-')}-a1", "FAILED", "node lost")
    plane.clock.advance(plane.settings.heartbeat_stale_s + 1)
    plane.turn(2)
    assert [attempt.state for attempt in plane.attempts(sweep["id"])] == ["LOST", "SUBMITTED"]
    second = _driver(plane, sweep["id"], tmp_path / "second", 2).start()
    assert len(list((second.run.attempt(1).path / "journal").iterdir())) > 0, "it has read its predecessor"
    second.search([0.6]).finish()
    plane.turn()
    assert plane.sweep(sweep["id"])["state"] == "SUCCEEDED"
    assert run_of(plane.settings, sweep["id"]).highest() == 2


def _succeeded(plane: Plane, tmp_path: Path, told: dict[str, Any] | None = None) -> dict[str, Any]:
    """A sweep with a winner; what its finals showed is `told`."""
    sweep = plane.post(tmp_path.name.replace("_", "-")[:20])
    plane.turn()
    _driver(plane, sweep["id"], tmp_path / "machine").start().search([0.6]).finish(evidence=told)
    plane.jobs.become(f"{sweep['id'].replace('_', '-')}-a1", "SUCCEEDED")
    plane.turn()
    return sweep


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"judge": ENDPOINT, "objective": "accuracy"}, "/judge"),
        ({"parallel": {"workers_per_trial": 2}}, "/parallel/workers_per_trial"),
    ],
)
def test_what_a_bucket_cannot_keep_is_refused_by_name(plane: Plane, changes: dict[str, Any], pointer: str) -> None:
    answer = plane.client.post("/v1/sweeps", json={"name": "x", **changes})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer), answer.text


def test_what_needs_a_directory_is_refused_by_name(plane: Plane) -> None:
    answer = plane.client.post("/v1/comparisons", json={"name": "x", "methods": ["simpo", "dpo"]})
    assert answer.status_code == 422
    assert "a comparison cannot be kept in an object store yet" in answer.text
    answer = plane.client.post("/v1/datasets", files={"file": ("rows.jsonl", b"{}\n")})
    assert (answer.status_code, answer.json()["code"]) == (409, "needs_file_system"), answer.text


def test_a_winner_is_deployed_by_its_place_in_the_bucket(plane: Plane, s3: S3Double, tmp_path: Path) -> None:
    sweep = _succeeded(plane, tmp_path)
    asked = len(s3.asked)
    created = plane.client.post("/v1/deployments", json={"name": "chat", "sweep": sweep["id"]})
    assert created.status_code == 202, created.text
    assert len(s3.asked) == asked, "rows say it all: an API may have no keys"
    plane.turn()
    place = f"{plane.settings.bucket}/sweeps/{sweep['id']}/attempts/1/trials/trl_0000/checkpoint"
    (wanted,) = plane.deployer.declared.values()
    assert (wanted.model_path, wanted.base) == (place, None)
    (application,) = Replicas(cache_dir="/cache", cache_bytes=5).applications([wanted])
    args = application["args"]
    assert (args["model_path"], args["cache_dir"], args["cache_bytes"]) == (place, "/cache", 5)
    assert plane.client.get(f"/v1/deployments/{created.json()['id']}").json()["state"] == "READY"
    for wrong in ("trl_0099", "../spec.json"):
        answer = plane.client.post("/v1/deployments", json={"name": "x", "sweep": sweep["id"], "checkpoint": wrong})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/checkpoint"), answer.text


def test_a_version_in_a_bucket_is_registered_promoted_and_followed(plane: Plane, tmp_path: Path) -> None:
    first, second = (_succeeded(plane, tmp_path / name, evidence(GOOD)) for name in ("a", "b"))
    assert _promoted(plane, first)["state"] == "SUCCEEDED"
    wish = {"name": "chat", "model": "chat@production"}
    assert plane.client.post("/v1/deployments", json=wish).status_code == 202
    plane.turn(2)
    (wanted,) = plane.deployer.declared.values()
    assert wanted.model_path.startswith(f"{plane.settings.bucket}/sweeps/{first['id']}/attempts/1/trials/")
    promotion = _promoted(plane, second)
    assert promotion["state"] == "RUNNING", "against a champion, by an evaluation"
    place = f"{plane.settings.bucket}/sweeps/{promotion['evaluation']}"
    command = plane.jobs.entrypoints[f"{promotion['evaluation'].replace('_', '-')}-a1"]
    assert command.endswith(f"evaluate {place}/spec.json --out {place} --attempt 1")
    driver = FakeEvaluator(open_run(place, tmp_path / "elsewhere"))
    assert driver.spec.reference.path == wanted.model_path
    assert driver.spec.candidate.path == wanted.model_path.replace(first["id"], second["id"])
    driver.finish(evidence(GOOD))
    plane.jobs.become(f"{promotion['evaluation'].replace('_', '-')}-a1", "SUCCEEDED")
    plane.turn(4)
    (follows,) = plane.deployer.declared.values()
    assert (follows.model_path, follows.revision) == (driver.spec.candidate.path, wanted.revision + 1)


def _promoted(plane: Plane, sweep: dict[str, Any]) -> dict[str, Any]:
    """A promotion some passes later."""
    wish = {"model": "chat", "sweep": sweep["id"], "checkpoint": "winner", "approval": "auto"}
    answer = plane.client.post("/v1/promotions", json=wish)
    assert answer.status_code == 202, answer.text
    plane.turn(3)
    shown: dict[str, Any] = plane.client.get(f"/v1/promotions/{answer.json()['id']}").json()
    return shown


@pytest.mark.quick
def test_the_setting_is_a_directory_or_a_bucket() -> None:
    set_up = Settings.from_env({"SIMPO_STORE": "s3://bucket/simpo/", "SIMPO_COPIES": "/var/copies"})
    assert set_up.bucket == "s3://bucket/simpo"
    assert Settings.from_env(set_up.to_env()) == set_up
    assert set_up.run_dir("swp_1") == Path("/var/copies/sweeps/swp_1")
    assert Settings().bucket is None
    assert place_in_bucket(set_up, "swp_1", "attempts/1/prepared/base") == (
        "s3://bucket/simpo/sweeps/swp_1/attempts/1/prepared/base"
    )
    for elsewhere in ("/models/base", "org/base", "attempts/../../swp_2/attempts/1"):
        assert place_in_bucket(set_up, "swp_1", elsewhere) is None
    assert place_in_bucket(Settings(), "swp_1", "attempts/1/prepared/base") is None
    with pytest.raises(ConfigError, match="SIMPO_STORE: must be s3://BUCKET/PREFIX"):
        Settings.from_env({"SIMPO_STORE": "s3://KEY:SECRET@bucket"})
