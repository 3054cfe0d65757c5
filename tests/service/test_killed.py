"""kill -9 of a real API process, anywhere, and what must hold afterwards: nothing acknowledged is lost or doubled."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from service.auth import create_key
from service.client import Client
from service.ids import submission_id
from service.local_process import free_ports
from service.models import Attempt, Event, Sweep, Trial
from service.settings import Settings
from service.store import Store
from sweeps.run_dir import RunDir, read_journal
from tests.service import killable_api
from tests.service.ray_double import TOKEN, TRIALS, RayDouble

Json = dict[str, Any]


@dataclass
class Service:
    """One API at a time over the same database, and the client that talks to whatever runs."""

    settings: Settings
    key: str
    store: Store
    ray: RayDouble
    process: BaseProcess | None = None
    acknowledged: dict[str, Json] = field(default_factory=dict)
    """Idempotency-Key -> body of every POST that was answered with 2xx."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.bind_port}"

    def start(self, place: str = killable_api.NOWHERE) -> None:
        """Start it; it will die at `place`."""
        self.process = killable_api.start(self.settings, place)
        self.wait(self.answers)

    def answers(self) -> bool:
        """It listens, or has already died where it should."""
        assert self.process is not None
        try:
            return httpx.get(f"{self.url}/healthz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return self.process.exitcode is not None

    def died(self) -> None:
        """Wait for its kill -9 at the place."""
        assert self.ended() == -signal.SIGKILL

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it."""
        assert self.process is not None and self.process.pid is not None
        os.kill(self.process.pid, number)
        self.ended()

    def ended(self) -> int | None:
        """Wait for its end; the exit status."""
        assert self.process is not None
        self.process.join(30)
        return self.process.exitcode

    def post(self, path: str, key: str, body: Json) -> Json | None:
        """A POST that may meet a dying process: None when nobody answered."""
        headers = {"authorization": f"Bearer {self.key}", "idempotency-key": key}
        try:
            answer = httpx.post(f"{self.url}{path}", json=body, headers=headers, trust_env=False, timeout=20)
        except httpx.TransportError:
            return None
        assert answer.status_code == 202, answer.text
        accepted: Json = answer.json()
        assert self.acknowledged.setdefault(key, accepted) == accepted, "I2: same key, same body"
        return accepted

    def state(self, sweep_id: str) -> str:
        """As stored: also while no API runs."""
        with self.store.read() as session:
            return session.get_one(Sweep, sweep_id).state

    def wait(self, what: Callable[[], bool], seconds: float = 40) -> None:
        """Until it holds."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def check(self) -> None:
        """The invariants of every history, killed or not."""
        with self.store.read() as session:
            sweeps = list(session.scalars(select(Sweep)))
            attempts = list(session.scalars(select(Attempt)))
            trials = list(session.scalars(select(Trial)))
            events = list(session.scalars(select(Event).order_by(Event.parent_id, Event.seq)))
        ids = Counter(body["id"] for body in self.acknowledged.values() if body["object"] == "sweep")
        assert ids == Counter(sweep.id for sweep in sweeps), "I1: each acknowledged POST has exactly one sweep"
        open_attempts = Counter(attempt.sweep_id for attempt in attempts if attempt.ended_at is None)
        assert max(open_attempts.values(), default=0) <= 1, "I4"
        assert Counter(self.ray.created) == Counter(attempt.submission_id for attempt in attempts), (
            "I8: one job for each attempt, none without"
        )
        assert all(count <= TRIALS for count in Counter(trial.sweep_id for trial in trials).values()), "I6"
        for sweep in sweeps:
            mine = [event for event in events if event.parent_id == sweep.id]
            assert [event.seq for event in mine] == list(range(1, sweep.event_seq + 1)), "no gap, none twice"
            for attempt in (a for a in attempts if a.sweep_id == sweep.id):
                journal = read_journal(RunDir(self.settings.run_dir(sweep.id)).attempt(attempt.n))
                told = [event.journal_seq for event in mine if event.attempt == attempt.n and event.journal_seq]
                assert told == [record["seq"] for record in journal], "the journal, once and whole"
            endings = [event.type for event in mine if event.type in ("job.succeeded", "job.failed", "job.cancelled")]
            assert len(endings) == (sweep.ended_at is not None), "I3: terminal is absorbing"


@pytest.fixture
def service(tmp_path: Path, migrated: Path) -> Iterator[Service]:
    """Not started yet."""
    (tmp_path / "simpo.db").write_bytes(migrated.read_bytes())
    with RayDouble() as ray:
        settings = Settings(
            database_url=f"sqlite:///{tmp_path / 'simpo.db'}",
            store=tmp_path / "store",
            bind_port=free_ports(1)[0],
            ray_jobs_url=ray.url,
            ray_token=TOKEN,
            reconcile_interval_s=0.1,
            max_running_sweeps=2,
        )
        store = Store(settings.database_url)
        service = Service(settings, create_key(store, "tests"), store, ray)
        try:
            yield service
        finally:
            if service.process is not None and service.process.is_alive():
                service.kill()
            store.close()


def test_killed_at_every_place_of_a_sweeps_life(service: Service) -> None:
    body = {"name": "a"}
    service.start("post.before_commit")
    assert service.post("/v1/sweeps", "k", body) is None
    service.died()
    service.start("post.after_commit")
    assert service.post("/v1/sweeps", "k", body) is None
    service.died()
    for place in ("before_intent", "after_intent", "after_spec", "after_submit", "after_record", "before_ingest"):
        service.start(place)
        service.died()
    service.start("after_ingest")
    service.post("/v1/sweeps", "k", body)
    service.died()
    service.start("mid_deploy")
    accepted = service.post("/v1/sweeps", "k", body)
    assert accepted is not None
    sweep_id = accepted["id"]
    service.wait(lambda: service.state(sweep_id) == "SUCCEEDED")
    assert service.ray.created == [submission_id(sweep_id, 1)]
    wish = {"name": "best", "sweep": sweep_id}
    service.post("/v1/deployments", "d", wish)
    service.died()
    service.start()
    assert service.post("/v1/deployments", "d", wish) is not None
    client = Client(service.url, service.key)
    with client:
        service.wait(lambda: client.models() == ["best"])
    assert len(service.ray.applications) == 1
    service.check()


def test_killed_in_the_middle_of_a_cancel(service: Service) -> None:
    service.start("mid_cancel")
    service.ray.trial_s = 5.0
    accepted = service.post("/v1/sweeps", "k", {"name": "a"})
    assert accepted is not None
    sweep_id = accepted["id"]
    service.wait(lambda: service.state(sweep_id) == "RUNNING")
    service.post(f"/v1/sweeps/{sweep_id}/cancel", "c", {})
    service.died()
    service.start()
    service.wait(lambda: service.state(sweep_id) == "CANCELLED")
    assert service.ray.jobs.jobs[submission_id(sweep_id, 1)].status == "STOPPED"
    del service.acknowledged["c"]
    service.check()


def test_killed_at_random_while_people_watch(service: Service) -> None:
    seed = 20260901
    chance = random.Random(seed)
    service.start()
    ids = [accepted["id"] for n in range(3) if (accepted := service.post("/v1/sweeps", f"k{n}", {"name": f"s{n}"}))]
    assert len(ids) == 3
    seen: list[str] = []

    def watch() -> None:
        with Client(service.url, service.key) as client:
            seen.extend(event.id for event in client.events("sweeps", ids[2]))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    for _ in range(4):
        time.sleep(chance.uniform(0.1, 0.9))
        service.kill()
        service.start()
        for n in range(3):
            service.post("/v1/sweeps", f"k{n}", {"name": f"s{n}"})
    service.wait(lambda: all(service.state(sweep_id) == "SUCCEEDED" for sweep_id in ids))
    watcher.join(20)
    with service.store.read() as session:
        last = session.get_one(Sweep, ids[2]).event_seq
    assert seen == [f"evt_{n:08d}" for n in range(1, last + 1)], f"seed {seed}: every event once over all restarts"
    assert sorted(service.ray.created) == sorted(submission_id(sweep_id, 1) for sweep_id in ids)
    service.check()


def test_a_polite_end_does_not_wait_for_watchers(service: Service) -> None:
    service.start()
    accepted = service.post("/v1/sweeps", "k", {"name": "a"})
    assert accepted is not None
    headers = {"authorization": f"Bearer {service.key}"}
    path = f"{service.url}/v1/sweeps/{accepted['id']}/events?stream=true"
    with httpx.stream("GET", path, headers=headers, trust_env=False) as stream:
        next(stream.iter_lines())
        began = time.monotonic()
        service.kill(signal.SIGTERM)
        assert time.monotonic() - began < 10
    service.start()
    service.wait(lambda: service.state(accepted["id"]) == "SUCCEEDED")
    service.check()
