"""The deployer and the client against an API server in trouble: bounded calls, no hot loop, a reason that is shown."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.kube import KubeApi, KubeError
from service.serving.deployer import DeployerError
from service.settings import Settings
from service.states import DeploymentState
from tests.service.conftest import Plane, make_plane
from tests.service.kube_double import NAMESPACE, KubeDouble
from tests.service.test_deployments import deploy, succeeded
from tests.service.test_rayservice import NAME, WINNER, Stage, kubeconfig

Json = dict[str, Any]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with KubeDouble(speed=0.0) as kube:
        yield Stage(kube, tmp_path)


@pytest.fixture
def wired(settings: Settings, stage: Stage) -> Iterator[Plane]:
    """A whole control plane whose deployer is the RayService's; its clock stands still, the server's with it."""
    yield from make_plane(settings, real_deployer=stage.deployer)


def shown(plane: Plane, deployment_id: str) -> Json:
    """The deployment as the API shows it."""
    found: Json = plane.client.get(f"/v1/deployments/{deployment_id}").json()
    return found


def turn(plane: Plane, stage: Stage, times: int = 1) -> None:
    """Seconds pass for everybody."""
    for _ in range(times):
        plane.turn()
        stage.ray.tick()
        stage.kube.skip(1.0)


def test_a_wish_becomes_ready_and_goes_again(wired: Plane, stage: Stage) -> None:
    wish = deploy(wired, succeeded(wired)).json()
    turn(wired, stage, 4)
    assert shown(wired, wish["id"])["state"] == DeploymentState.PENDING
    turn(wired, stage, 20)
    assert shown(wired, wish["id"])["state"] == DeploymentState.READY
    stage.kube.calls.clear()
    turn(wired, stage, 30)
    assert {verb for verb, _, _ in stage.kube.calls} == {"get"} and len(stage.kube.calls) <= 8
    wired.client.delete(f"/v1/deployments/{wish['id']}", headers={"if-match": "*"})
    turn(wired, stage, 20)
    assert shown(wired, wish["id"])["state"] == DeploymentState.DELETED
    assert stage.ray.answers(NAME, "/d/best") is None


@pytest.mark.parametrize(
    ("status", "reason", "retry_after"),
    [
        (409, "Conflict", None),
        (429, "TooManyRequests", 7.0),
        (503, "ServiceUnavailable", 7.0),
        (500, "InternalError", None),
    ],
)
def test_a_storm_changes_no_state_and_costs_few_calls(
    wired: Plane, stage: Stage, status: int, reason: str, retry_after: float | None
) -> None:
    wish = deploy(wired, succeeded(wired)).json()
    turn(wired, stage, 30)
    stage.kube.calls.clear()
    stage.kube.faults = [(status, reason, retry_after)] * 1000
    turn(wired, stage, 120)
    seen = shown(wired, wish["id"])
    assert (seen["state"], seen["reason"]) == ("READY", "SERVE_UNREACHABLE")
    assert str(status) in seen["message"] or "left alone" in seen["message"]
    assert len(stage.kube.calls) <= 10, "a call for every pause, not for every pass"
    stage.kube.faults = []
    wired.clock.advance(60)
    stage.api._quiet_until = 0.0
    turn(wired, stage, 3)
    assert shown(wired, wish["id"])["reason"] == "READY"


def test_conflicts_between_look_and_apply_end_by_themselves(wired: Plane, stage: Stage) -> None:
    """Other writers may win the race for a while: each pass tries once."""
    wish = deploy(wired, succeeded(wired)).json()
    real, left = stage.api.apply, 5

    def contended(*args: Any, **options: Any) -> Json:
        nonlocal left
        left -= 1
        if left >= 0:
            stage.kube.faults = [(409, "Conflict", None)]
        return real(*args, **options)

    stage.api.apply = contended  # type: ignore[method-assign]
    turn(wired, stage, 90)
    assert shown(wired, wish["id"])["state"] == DeploymentState.READY
    assert sum(verb == "patch" for verb, _, _ in stage.kube.calls) == 6


def test_retry_after_is_kept_whoever_asks(tmp_path: Path) -> None:
    now = 0.0
    with KubeDouble(speed=0.0) as kube:
        api = KubeApi(kubeconfig=kubeconfig(tmp_path, kube.url), monotonic=lambda: now)
        kube.faults = [(429, "TooManyRequests", 30.0)]
        calls: list[Callable[[], object]] = [
            lambda: api.get("rayservices", NAME),
            lambda: api.find("rayjobs", ""),
            lambda: api.delete("rayjobs", "x", "uid"),
        ]
        for call in calls:
            with pytest.raises(KubeError) as caught:
                call()
            assert caught.value.status == 429 and caught.value.unreachable
        assert len(kube.calls) == 1
        now = 31.0
        assert api.get("rayservices", NAME) is None
        assert len(kube.calls) == 2


def test_a_refusal_by_the_role_or_the_quota_is_told_as_the_server_says_it(stage: Stage) -> None:
    stage.kube.rules = [{"resources": ["rayservices"], "verbs": ["get"]}]
    with pytest.raises(DeployerError, match=r"answered 403 to patch rayservices simpo-serving: .*cannot patch"):
        stage.deployer.apply([WINNER])
    stage.kube.rules = None
    stage.kube.quota = {"rayjobs": 0}
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": {}}
    with pytest.raises(KubeError, match="exceeded quota") as caught:
        stage.api.create("rayjobs", job)
    assert (caught.value.status, caught.value.word, caught.value.unreachable) == (403, "Forbidden", False)


def test_a_token_that_ran_out_and_a_server_that_is_gone_are_unreachable(stage: Stage, tmp_path: Path) -> None:
    stage.kube.faults = [(401, "Unauthorized", None)]
    with pytest.raises(KubeError) as caught:
        stage.api.get("rayservices", NAME)
    assert caught.value.unreachable
    api = KubeApi(kubeconfig=kubeconfig(tmp_path, "http://127.0.0.1:1"), timeout_s=1.0)
    with pytest.raises(KubeError, match="does not answer") as caught:
        api.get("rayservices", NAME)
    assert caught.value.unreachable and "kube-token" not in str(caught.value)


def test_a_list_whose_pages_expire_is_read_again_and_not_for_ever(stage: Stage) -> None:
    for number in range(1100):
        job = {"metadata": {"name": f"job-{number}", "labels": {"simpo/managed": "yes"}}, "spec": {}}
        stage.kube.put("rayjobs", {"apiVersion": "ray.io/v1", "kind": "RayJob", **job})
    assert len(stage.api.find("rayjobs", "simpo/managed=yes")) == 1100
    assert stage.verbs() == ["list"] * 3
    stage.kube.faults = [(0, "", None), (410, "Expired", None)]
    assert len(stage.api.find("rayjobs", "simpo/managed=yes")) == 1100
    assert stage.verbs() == ["list"] * 5
    stage.kube.faults = [(0, "", None), (410, "Expired", None)] * 9
    with pytest.raises(KubeError, match="expired 3 times"):
        stage.api.find("rayjobs", "simpo/managed=yes")
    assert stage.verbs() == ["list"] * 6


def test_the_kubeconfig_says_the_namespace_unless_a_setting_does(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, "http://127.0.0.1:1")
    assert KubeApi(kubeconfig=path).namespace == NAMESPACE
    assert KubeApi(kubeconfig=path, namespace="other").namespace == "other"
