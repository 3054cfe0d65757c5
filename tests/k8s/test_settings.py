"""k8s/ agrees with the rest of the project: settings, versions, Secrets, and its own README."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from service.auth import Authenticator
from service.clock import SystemClock
from service.reconcile import STOP_S
from service.serving.deployer import listen_address
from service.settings import Settings, variable_of
from service.store import Store
from tests.k8s import metrics
from tests.k8s.manifests import K8S, REPO, PodView, pods, ray_clusters

pytestmark = pytest.mark.quick

Json = dict[str, Any]

README = (K8S / "README.md").read_text(encoding="utf-8")
VARIABLES = {str(field.metadata["env"]) for field in Settings.__dataclass_fields__.values()}
FROM_SECRETS = {"SIMPO_DATABASE_URL": "postgresql+psycopg://simpo:pw@simpo-db:5432/simpo", "SIMPO_RAY_TOKEN": "t"}
WITHOUT_STORE = {"database", "migrate", "redis", "otel"}
NOT_IN_THE_API = {"SIMPO_RAY_TOKEN": "the pods that the world can reach hold no key to Ray"}


def _service_pods(objects: list[Json]) -> list[PodView]:
    views = [view for view in pods(objects) if view.owner in ("Deployment/simpo-api", "Deployment/simpo-reconciler")]
    assert len(views) == 2
    return views


def _environment(objects: list[Json], view: PodView) -> dict[str, str]:
    """The SIMPO_ variables of a pod; those from Secrets with a stand-in value."""
    maps = {thing["metadata"]["name"]: thing["data"] for thing in objects if thing["kind"] == "ConfigMap"}
    (container,) = view.spec["containers"]
    environment: dict[str, str] = {}
    for source in container["envFrom"]:
        environment |= maps[source["configMapRef"]["name"]]
    for entry in [entry for entry in container["env"] if not entry["name"].startswith("AWS_")]:
        environment[entry["name"]] = entry["value"] if "value" in entry else FROM_SECRETS[entry["name"]]
    return {name: value for name, value in environment.items() if name.startswith("SIMPO_")}


def test_every_setting_is_set_and_every_variable_is_a_setting(objects: list[Json]) -> None:
    for view in _service_pods(objects):
        missing_on_purpose = NOT_IN_THE_API if view.owner.endswith("-api") else {}
        assert set(_environment(objects, view)) == VARIABLES - set(missing_on_purpose), (
            f"{view.owner}: keep the literals of simpo-settings in k8s/base/kustomization.yaml equal to the "
            "variables of service/settings.py"
        )


def test_the_service_accepts_the_settings(objects: list[Json]) -> None:
    settings = {view.owner: Settings.from_env(_environment(objects, view)) for view in _service_pods(objects)}
    assert settings["Deployment/simpo-reconciler"].reconcile
    assert not settings["Deployment/simpo-api"].reconcile
    assert settings["Deployment/simpo-api"].ray_token is None


def test_urls_lead_to_ports_of_ray_heads(objects: list[Json]) -> None:
    heads = {  # KubeRay names the Service of a head <cluster>-head-svc
        f"{name.partition('/')[2]}-head-svc": {
            port["containerPort"]
            for container in cluster["headGroupSpec"]["template"]["spec"]["containers"]
            for port in container["ports"]
        }
        for name, cluster in ray_clusters(objects)
    }
    for name, _ in ray_clusters([thing for thing in objects if thing["kind"] == "RayService"]):
        heads[f"{name.partition('/')[2]}-serve-svc"] = {8000}  # to every node whose proxy is well
    for view in _service_pods(objects):
        environment = _environment(objects, view)
        for name in ("ray_jobs_url", "ray_serve_url", "serve_url"):
            url = urlsplit(environment[variable_of(name)])
            assert url.port in heads[str(url.hostname)], f"{variable_of(name)} = {url.geturl()}"


def test_serve_listens_where_the_api_asks(objects: list[Json]) -> None:
    for view in _service_pods(objects):
        host, port = listen_address(_environment(objects, view)["SIMPO_SERVE_URL"])
        assert (host, port) == ("0.0.0.0", 8000)  # on every Ray node: the name of the head is no address of a worker


def test_the_program_listens_where_its_probes_ask(objects: list[Json]) -> None:
    for view in _service_pods(objects):
        environment = _environment(objects, view)
        (container,) = view.spec["containers"]
        assert [port["containerPort"] for port in container["ports"]] == [int(environment["SIMPO_BIND_PORT"])]
        assert f"--host={environment['SIMPO_BIND_HOST']}" in container["command"]
        assert f"--port={environment['SIMPO_BIND_PORT']}" in container["command"]
        assert container["command"][0] == environment["SIMPO_DRIVER_PYTHON"]  # one layout of images for all


def test_requests_in_flight_are_waited_for(objects: list[Json]) -> None:
    for view in _service_pods(objects):
        (container,) = view.spec["containers"]
        graceful = next(word for word in container["command"] if word.startswith("--timeout-graceful-shutdown="))
        settings = Settings.from_env(_environment(objects, view))
        after = STOP_S if settings.reconcile else 0.0
        pause = ((container.get("lifecycle") or {}).get("preStop") or {}).get("sleep", {"seconds": 0})["seconds"]
        needed = pause + settings.drain_s + int(graceful.partition("=")[2]) + after
        assert needed < view.spec["terminationGracePeriodSeconds"], "drain, requests in flight, the passes at work"


def test_the_job_migrates_and_the_program_in_readme_makes_an_api_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: list[Json]
) -> None:
    program = re.search(r"<<'EOF'\n(.*?)^EOF$", README, re.MULTILINE | re.DOTALL)
    assert program
    url = f"sqlite:///{tmp_path}/simpo.db"
    monkeypatch.setenv("SIMPO_DATABASE_URL", url)
    (migrate,) = (view for view in pods(base) if view.owner == "Job/simpo-migrate")
    exec(migrate.spec["containers"][0]["command"][-1], {})  # the Job, in this process
    answer = subprocess.run(
        [sys.executable, "-"],
        input=program[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"SIMPO_DATABASE_URL": url},
        cwd=REPO,
    )
    key = answer.stdout.strip()
    assert Authenticator(Store(url), SystemClock()).caller(f"Bearer {key}")


def test_the_store_is_at_one_path_everywhere(objects: list[Json]) -> None:
    store = _environment(objects, _service_pods(objects)[0])["SIMPO_STORE"]
    if store.startswith("s3://"):
        return  # a bucket is nowhere: checklist.one_store, bounded_copies
    for view in pods(objects):
        if view.labels["app.kubernetes.io/component"] not in WITHOUT_STORE and not view.owner.endswith(" submitter"):
            mounts = [mount for container in view.containers() for mount in container["volumeMounts"]]
            assert store in {mount["mountPath"] for mount in mounts if mount["name"] == "store"}, view.owner


def test_of_the_service_only_the_reconciler_looks_into_run_directories() -> None:
    """So the API needs no keys of a bucket: what opens one is in these modules, and their callers in supervise.py."""
    service = REPO / "service"
    texts = {path.relative_to(service).as_posix(): path.read_text(encoding="utf-8") for path in service.rglob("*.py")}
    assert {name for name, text in texts.items() if "run_of(" in text} == {
        "run_dirs.py",
        "supervise.py",
        "fences.py",
        "edits.py",
    }
    for used in ("edits.publish", "from service.fences import"):
        assert {name for name, text in texts.items() if used in text} == {"supervise.py"}, used


def test_ray_knows_the_variables_that_its_pods_get(objects: list[Json]) -> None:
    """A misspelt variable is no error anywhere: Ray would serve through its slow proxy and say nothing."""
    found = {entry["name"] for view in pods(objects) for _, entry in view.environment()}
    source = metrics.ray_source("serve/_private", "constants.py") + metrics.ray_source(
        "_common/usage", "usage_constants.py"
    )
    assert {name for name in found if name.startswith("RAY_") and f'"{name}"' not in source} == set()
    assert "RAY_SERVE_ENABLE_HA_PROXY" in found


def test_ray_has_the_version_of_constraints(objects: list[Json]) -> None:
    pinned = re.search(r"^ray==(\S+)$", (REPO / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned
    assert {cluster["rayVersion"] for _, cluster in ray_clusters(objects)} == {pinned[1]}
    assert f"Ray {pinned[1]}" in README
