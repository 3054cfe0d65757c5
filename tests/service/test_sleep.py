"""Deployments that may sleep: declared so once they were seen to load, shown asleep, never beside a candidate."""

from typing import Any

import pytest

from tests.service.conftest import Plane
from tests.service.test_cli_datasets import simpo
from tests.service.test_deployments import deploy, succeeded


@pytest.fixture
def won(plane: Plane) -> str:
    """A sweep that succeeded."""
    return succeeded(plane)


def scale(plane: Plane, id: str, **body: Any) -> Any:
    """POST whether it may sleep."""
    return plane.client.post(f"/v1/deployments/{id}/scaling", json=body)


def shown(plane: Plane, id: str) -> dict[str, Any]:
    """The deployment."""
    found: dict[str, Any] = plane.client.get(f"/v1/deployments/{id}").json()
    return found


def test_it_is_declared_with_a_replica_until_it_has_loaded(plane: Plane, won: str) -> None:
    plane.deployer.ready = False
    made = deploy(plane, won, min_replicas=0, idle_s=60).json()
    assert (made["min_replicas"], made["idle_s"]) == (0, 60)
    plane.turn(3)
    assert plane.deployer.declared[made["id"]].idle_s is None
    plane.deployer.become(made["id"], "READY")
    plane.deployer.ready = True
    plane.turn(2)
    assert plane.deployer.declared[made["id"]].idle_s == 60
    assert plane.deployer.calls.count("apply") == 2
    assert shown(plane, made["id"])["reason"] == "READY"
    plane.turn(20)
    assert plane.deployer.calls.count("apply") == 2, "it is as wished"


def test_what_sleeps_is_ready_says_so_and_is_listed(plane: Plane, won: str) -> None:
    id = deploy(plane, won, min_replicas=0).json()["id"]
    assert shown(plane, id)["idle_s"] == 600
    plane.turn(2)
    for rest, reason, words in (
        ("ASLEEP", "ASLEEP", "the next request starts one"),
        ("WAKING", "WAKING", "requests wait for it"),
        ("", "READY", "Answers."),
    ):
        plane.deployer.rests(id, rest)  # type: ignore[arg-type]
        plane.turn(6)
        told = shown(plane, id)
        assert (told["state"], told["reason"]) == ("READY", reason) and words in told["message"]
        assert [model["id"] for model in plane.client.get("/v1/models").json()["data"]] == ["best"]
    assert plane.events(id) == ["deployment.requested", "deployment.ready"], "sleep is no event"


def test_a_new_revision_is_loaded_before_it_may_sleep(plane: Plane, won: str) -> None:
    """Serve would call it RUNNING without any replica, and nobody would know whether it loads."""
    id = deploy(plane, won, min_replicas=0, idle_s=60).json()["id"]
    plane.turn(3)
    plane.deployer.ready = False
    wish = {"sweep": won, "checkpoint": "trl_0000", "weight": 50, "guard": None}
    assert plane.client.post(f"/v1/deployments/{id}/canary", json=wish).status_code == 202
    plane.turn(2)
    assert {each.idle_s for each in plane.deployer.declared.values()} == {None}, "champion and candidate stay"
    for each in plane.deployer.declared:
        plane.deployer.become(each, "READY")
    plane.turn(2)
    plane.client.post(f"/v1/deployments/{id}/promote")
    plane.turn(3)
    assert (shown(plane, id)["reason"], plane.deployer.declared[id].idle_s) == ("ROLLING", None)
    plane.deployer.become(id, "READY")
    plane.deployer.ready = True
    plane.turn(3)
    assert plane.client.get(f"/v1/deployments/{id}/canary").json()["state"] == "PROMOTED"
    assert plane.deployer.declared[id].idle_s == 60


def test_it_is_told_later_and_told_otherwise(plane: Plane, won: str) -> None:
    id = deploy(plane, won).json()["id"]
    plane.turn(2)
    answer = scale(plane, id, min_replicas=0, idle_s=90)
    assert (answer.status_code, answer.json()["idle_s"]) == (202, 90)
    assert answer.headers["etag"] == plane.client.get(f"/v1/deployments/{id}").headers["etag"]
    plane.turn(2)
    assert plane.deployer.declared[id].idle_s == 90
    assert scale(plane, id, min_replicas=0, idle_s=90).status_code == 202
    assert scale(plane, id, min_replicas=1).json()["idle_s"] is None
    plane.turn(2)
    assert plane.deployer.declared[id].idle_s is None
    assert plane.events(id).count("deployment.scaling_changed") == 2


def test_what_cannot_be_honoured_is_refused_by_name(plane: Plane, won: str) -> None:
    for body, pointer in (
        ({"idle_s": 60}, "/idle_s"),
        ({"min_replicas": 1, "idle_s": 60}, "/idle_s"),
        ({"min_replicas": 0, "idle_s": 0}, "/idle_s"),
        ({"min_replicas": 2}, "/min_replicas"),
    ):
        answer = deploy(plane, won, **body)
        assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"] == pointer, answer.text
    assert scale(plane, "dep_x", min_replicas=0).status_code == 404
    id = deploy(plane, won).json()["id"]
    assert scale(plane, id, min_replicas=1, idle_s=5).status_code == 422
    plane.turn(2)
    plane.client.delete(f"/v1/deployments/{id}", headers={"If-Match": "*"})
    late = scale(plane, id, min_replicas=0)
    assert late.status_code == 409 and "cannot be told when to sleep" in late.json()["detail"]


def test_from_the_command_line(plane: Plane, won: str) -> None:
    made = simpo(plane, "deploy", "create", "best", "--sweep", "a", "--idle", "10m", "--no-wait")
    assert made.exit_code == 0, made.stderr
    (row,) = plane.client.get("/v1/deployments").json()["data"]
    assert row["idle_s"] == 600
    assert simpo(plane, "deploy", "sleep", "best", "--after", "90s").stdout == (
        "best sleeps after 90 s without a request\n"
    )
    assert simpo(plane, "deploy", "sleep", "best", "--never").stdout == "best never sleeps\n"
    for words in ((), ("--after", "5s", "--never"), ("--after", "soon")):
        assert simpo(plane, "deploy", "sleep", "best", *words).exit_code == 2
