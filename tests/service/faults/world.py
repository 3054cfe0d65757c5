"""A small installation made of real processes, each of which a test may kill, stop or cut off: and what clients saw."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from service.auth import create_key
from service.client import Client
from service.local_process import free_ports
from service.models import Sweep
from service.settings import Settings
from service.store import Store
from sweeps.run_dir import Attempt, RunDir, read_journal
from sweeps.spec import parse_spec
from tests.service.faults import service_process, toy_driver
from tests.service.faults.history import Call, History
from tests.service.faults.service_process import NOWHERE, Plan

MIDWAY = (1, 8)
"""Trial and rung before which drivers stand still."""
_ROOT = Path(__file__).parents[3]


@dataclass(kw_only=True)
class Member:
    """One process of the service."""

    process: BaseProcess
    settings: Settings

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.bind_port}"

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        """SIGSTOP, SIGCONT and the like."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and its end."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.join(30)

    def died(self) -> None:
        """Wait for the kill -9 that it gives itself at its failpoint."""
        self.process.join(240)
        assert self.process.exitcode == -signal.SIGKILL, self.process.exitcode

    def stopped(self) -> None:
        """Wait until it stands still at its failpoint."""
        wait(lambda: Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def answers(self) -> bool:
        """It listens, or has died where it should."""
        try:
            return httpx.get(f"{self.url}/healthz", trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return self.process.exitcode is not None


class StandIn:
    """Ray as the program `ray_stand_in`."""

    def __init__(self, home: Path, token: str) -> None:
        self.home = home
        home.mkdir()
        self.token = token
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, keep: bool = False) -> None:
        """A head that knows nothing, or with `keep` what its predecessor knew."""
        command = [sys.executable, "-m", "tests.service.faults.ray_stand_in", "--home", str(self.home)]
        command += ["--port", str(self.port), "--token", self.token, *(["--keep"] if keep else [])]
        with (self.home / "head.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=_ROOT, stdout=log, stderr=log, start_new_session=True)
        wait(self._up)

    def kill(self) -> None:
        """kill -9: its jobs live on as orphans."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def script(self, *submits: str, patience_s: float = 1.0) -> None:
        """How it answers the next submissions."""
        self._ask("POST", "/script", json={"submits": submits, "patience_s": patience_s})

    def jobs(self) -> dict[str, str]:
        """Id -> status of everything it knows."""
        return {job["submission_id"]: job["status"] for job in self._ask("GET", "/api/jobs/").json()}

    def applications(self) -> dict[str, Any]:
        """What Serve runs."""
        found: dict[str, Any] = self._ask("GET", "/api/serve/applications/").json()["applications"]
        return found

    def created(self) -> list[str]:
        """Ids in the order in which jobs were really made, by all heads so far."""
        path = self.home / "created"
        return [json.loads(line)["id"] for line in path.read_text().splitlines()] if path.exists() else []

    def close(self) -> None:
        """End it and every job that it ever made."""
        self.kill()
        pids = self.home / "pids"
        for pid in pids.read_text().split() if pids.exists() else ():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid), signal.SIGKILL)

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.token}"}
        return httpx.request(method, self.url + path, headers=headers, trust_env=False, timeout=120, **options)

    def _up(self) -> bool:
        try:
            return self._ask("GET", "/api/jobs/").status_code == 200
        except httpx.TransportError:
            return False


@dataclass(kw_only=True)
class World:
    """Database, Ray, members, clients, and the directory where all of it lies."""

    home: Path
    settings: Settings
    store: Store
    """The test's own look into the database."""
    history: History
    ray: Any
    """A `StandIn`, or a `RealRay`, which has the same methods."""
    members: list[Member] = field(default_factory=list)

    def api(
        self,
        place: str = NOWHERE,
        *,
        clock: str = "",
        settings: Settings | None = None,
        port: int | None = None,
        whole: bool = False,
    ) -> Member:
        """A process that answers clients and moves no rows, or with `whole` does that too, as on one machine.

        One at a time has the installation's own port.
        """
        settings = replace(settings or self.settings, reconcile=whole, bind_port=port or self.settings.bind_port)
        return self._start("api", settings, place, clock, 10.0)

    def reconciler(
        self, place: str = NOWHERE, *, clock: str = "", settings: Settings | None = None, ray_timeout_s: float = 10.0
    ) -> Member:
        """A process that moves rows and that no client asks."""
        settings = replace(settings or self.settings, bind_port=free_ports(1)[0])
        return self._start("reconciler", settings, place, clock, ray_timeout_s)

    def post_sweep(self, api: Member, name: str) -> str:
        """Ask until it is accepted; the sweep's id."""
        call = self.history.insist(api.url, "POST", "/v1/sweeps", key=f"key-{name}", body=toy_driver.body(name))
        assert call.status == 202, call
        return str(call.answer["id"])

    def cancel(self, api: Member, sweep_id: str) -> Call:
        """Ask until it is answered."""
        return self.history.insist(api.url, "POST", f"/v1/sweeps/{sweep_id}/cancel", key=f"cancel-{sweep_id}")

    def watch(self, sweep_id: str) -> threading.Thread:
        """Somebody who follows a sweep's events to its end, whatever happens to the API."""
        heard = self.history.watched.setdefault(sweep_id, [])

        def follow() -> None:
            url = f"http://127.0.0.1:{self.settings.bind_port}"
            with Client(url, self.history.api_key) as client:
                heard.extend(event.id for event in client.events("sweeps", sweep_id, patience_s=1200))

        watcher = threading.Thread(target=follow, daemon=True)
        watcher.start()
        return watcher

    def row(self, sweep_id: str) -> Sweep:
        """As stored: also while no API runs."""
        with self.store.read() as session:
            return session.get_one(Sweep, sweep_id)

    def until(self, sweep_id: str, *states: str, seconds: float = 240) -> None:
        """Wait for one of these states."""
        wait(lambda: self.row(sweep_id).state in states, seconds, lambda: self._states())

    def midway(self, *ids: str, seconds: float = 240) -> None:
        """Wait until each has ended a trial and stands still in another; `hold(*MIDWAY)` came before it was ordered."""
        for sweep_id in ids:
            first = RunDir(self.settings.run_dir(sweep_id)).attempt(1)
            _until(first, "trial.completed", seconds)
            self.until(sweep_id, "RUNNING")

    def settle(self, seconds: float = 240) -> None:
        """I11: soon after the fault has ended everything is over, and nothing runs any more.

        A quiet machine needs a minute at most, one with too much to do some.
        """

        def over() -> bool:
            with self.store.read() as session:
                rows = session.execute(select(Sweep.state, Sweep.ended_at)).all()
            running = [status for status in self.ray.jobs().values() if status == "RUNNING"]
            drivers = [start for start in self.starts() if lives(start["pid"])]
            return all(ended is not None for _, ended in rows) and not running and not drivers

        wait(over, seconds, lambda: (self._states(), self.ray.jobs()))

    def hold(self, trial: int = 0, rung: int = 0) -> None:
        """No driver makes a step from that trial and rung on."""
        self._write("hold", f"{trial} {rung}")

    def kill_drivers(self) -> None:
        """kill -9 of every driver, as with the machine under them."""
        for start in self.starts():
            with contextlib.suppress(OSError):  # it ended before; its number may be somebody else's by now
                if b"toy_driver" in Path(f"/proc/{start['pid']}/cmdline").read_bytes():
                    os.kill(start["pid"], signal.SIGKILL)

    def release(self) -> None:
        """They go on."""
        (self.home / "hold").unlink(missing_ok=True)

    def set_clock(self, name: str, seconds: float) -> None:
        """Whoever reads the clock of that name sees the wall clock jump by so much; `clock`: drivers that start."""
        self._write(name, str(seconds))

    def starts(self) -> list[dict[str, Any]]:
        """Every start of a driver: run, attempt, pid."""
        path = self.home / "starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def logs(self) -> dict[str, str]:
        """Everything that any process has said."""
        files = [*self.home.glob("*.log"), *self.ray.home.glob("*.log")]
        return {path.name: path.read_text(errors="replace") for path in files}

    def _write(self, name: str, text: str) -> None:
        """Whole at once: others read it all the time."""
        partial = self.home / f"{name}.partial"
        partial.write_text(text)
        partial.rename(self.home / name)

    def _states(self) -> list[Any]:
        with self.store.read() as session:
            return [tuple(row) for row in session.execute(select(Sweep.id, Sweep.state, Sweep.reason, Sweep.message))]

    def _start(self, role: str, settings: Settings, place: str, clock: str, ray_timeout_s: float) -> Member:
        log, file = self.home / f"{role}-{len(self.members)}.log", self.home / (clock or "no-clock")
        plan = Plan(settings=settings, log=log, place=place, clock=file, ray_timeout_s=ray_timeout_s)
        member = Member(process=service_process.start(plan), settings=settings)
        self.members.append(member)
        if not place.startswith("stop:"):
            # A process takes seconds to import what it needs, and many times that beside others.
            wait(member.answers, 240, lambda: log.read_text() if log.exists() else f"no word of {role}")
            assert place != NOWHERE or member.process.exitcode is None, log.read_text()
        return member


@contextlib.contextmanager
def world(
    home: Path, database_url: str, *, ray: Callable[[Path, str], Any] = StandIn, keep: bool = False, **changes: Any
) -> Iterator[World]:
    """An installation without any member of the service yet; its Ray runs.

    `ray`: how one is made, given its directory and token. `keep`: it will remember. `changes`: of the settings.
    """
    token = secrets.token_hex(16)
    cluster = ray(home / "ray", token)
    (home / "step_s").write_text("0.02")
    settings = Settings(
        database_url=database_url,
        store=home / "store",
        bind_port=free_ports(1)[0],
        ray_jobs_url=cluster.url,
        ray_token=token,
        driver_python=str(_toy_python(home)),
        **{"reconcile_interval_s": 0.1, "max_running_sweeps": 2, "heartbeat_stale_s": 3.0, **changes},
    )
    store = Store(database_url)
    made = World(home=home, settings=settings, store=store, history=History(create_key(store, "tests")), ray=cluster)
    try:
        cluster.start(keep=keep)
        yield made
    finally:
        for member in made.members:
            member.kill()
        cluster.close()
        store.close()


def lives(pid: int) -> bool:
    """Whether a process still runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait(what: Callable[[], bool], seconds: float = 240, told: Callable[[], Any] = lambda: "") -> None:
    """Until it holds; `told` says what is there instead."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


def undisturbed(home: Path) -> Path:
    """Run directory of the toy sweep, driven once without any fault."""
    run = RunDir(home / "run")
    run.write_spec(parse_spec(toy_driver.body("undisturbed")).model_dump(mode="json"))
    (home / "step_s").write_text("0")
    command = [str(_toy_python(home)), "run", str(run.spec_path), "--out", str(run.root), "--attempt", "1"]
    subprocess.run(command, check=True, timeout=240)
    return run.root


def _toy_python(home: Path) -> Path:
    """What the service takes for its Python: a script that runs the toy driver."""
    script = home / "python"
    lines = [
        "#!/bin/sh",
        f"export {toy_driver.HOME}={home} PYTHONPATH={_ROOT}",
        f"[ -e {home}/escape ] && away='setsid -w'  # out of the reach of who kills its process group",
        f'exec $away {sys.executable} -m tests.service.faults.toy_driver "$@"',
    ]
    script.write_text("\n".join(lines) + "\n")
    script.chmod(0o700)
    return script


def _until(attempt: Attempt, kind: str, seconds: float) -> None:
    wait(lambda: any(record["type"] == kind for record in read_journal(attempt)), seconds)
