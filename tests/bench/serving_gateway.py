"""The case `gateway`: a model that says the same at once, asked by four ways; what is left is the way.

plain: uvicorn alone, on one port. proxy: Serve's default proxy. haproxy: Serve with HAProxy and direct ingress, as the
cluster's pods are set up. gateway: our API in front of that, with its key, its row and its proxying.
"""

import json
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from service.clock import SystemClock
from service.local_process import free_ports, kill_all
from service.local_ray import RayHead
from service.models import DEFAULT_PROJECT
from service.rows import new_deployment
from service.serving.declared import route_prefix
from service.serving.deployer import APPLICATIONS_PATH
from service.states import DeploymentState
from tests.bench.load_data import fill
from tests.bench.load_stage import stage
from tests.bench.serving_noop import QUESTION
from tests.house import REPO
from tests.service.ray_double import RayDouble

Figures = dict[str, Any]

CONNECTIONS = (1, 16, 64)
FAST = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
WAYS = {
    "plain": "uvicorn alone",
    "proxy": "Serve, default proxy",
    "haproxy": "Serve, HAProxy and direct ingress",
    "gateway": "our API before the latter",
}
"""Way -> what the table calls it."""
_PATH = "/v1/chat/completions"
_UP_S = 180.0


def gateway(home: Path, *, repeats: int, seconds: float = 4.0) -> Figures:
    """Closed loops by each way: requests a second, p50 and p95 by connections."""
    found: dict[str, dict[int, list[Figures]]] = {}

    def ask(way: str, url: str, path: str, key: str = "none") -> None:
        for connections in CONNECTIONS:
            found.setdefault(way, {}).setdefault(connections, []).append(_loop(url, path, key, connections, seconds))

    prefix = route_prefix("noop")
    with _plain(home) as plain_url:
        with _serve({}, home) as proxy_url:
            for _ in range(repeats):
                ask("plain", plain_url, _PATH)
                ask("proxy", proxy_url, prefix + _PATH)
        with _serve(FAST, home) as fast_url, _api(home, fast_url) as (api_url, key):
            for _ in range(repeats):
                ask("plain", plain_url, _PATH)
                ask("haproxy", fast_url, prefix + _PATH)
                ask("gateway", api_url, _PATH, key)
    return {
        "repeats": repeats,
        "ways": {way: {str(c): _summary(loops) for c, loops in by.items()} for way, by in found.items()},
    }


def _summary(loops: list[Figures]) -> Figures:
    rates = [figures["statuses"].get("200", 0) / figures["seconds"] for figures in loops]
    return {
        "requests_per_s": [statistics.median(rates), min(rates), max(rates)],
        "p50_ms": statistics.median(figures["p50_ms"] for figures in loops),
        "p95_ms": statistics.median(figures["p95_ms"] for figures in loops),
        "failed": sum(sum(figures["statuses"].values()) - figures["statuses"].get("200", 0) for figures in loops),
    }


def _loop(url: str, path: str, key: str, connections: int, seconds: float) -> Figures:
    job = {"kind": "ask", "host": "127.0.0.1", "ports": [httpx.URL(url).port], "key": key, "paths": [path]}
    job |= {"connections": connections, "seconds": seconds, "body": QUESTION}
    command = [sys.executable, "-m", "tests.bench.load_wire"]
    done = subprocess.run(command, input=json.dumps(job), stdout=subprocess.PIPE, text=True, cwd=REPO, check=True)
    figures: Figures = json.loads(done.stdout)
    return figures


@contextmanager
def _plain(home: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "uvicorn", "--factory", "tests.bench.serving_noop:plain", "--no-access-log"]
    with (home / "plain.log").open("ab") as log:
        child = subprocess.Popen([*command, "--port", str(port)], cwd=REPO, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        _until(lambda: httpx.post(url + _PATH, json=QUESTION, trust_env=False).status_code == 200)
        yield url
    finally:
        child.kill()
        child.wait()


class _Head(RayHead):
    """A private head whose workers find this package, set up as `extra` says."""

    extra: Mapping[str, str] = {}

    def _environment(self, token: str) -> Mapping[str, str]:
        return {**super()._environment(token), "PYTHONPATH": str(REPO), **self.extra}


@contextmanager
def _serve(extra: Mapping[str, str], home: Path) -> Iterator[str]:
    """A Ray of its own with one replica; the origin where Serve answers."""
    _Head.extra = extra
    head, token = _Head.plan(secrets.token_hex(4)), secrets.token_hex(16)
    port = httpx.URL(head.serve_url).port
    application = {
        "name": "noop",
        "route_prefix": route_prefix("noop"),
        "import_path": "tests.bench.serving_noop:build",
        "args": {},
        "deployments": [{"name": "Noop", "num_replicas": 1, "ray_actor_options": {"num_cpus": 0.5}}],
    }
    body = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
    try:
        head.start(token, home / "ray.log")
        _until(lambda: head.answers(token))
        with httpx.Client(headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=60) as dashboard:
            answer = dashboard.put(head.dashboard_url + APPLICATIONS_PATH, json=body)
            assert answer.status_code == 200, answer.text
        asked = head.serve_url + route_prefix("noop") + _PATH
        _until(lambda: httpx.post(asked, json=QUESTION, trust_env=False).status_code == 200)
        yield head.serve_url
    finally:
        kill_all(head.stack_id)
        head.remove()


@contextmanager
def _api(home: Path, serve_url: str) -> Iterator[tuple[str, str]]:
    """(origin, key) of our API on SQLite with one deployment, whose row says READY; no reconciler looks after it."""
    with RayDouble() as ray, stage("sqlite", home) as on:
        on.data = fill(on.store, sweeps=8, trials=4)
        now = SystemClock().now()
        source = {"sweep_id": on.data.ids[0], "checkpoint": "winner", "model_path": "/nowhere", "base_path": None}
        with on.store.write() as session:
            row = new_deployment("noop", source, on.data.caller.key_id, now, project=DEFAULT_PROJECT)
            session.add(row)
            row.state, row.reason, row.ready_at, row.ready_revision = DeploymentState.READY, "READY", now, 1
        with on.api(ray, serve_url=serve_url, reconcile=False) as api:
            yield api.url, on.data.key


def _until(ready: Any) -> None:
    deadline = time.monotonic() + _UP_S
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except (httpx.TransportError, httpx.TimeoutException):
            pass
        time.sleep(0.1)
    raise SystemExit(f"not up within {_UP_S:.0f} s (load {os.getloadavg()[0]:.0f})")
