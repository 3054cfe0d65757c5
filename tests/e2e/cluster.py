"""A small installation on machines of their own: what `k8s/` spreads over pods, spread over network namespaces.

    store     the S3 double and PostgreSQL
    service   the API and, as a process of its own, the reconciler; the people ask from here too
    head      Ray's head: no processors, and no keys to the bucket
    worker-1, worker-2   Ray nodes with one processor each; trials, drivers and models run here

Ray asks for its token everywhere. No machine sees another's files.
"""

import contextlib
import json
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from service.auth import create_key
from service.store import Store
from tests.e2e.namespaces import Machine, network
from tests.service.postgres import fresh_database, private_postgres
from tests.sweeps.faults.three_nodes import MEMORY
from tests.sweeps.s3_double import S3Double, s3_double

BASE = "/tmp/base"
"""Where the Ray nodes have the base model, as their image would, and the service, which looks before it accepts."""
PATIENCE_S = 400.0
"""For each step: a busy machine must not fail the test."""
NOTICES_SOON = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 4,
}
"""A node whose processes are gone refuses at once, and is given up after 4 s; one that is only slow has 20."""
_GCS, _DASHBOARD, _SERVE, _API, _RECONCILER = 6379, 8265, 8000, 8080, 8081


@dataclass(frozen=True, kw_only=True)
class Installation:
    """What a test sees of it."""

    api: httpx.Client
    """As somebody with a key, from the machine `service`."""
    ray: httpx.Client
    """The head's dashboard, from there too."""
    head: Machine
    workers: dict[str, Machine]
    """By address."""
    service: Machine
    store: Machine
    s3: S3Double
    bucket: str
    """Where the service keeps run directories: s3://BUCKET/PREFIX."""

    def get(self, path: str) -> Any:
        """Of the API."""
        answer = self.api.get(path)
        assert answer.status_code == httpx.codes.OK, answer.text
        return answer.json()

    def post(self, path: str, body: Any) -> Any:
        """To the API."""
        answer = self.api.post(path, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def addresses(self) -> dict[str, str]:
        """Ray's node ids -> addresses, of all that ever joined."""
        answer = self.ray.get("/api/v0/nodes", params={"limit": 100})
        assert answer.status_code == httpx.codes.OK, answer.text
        return {node["node_id"]: node["node_ip"] for node in answer.json()["data"]["result"]["result"]}

    def wait(self, what: str, check: Callable[[], Any]) -> Any:
        """The first true value of `check`; what all machines said goes with the failure."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := check()):
            assert time.monotonic() < deadline, f"not {what} within {PATIENCE_S:g} s\n{self.said()}"
            assert self.service.processes() and self.head.processes(), f"not {what}: one has ended\n{self.said()}"
            time.sleep(1.0)
        return value

    def said(self) -> str:
        """The last words of every machine."""
        machines = [self.service, self.head, *self.workers.values()]
        return "\n".join(
            f"--- {m.name}\n{m.log.read_text(errors='replace')[-3000:]}" for m in machines if m.log.exists()
        )


@contextlib.contextmanager
def installation(base: Path) -> Iterator[Installation]:
    """All of it, answering, with two workers joined. base: checkpoint of the model that all Ray nodes have."""
    with contextlib.ExitStack() as stack:
        machines = stack.enter_context(network("store", "service", "head", "worker-1", "worker-2"))
        store, service, head, *workers = machines
        token = secrets.token_hex(16)
        ray = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_API_SERVER_ADDRESS": f"http://{head.address}:{_DASHBOARD}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        for node in (service, head, *workers):
            shutil.copytree(base, node.home / Path(BASE).name)
        head.start(_ray_head(head), ray)
        with store.inside():
            s3 = stack.enter_context(s3_double(store.address))
            postgres = stack.enter_context(private_postgres(host=store.address))
        with service.inside():  # a bucket is made over the network, a key through the database's socket
            bucket = f"s3://{s3.bucket()}/simpo"
        keys = s3.environment()
        for worker in workers:
            worker.start(_ray_worker(worker, head), {**ray, **keys})
        rows = Store(fresh_database(postgres))
        key = create_key(rows, "e2e")
        rows.close()
        settings = {
            "SIMPO_DATABASE_URL": f"postgresql+psycopg://postgres@{store.address}:5432/simpo",
            "SIMPO_STORE": bucket,
            "SIMPO_COPIES": "/tmp/copies",
            "SIMPO_RAY_JOBS_URL": f"http://{head.address}:{_DASHBOARD}",
            "SIMPO_SERVE_URL": f"http://{head.address}:{_SERVE}",
            "SIMPO_RAY_TOKEN": token,
            "SIMPO_DRIVER_RESOURCE": "driver",
            "SIMPO_RECONCILE_INTERVAL_S": "0.3",
            "SIMPO_LOG_FORMAT": "json",
        }
        service.start(_program(_API), {**settings, "SIMPO_RECONCILE": "0"})
        service.start(_program(_RECONCILER), {**settings, **keys, "SIMPO_RECONCILE": "1"})
        with service.inside():
            api = stack.enter_context(_client(f"http://{service.address}:{_API}", key))
            dashboard = stack.enter_context(_client(f"http://{head.address}:{_DASHBOARD}", token))
            # A client connects when it is first used, and in whoever's network its thread is then: so inside.
            made = Installation(
                api=api,
                ray=dashboard,
                head=head,
                workers={worker.address: worker for worker in workers},
                service=service,
                store=store,
                s3=s3,
                bucket=bucket,
            )
            made.wait("a service that answers", lambda: _answers(api, "/readyz"))
            made.wait("a Ray that answers", lambda: _answers(dashboard, "/api/jobs/"))
            made.wait("two workers", lambda: set(made.workers) <= set(made.addresses().values()))
            yield made


def _ray_head(head: Machine) -> list[str]:
    notices = f"--system-config={json.dumps(NOTICES_SOON)}"
    where = [f"--port={_GCS}", f"--dashboard-host={head.address}", f"--dashboard-port={_DASHBOARD}"]
    return _ray(head, "--head", *where, "--num-cpus=0", notices)


def _ray_worker(worker: Machine, head: Machine) -> list[str]:
    return _ray(worker, f"--address={head.address}:{_GCS}", "--num-cpus=1", '--resources={"driver": 1}')


def _ray(machine: Machine, *options: str) -> list[str]:
    common = [f"--node-ip-address={machine.address}", f"--object-store-memory={MEMORY}", "--include-log-monitor=false"]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    return [*start, *options, *common, "--temp-dir=/tmp/ray", "--log-color=false"]


def _program(port: int) -> list[str]:
    serve = [sys.executable, "-m", "uvicorn", "service.app:factory", "--factory", "--host=0.0.0.0", f"--port={port}"]
    return [*serve, "--http=service.http_head:BoundedHead", "--no-access-log"]


def _client(url: str, key: str) -> httpx.Client:
    # No proxy of this machine's; a busy machine may take its time.
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)


def _answers(client: httpx.Client, path: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return client.get(path).status_code == httpx.codes.OK
    return False
