"""ServeDeployer against a scripted Serve REST API: what is sent, understood, and said when it goes wrong."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.serving.declared import DesiredDeployment, Replicas, route_prefix
from service.serving.deployer import (
    APPLICATIONS_PATH,
    DeployerError,
    ObservedDeployment,
    ServeDeployer,
    State,
    listen_address,
)
from simpo.errors import ConfigError
from tests.fakes import FakeDeployer
from tests.serving.deployer_contract import DeployerContract

pytestmark = pytest.mark.quick

WINNER = DesiredDeployment(id="dep_1", name="winner", model_path="/store/winner", revision=3)


class ScriptedServe:
    """Keeps what was PUT and answers GET with it, each application in the state asked for."""

    def __init__(self) -> None:
        self.applications: dict[str, dict[str, Any]] = {}
        self.requests: list[httpx.Request] = []
        self.status = "RUNNING"
        self.message = ""
        self.parts: dict[str, Any] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        assert request.url.path == APPLICATIONS_PATH
        if request.method == "PUT":
            declared = json.loads(request.content)["applications"]
            self.applications = {app["name"]: app for app in declared}
            return httpx.Response(200)
        details = {
            name: {
                "name": name,
                "status": self.status,
                "message": self.message,
                "deployed_app_config": app | {"external_scaler_enabled": False},
                "deployments": self.parts,
            }
            for name, app in self.applications.items()
        }
        return httpx.Response(200, json={"applications": details})

    @property
    def methods(self) -> list[str]:
        return [request.method for request in self.requests]


def deployer_on(handler: Callable[[httpx.Request], httpx.Response], **options: Any) -> ServeDeployer:
    return ServeDeployer("http://ray.test:8265", "secret", transport=httpx.MockTransport(handler), **options)


STAYS = {"min_replicas": 1, "initial_replicas": 1, "max_replicas": 1}


def test_the_put_declares_everything_serve_must_know() -> None:
    serve = ScriptedServe()
    replicas = Replicas(num_cpus=0.25, max_ongoing_requests=4, max_queued_requests=9)
    deployer_on(serve, http_port=8123, replicas=replicas).apply([WINNER])
    put = serve.requests[-1]
    assert put.headers["Authorization"] == "Bearer secret"
    assert json.loads(put.content) == {
        "http_options": {"host": "127.0.0.1", "port": 8123},
        "applications": [
            {
                "name": "dep_1",
                "route_prefix": "/d/winner",
                "import_path": "service.serving.app:build",
                "args": {"name": "winner", "model_path": "/store/winner", "revision": 3, "max_batch": 4},
                "deployments": [
                    {
                        "name": "Model",
                        "autoscaling_config": STAYS,
                        "max_ongoing_requests": 4,
                        "max_queued_requests": 9,
                        "max_surge_percent": 100,
                        "ray_actor_options": {"num_cpus": 0.25},
                    }
                ],
            }
        ],
    }
    assert route_prefix("winner") == WINNER.route_prefix


def adapter(number: int, revision: int = 1, project: str | None = None) -> DesiredDeployment:
    return DesiredDeployment(
        id=f"dep_{number}",
        name=f"a{number}",
        model_path=f"/store/a{number}",
        revision=revision,
        base="/models/base",
        project=project,
    )


def test_adapters_of_one_base_share_one_application() -> None:
    serve = ScriptedServe()
    deployer = deployer_on(serve, replicas=Replicas(max_adapters=3))
    deployer.apply([WINNER, adapter(2), adapter(3), adapter(4, project="prj_x")])
    own, shared, other = serve.applications.values()
    assert own["name"] == "dep_1"
    assert shared["route_prefix"] == adapter(2).route_prefix == adapter(3).route_prefix
    assert shared["route_prefix"].startswith("/d/~"), "a name begins with no tilde"
    assert other["route_prefix"].startswith("/d/prj_x/~"), "projects share no process"
    args = {"name": shared["name"], "model_path": "/models/base", "revision": 1, "max_batch": 64, "max_adapters": 3}
    assert shared["args"] == args
    assert shared["deployments"][0]["user_config"] == {
        "models": {
            "a2": {"id": "dep_2", "path": "/store/a2", "revision": 1},
            "a3": {"id": "dep_3", "path": "/store/a3", "revision": 1},
        }
    }
    ready = {f"dep_{n}": ObservedDeployment(state="READY", revision=3 if n == 1 else 1) for n in (1, 2, 3, 4)}
    assert deployer.observe() == ready
    deployer.apply([WINNER, adapter(2), adapter(3), adapter(4, project="prj_x")])
    assert serve.methods.count("PUT") == 1


SLEEPS = {
    **STAYS,
    "min_replicas": 0,
    "upscale_delay_s": 0,
    "downscale_delay_s": 60,
    "downscale_to_zero_delay_s": 60,
    "look_back_period_s": 12,
}


def test_what_may_sleep_has_serves_autoscaler_and_is_told_whether_it_does() -> None:
    serve = ScriptedServe()
    deployer, drowsy = deployer_on(serve), replace(WINNER, idle_s=60)
    deployer.apply([drowsy])
    (part,) = serve.applications["dep_1"]["deployments"]
    assert part["autoscaling_config"] == SLEEPS
    words = []
    for states in ([], ["STARTING"], ["RUNNING"], ["STOPPING"], ["STOPPING", "PENDING_ALLOCATION"]):
        serve.parts = {"Model": {"replicas": [{"state": state} for state in states], "message": ""}}
        shown = deployer.observe()["dep_1"]
        assert (shown.state, shown.revision, shown.idle_s) == ("READY", 3, 60)
        words.append(shown.rest)
    assert words == ["ASLEEP", "WAKING", "", "ASLEEP", "WAKING"]
    serve.status, serve.parts = "DEPLOYING", {"Model": {"replicas": [], "message": ""}}
    assert deployer.observe()["dep_1"].state == "READY", "a change of another application concerns no sleeper"
    deployer.apply([drowsy])
    assert serve.methods.count("PUT") == 1
    deployer.apply([WINNER])
    assert serve.applications["dep_1"]["deployments"][0]["autoscaling_config"] == STAYS
    assert deployer.observe()["dep_1"].idle_s is None


def test_a_base_sleeps_when_all_its_adapters_may() -> None:
    serve = ScriptedServe()
    deployer = deployer_on(serve)
    short, long = replace(adapter(2), idle_s=30), replace(adapter(3), idle_s=60)

    def part() -> dict[str, Any]:
        (shared,) = serve.applications.values()
        found: dict[str, Any] = shared["deployments"][0]
        return found

    deployer.apply([short, adapter(3)])
    assert part()["autoscaling_config"] == STAYS
    assert {id: shown.idle_s for id, shown in deployer.observe().items()} == {"dep_2": 30, "dep_3": None}
    deployer.apply([short, long])
    assert part()["autoscaling_config"] == SLEEPS
    assert part()["user_config"]["models"]["a2"] == {"id": "dep_2", "path": "/store/a2", "revision": 1, "idle_s": 30}
    assert {(shown.state, shown.rest) for shown in deployer.observe().values()} == {("READY", "ASLEEP")}


def test_an_engine_has_replicas_of_its_own_and_its_python() -> None:
    serve = ScriptedServe()
    deployer = deployer_on(serve, replicas=Replicas(vllm_python="/opt/vllm/bin/python"))
    plain, fast = adapter(2), replace(adapter(3), engine="vllm")
    deployer.apply([replace(WINNER, engine="vllm"), plain, fast])
    args = {app["route_prefix"]: app["args"] for app in serve.applications.values()}
    wanted = {"engine": "vllm", "vllm_python": "/opt/vllm/bin/python"}
    assert wanted.items() <= args[WINNER.route_prefix].items() and wanted.items() <= args[fast.route_prefix].items()
    assert plain.route_prefix != fast.route_prefix and "engine" not in args[plain.route_prefix]


def test_who_shares_a_base_answers_on_while_another_comes() -> None:
    serve = ScriptedServe()
    deployer = deployer_on(serve)
    deployer.apply([adapter(2), adapter(3)])
    assert deployer.observe()["dep_2"].state == "READY"
    serve.status, serve.parts = "DEPLOYING", {"Model": {"replicas": [{"state": "RUNNING"}], "message": ""}}
    deployer.apply([adapter(2), adapter(3, revision=2), adapter(4)])
    seen = {id: (shown.state, shown.revision) for id, shown in deployer.observe().items()}
    assert seen == {"dep_2": ("READY", 1), "dep_3": ("PENDING", 2), "dep_4": ("PENDING", 1)}
    serve.parts = {"Model": {"replicas": [{"state": "STARTING"}], "message": ""}}
    assert deployer.observe()["dep_2"].state == "PENDING", "its replica is gone"
    serve.status, serve.parts = "DEPLOY_FAILED", {"Model": {"replicas": [], "message": "Traceback\nOSError: no base"}}
    failed = ObservedDeployment(state="FAILED", message="OSError: no base", revision=2)
    assert deployer.observe()["dep_3"] == failed


def test_what_has_not_changed_answers_on_while_serve_shows_all_as_deploying() -> None:
    serve = ScriptedServe()
    deployer = deployer_on(serve)
    serve.parts = {"Model": {"replicas": [{"state": "RUNNING"}]}}
    deployer.apply([WINNER])
    assert deployer.observe()["dep_1"].state == "READY"
    serve.status = "DEPLOYING"
    deployer.apply([WINNER, replace(WINNER, id="dep_2", name="next")])
    assert {id: seen.state for id, seen in deployer.observe().items()} == {"dep_1": "READY", "dep_2": "PENDING"}
    deployer.apply([replace(WINNER, revision=4)])
    assert deployer.observe()["dep_1"].state == "PENDING", "the replica that runs is the old one's"
    deployer.apply([WINNER])
    serve.parts = {}
    assert deployer.observe()["dep_1"].state == "READY", (
        "back to what runs: Serve builds it, and lists nothing meanwhile"
    )
    serve.parts = {"Model": {"replicas": [{"state": "STARTING"}]}}
    assert deployer.observe()["dep_1"].state == "PENDING", "nobody answers"
    serve.applications, serve.parts = {}, {}
    assert deployer.observe() == {}, "its cluster was restarted"
    deployer.apply([WINNER])
    assert deployer.observe()["dep_1"].state == "PENDING"


def test_an_unchanged_wish_is_not_put_again() -> None:
    serve = ScriptedServe()
    deployer = deployer_on(serve)
    deployer.apply([])
    assert serve.methods == ["GET"], "nothing wanted, nothing there: Serve is not even started"
    deployer.apply([WINNER])
    deployer.apply([WINNER])
    assert serve.methods.count("PUT") == 1
    deployer.apply([])
    assert serve.methods.count("PUT") == 2
    assert serve.applications == {}


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("NOT_STARTED", "PENDING"),
        ("DEPLOYING", "PENDING"),
        ("RUNNING", "READY"),
        ("DEPLOY_FAILED", "FAILED"),
        ("UNHEALTHY", "FAILED"),
        ("A_WORD_OF_RAY_3", "PENDING"),
    ],
)
def test_states(status: str, state: State) -> None:
    serve = ScriptedServe()
    deployer = deployer_on(serve)
    deployer.apply([WINNER])
    serve.status = status
    serve.message = "Traceback:\n  File ...\n\x1b[31msimpo.errors.CheckpointError: no manifest\x1b[0m\n"
    message = "CheckpointError: no manifest" if state == "FAILED" else ""
    assert deployer.observe() == {"dep_1": ObservedDeployment(state=state, message=message, revision=3)}


def test_an_application_on_its_way_out_is_not_observed_and_may_be_declared_again() -> None:
    serve = ScriptedServe()
    deployer = deployer_on(serve)
    deployer.apply([WINNER])
    serve.status = "DELETING"
    assert deployer.observe() == {}
    deployer.apply([WINNER])
    assert serve.methods.count("PUT") == 2


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (403, "", "SIMPO_RAY_TOKEN must be the cluster's RAY_AUTH_TOKEN"),
        (400, "1 validation error\n  duplicate route prefix", "answered 400: duplicate route prefix"),
        (500, "", "answered 500: Internal Server Error"),
    ],
)
def test_refusals_are_told(status: int, body: str, says: str) -> None:
    with pytest.raises(DeployerError, match=says) as caught:
        deployer_on(lambda request: httpx.Response(status, text=body)).observe()
    assert caught.value.status == status
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_no_answer_is_told() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    with pytest.raises(DeployerError, match=r"Ray Serve at ray.test:8265 does not answer \(ConnectError"):
        deployer_on(refuse).observe()


@pytest.mark.parametrize(
    ("serve_url", "address"),
    [
        ("http://127.0.0.1:8123", ("127.0.0.1", 8123)),
        ("http://localhost:8000", ("localhost", 8000)),
        ("http://simpo-serving-head-svc:8000", ("0.0.0.0", 8000)),
        ("http://10.1.2.3", ("0.0.0.0", 80)),
        ("https://serve.example", ("0.0.0.0", 443)),
    ],
)
def test_serve_listens_where_it_is_reached(serve_url: str, address: tuple[str, int]) -> None:
    assert listen_address(serve_url) == address


@pytest.mark.parametrize("name", ["", "Winner", "-a", "a-", "a/b", "..", "a" * 64, "a\n", "a b"])
def test_names_that_are_no_path_segment_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name: .* is no deployment name"):
        DesiredDeployment(id="dep_1", name=name, model_path="/m")


@pytest.fixture(scope="module")
def deployer() -> FakeDeployer:
    fake = FakeDeployer()
    fake.bad.add("/store/bad")
    return fake


@pytest.fixture
def good_model() -> Path:
    return Path("/store/good")


@pytest.fixture
def bad_model() -> Path:
    return Path("/store/bad")


class TestFakeDeployer(DeployerContract):
    """The fake of the control plane's tests keeps the promises of the real one."""
