"""What the load bench runs on: a database, an API as in production, a Ray that says yes to everything."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import event

from service.local_process import free_ports
from service.settings import Settings
from service.store import Store
from tests.bench.load_data import Filled
from tests.fakes import FakeDriver
from tests.service.postgres import fresh_database, private_postgres
from tests.service.ray_double import TOKEN, RayDouble

ROOT = Path(__file__).parents[2]
DATABASES = ("sqlite", "postgresql")
_GRACE_S = 5


class PatientRay(RayDouble):
    """Takes every job, as slowly as a real Ray accepts one; none of them ends."""

    accept_s = 0.06
    """Measured with Ray 2.60."""

    def submit(self, body: dict[str, Any]) -> None:
        time.sleep(self.accept_s)
        super().submit(body)

    def _drive(self, name: str, entrypoint: str) -> None:
        """Its driver says nothing."""


class QuickRay(RayDouble):
    """Its drivers try one trial and are done."""

    def __init__(self) -> None:
        super().__init__()
        self.trials, self.trial_s, self.leaves_s = 1, 0.0, 0.0


@dataclass
class Api:
    """The API: a process with its reconciler, and further ones without, as replicas in a cluster are."""

    ports: list[int]
    """One of each process."""
    processes: list[psutil.Process]
    """In the same order; the first has the reconciler."""
    ready_s: float
    """From the first one's start to the first 200 of its /readyz."""

    @property
    def url(self) -> str:
        """Origin of the first."""
        return f"http://127.0.0.1:{self.ports[0]}"

    def cpu_s(self) -> float:
        """User and system so far, of all."""
        times = [process.cpu_times() for process in self.processes]
        return float(sum(each.user + each.system for each in times))

    def rss_mb(self) -> float:
        """Resident memory now, MiB; of the largest."""
        return float(max(process.memory_info().rss for process in self.processes) / 2**20)


@dataclass
class Stage:
    """One database full of sweeps."""

    database: str
    """sqlite or postgresql"""
    settings: Settings
    """Of the API, without its Ray."""
    store: Store
    """The same database for this process."""
    logs: Path
    """Directory for what processes print."""
    data: Filled | None = None
    statements: int = field(default=0)
    """Sent by this process so far."""

    @property
    def key(self) -> str:
        """API key."""
        assert self.data is not None
        return self.data.key

    @contextmanager
    def api(self, ray: RayDouble, *, processes: int = 1, **changes: Any) -> Iterator[Api]:
        """Start uvicorn as `simpo up` and the images do; with changed settings."""
        with ExitStack() as stack:
            first = stack.enter_context(self._process(ray, **changes))
            more = [stack.enter_context(self._process(ray, reconcile=False, **changes)) for _ in range(1, processes)]
            parts = [first, *more]
            yield Api([port for port, _, _ in parts], [process for _, process, _ in parts], first[2])

    @contextmanager
    def _process(self, ray: RayDouble, **changes: Any) -> Iterator[tuple[int, psutil.Process, float]]:
        """(port, process, seconds until it was ready)"""
        (port,) = free_ports(1)
        mine = replace(self.settings, ray_jobs_url=ray.url, ray_token=TOKEN, bind_port=port, **changes)
        command = [sys.executable, "-m", "uvicorn", "--factory", "service.app:factory", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--no-access-log", f"--timeout-graceful-shutdown={_GRACE_S}"]
        command.append("--http=service.http_head:BoundedHead")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SIMPO_")} | mine.to_env()
        with (self.logs / "api.log").open("ab") as log:
            began = time.monotonic()
            child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            _wait_ready(f"http://127.0.0.1:{port}", child)
            yield port, psutil.Process(child.pid), round(time.monotonic() - began, 2)
        finally:
            child.terminate()
            try:
                child.wait(3 * _GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def generate(self, api: Api, kind: str, **job: Any) -> dict[str, Any]:
        """Run the load generator against the API; its figures with the API's CPU-seconds."""
        before = api.cpu_s()
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.load_wire"],
            input=json.dumps({"kind": kind, "host": "127.0.0.1", "ports": api.ports, "key": self.key, **job}),
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        figures: dict[str, Any] = json.loads(done.stdout)
        return {**figures, "api_cpu_s": round(api.cpu_s() - before, 2), "load_average": os.getloadavg()[0]}


@contextmanager
def stage(database: str, home: Path) -> Iterator[Stage]:
    """An empty database of that kind, durable, and directories below `home`."""
    if database == "sqlite":
        yield from _on(database, f"sqlite:///{home / 'simpo.db'}", home)
        return
    with private_postgres(durable=True) as socket:
        yield from _on(database, fresh_database(socket), home)


def driver_of(settings: Settings, sweep_id: str) -> FakeDriver:
    """Claim the first attempt of a sweep that was submitted, and begin."""
    return FakeDriver(settings.run_dir(sweep_id), 1).start()


def _on(database: str, url: str, home: Path) -> Iterator[Stage]:
    settings = Settings(database_url=url, store=home / "store", max_running_sweeps=4)
    store = Store(url)
    made = Stage(database, settings, store, home)

    def count(*_: object) -> None:
        made.statements += 1

    event.listen(store._engine, "before_cursor_execute", count)
    try:
        yield made
    finally:
        store.close()


def _wait_ready(url: str, child: "subprocess.Popen[bytes]") -> None:
    while child.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", trust_env=False, timeout=30).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.01)
    raise RuntimeError(f"the API ended with {child.returncode}")
