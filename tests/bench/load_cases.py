"""The cases of the load bench: each brings one stage under one load and returns figures. Order matters: see CASES."""

import itertools
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from sqlalchemy import func, select, update

from service.auth import Caller
from service.clock import SystemClock
from service.ids import submission_id
from service.models import Attempt, Sweep
from service.reconcile import Reconciler
from service.states import LIVE
from tests.bench.load_data import BODY, enqueue, make_live, write_journal
from tests.bench.load_stage import Api, PatientRay, QuickRay, Stage, driver_of
from tests.bench.load_wire import quantile
from tests.fakes import FakeDeployer, FakeJobs

Figures = dict[str, Any]
_CONNECTIONS = 16


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of it."""

    sweeps: int = 10_000
    """Stored."""
    trials: int = 100
    """Of each."""
    seconds: float = 10.0
    """Of each closed loop."""
    watchers: int = 200
    """Event streams at once."""
    watch_s: float = 300.0
    """They watch so long."""
    records: int = 20_000
    """Of a journal that nobody has read yet."""
    live: int = 5_000
    """Sweeps with a driver."""
    submitted: int = 100
    """Sweeps asked for one after another."""
    queued: int = 1_000
    """Sweeps that wait at once."""


QUICK = Size(sweeps=500, seconds=3.0, watchers=50, watch_s=15.0, records=4_000, live=250, submitted=20, queued=60)
"""A look whether it works; its figures are no figures."""


def requests(stage: Stage, size: Size) -> Figures:
    """Reads and creates over the full database, by an API whose reconciler has four sweeps on the cluster.

    On PostgreSQL two processes answer, one a core, as replicas in a cluster do; SQLite is for one.
    """
    assert stage.data is not None
    ids = random.Random(1).sample(stage.data.ids, min(2000, size.sweeps))
    loop = {"connections": _CONNECTIONS, "seconds": size.seconds}
    found: Figures = {}
    found["processes"] = 2 if stage.database == "postgresql" else 1
    with PatientRay() as ray, stage.api(ray, processes=found["processes"]) as api:
        found["start_rss_mb"] = round(api.rss_mb(), 1)
        reads = {
            "get": [f"/v1/sweeps/{id}" for id in ids],
            "list_newest": ["/v1/sweeps?limit=50"],
            "list_anywhere": [f"/v1/sweeps?limit=50&after={id}" for id in ids],
            "trials": [f"/v1/sweeps/{id}/trials?limit=50" for id in ids],
        }
        for name, paths in reads.items():
            found[name] = stage.generate(api, "ask", paths=paths, **loop)
        found["rss_mb"] = round(api.rss_mb(), 1)
        found["create"] = stage.generate(api, "ask", paths=["/v1/sweeps"], body=BODY, **loop)
        found["rss_after_creates_mb"] = round(api.rss_mb(), 1)
    _cancel_live(stage)
    return found


def watchers(stage: Stage, size: Size) -> Figures:
    """Many event streams of one running sweep whose driver writes ten events a second: from its write to their read."""
    _cancel_live(stage)
    with PatientRay() as ray, stage.api(ray) as api, _client(stage, api) as client:
        sweep_id = client.post("/v1/sweeps", json={**BODY, "name": "watched"}).json()["id"]
        _until(lambda: submission_id(sweep_id, 1) in ray.created)
        driver = driver_of(stage.settings, sweep_id)
        stopping = threading.Event()

        def write() -> None:
            number = 0
            while not stopping.wait(0.1):
                number += 1
                data = {"trial_id": f"trl_{number % 20:04d}", "number": number % 20, "step": number, "metrics": {}}
                driver.attempt.append("trial.progress", "On its way.", {**data, "sent": time.time()})
                driver.beat()

        memory: list[float] = []

        def look() -> None:
            while not stopping.wait(size.watch_s / 50):
                memory.append(api.rss_mb())

        threads = [threading.Thread(target=each, daemon=True) for each in (write, look)]
        for thread in threads:
            thread.start()
        path = f"/v1/sweeps/{sweep_id}/events"
        figures = stage.generate(api, "watch", path=path, watchers=size.watchers, seconds=size.watch_s)
        stopping.set()
        for thread in threads:
            thread.join()
        client.post(f"/v1/sweeps/{sweep_id}/cancel")
    _cancel_live(stage)
    # The first fifth fills caches and buffers; what grows after it, grows for ever.
    fifth = len(memory) // 5
    growth = statistics.mean(memory[-fifth:]) - statistics.mean(memory[fifth : 2 * fifth])
    return {**figures, "growth_mb": round(growth, 1), "rss_mb": round(memory[-1], 1), "seconds": size.watch_s}


def ingestion(stage: Stage, size: Size) -> Figures:
    """A journal that grew while nobody read, into the tables."""
    assert stage.data is not None
    sweep_id = stage.data.ids[0]
    names = make_live(stage.store, stage.settings, [sweep_id])
    write_journal(stage.settings.run_dir(sweep_id), 3, size.records)
    reconciler = _reconciler(stage, names)
    last = size.records + 2
    began, cpu, statements = time.monotonic(), time.process_time(), stage.statements
    while _journal_seq(stage, sweep_id) < last:
        reconciler.run_once()
    seconds = time.monotonic() - began
    _cancel_live(stage)
    return {
        "records": size.records,
        "rows_per_s": round(size.records / seconds),
        "cpu_s": round(time.process_time() - cpu, 2),
        "queries_per_1000": round(1000 * (stage.statements - statements) / size.records, 1),
    }


def submitting(stage: Stage, size: Size) -> Figures:
    """From a sweep's acceptance to Ray's acceptance of its job, one after another, with places enough."""
    _cancel_live(stage)
    with PatientRay() as ray, stage.api(ray, max_running_sweeps=10 * size.submitted) as api:
        with _client(stage, api) as client:
            ids = []
            for number in range(size.submitted):
                answer = client.post("/v1/sweeps", json={**BODY, "name": f"timed-{number}"})
                ids.append(answer.json()["id"])
                _until(lambda: len(ray.created) == len(ids))
                time.sleep(0.1 + 0.2 * random.random())  # idle again
        time.sleep(1.0)
    with stage.store.read() as session:
        told = select(Sweep.created_at, Attempt.submitted_at).join(Attempt, Attempt.sweep_id == Sweep.id)
        moments = session.execute(told.where(Sweep.id.in_(ids), Attempt.submitted_at.is_not(None))).all()
    _cancel_live(stage)
    delays = [(submitted - created).total_seconds() for created, submitted in moments if submitted is not None]
    return {
        "submitted": len(delays),
        "p50_ms": round(1000 * quantile(delays, 0.5)),
        "p95_ms": round(1000 * quantile(delays, 0.95)),
        "ray_accepts_in_ms": round(1000 * PatientRay.accept_s),
    }


def queue(stage: Stage, size: Size) -> Figures:
    """Many accepted sweeps of two projects, nine in ten of the first, four places; their drivers are quick."""
    assert stage.data is not None
    many = stage.data.caller
    few = Caller(key_id=many.key_id, name=many.name, project="load-few")
    large, small = size.queued * 9 // 10, size.queued // 10
    before = _calm(stage)
    line = {"many": enqueue(stage.store, large, many), "few": enqueue(stage.store, small, few)}
    memory = []
    with QuickRay() as ray, stage.api(ray) as api:
        began, cpu = time.monotonic(), api.cpu_s()
        while (left := _number_live(stage)) > before:
            memory.append(api.rss_mb())
            time.sleep(0.5)
            if time.monotonic() - began > 20 + size.queued:
                break
        seconds, cpu = time.monotonic() - began, api.cpu_s() - cpu
        order = [name.rpartition("-a")[0].replace("-", "_", 1) for name in ray.created]
    place = {sweep_id: number for number, sweep_id in enumerate(order)}
    overtaken = sum(
        place[former] > place[later]
        for ids in line.values()
        for former, later in itertools.pairwise(ids)
        if former in place and later in place
    )
    half = len(memory) // 2
    return {
        "queued": size.queued,
        "ended": size.queued - left + before,
        "seconds": round(seconds, 1),
        "api_cpu_s": round(cpu, 1),
        "overtaken": overtaken,
        "few_done_at": round(max((place.get(id, size.queued) for id in line["few"]), default=0) / size.queued, 3),
        "growth_mb": round(memory[-1] - memory[half], 1),
        "rss_mb": round(max(memory), 1),
    }


def live(stage: Stage, size: Size) -> Figures:
    """Thousands of sweeps on the cluster: a pass that has nothing to do, and a start with all of them."""
    assert stage.data is not None
    names = make_live(stage.store, stage.settings, stage.data.ids[1:][: size.live])
    reconciler = _reconciler(stage, names)
    for _ in range(3):  # after that the journals' times are believed
        reconciler.run_once()
        time.sleep(1.1)
    passes = []
    for _ in range(5):
        before = (time.monotonic(), time.process_time(), stage.statements, reconciler_calls(reconciler))
        reconciler.run_once()
        after = (time.monotonic(), time.process_time(), stage.statements, reconciler_calls(reconciler))
        passes.append([new - old for new, old in zip(after, before, strict=True)])
    wall, cpu, statements, calls = (statistics.median(each) for each in zip(*passes, strict=True))
    reconciler.stop()
    found: Figures = {
        "sweeps": size.live,
        "pass_s": round(wall, 3),
        "pass_cpu_s": round(cpu, 3),
        "queries": int(statements),
        "ray_calls": int(calls),
    }
    with PatientRay() as ray:
        for name in names:
            ray.jobs.become(name, "RUNNING")
        starts = []
        for _ in range(3):
            with stage.api(ray, max_running_sweeps=2 * size.live) as api:
                starts.append(api.ready_s)
                time.sleep(5.0)
                rss = api.rss_mb()
    _cancel_live(stage)
    return {**found, "ready_s": statistics.median(starts), "rss_mb": round(rss, 1)}


CASES: Mapping[str, Callable[[Stage, Size], Figures]] = {
    "requests": requests,
    "watchers": watchers,
    "ingestion": ingestion,
    "submitting": submitting,
    "queue": queue,
    "live": live,
}
"""In this order: the last one changes most of the sweeps."""


def reconciler_calls(reconciler: Reconciler) -> int:
    """Calls of Ray so far."""
    jobs: FakeJobs = reconciler._supervisor._jobs  # type: ignore[assignment]
    return len(jobs.calls)


def _reconciler(stage: Stage, names: list[str]) -> Reconciler:
    """In this process, beside a Ray that runs these jobs."""
    jobs = FakeJobs()
    for name in names:
        jobs.become(name, "RUNNING")
    clock = SystemClock()
    return Reconciler(store=stage.store, jobs=jobs, deployer=FakeDeployer(), settings=stage.settings, clock=clock)


@contextmanager
def _client(stage: Stage, api: Api) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {stage.key}"}
    with httpx.Client(base_url=api.url, headers=headers, trust_env=False, timeout=30) as client:
        yield client


def _journal_seq(stage: Stage, sweep_id: str) -> int:
    with stage.store.read() as session:
        return session.scalars(select(Attempt.journal_seq).where(Attempt.sweep_id == sweep_id)).one()


def _number_live(stage: Stage) -> int:
    with stage.store.read() as session:
        return session.scalars(select(func.count()).select_from(Sweep).where(Sweep.state.in_(LIVE))).one()


def _calm(stage: Stage) -> int:
    """Nothing is live."""
    _cancel_live(stage)
    return _number_live(stage)


def _cancel_live(stage: Stage) -> None:
    """What a case left over, out of the way of the next one: as if it had been cancelled long ago."""
    now = datetime.now(UTC)
    with stage.store.write() as session:
        over = {"state": "CANCELLED", "desired": "CANCEL", "ended_at": now, "version": Sweep.version + 1}
        session.execute(update(Sweep).where(Sweep.state.in_(LIVE)).values(over))
        gone = {"ended_at": now, "released_at": now, "state": "CANCELLED"}
        session.execute(update(Attempt).where(Attempt.released_at.is_(None)).values(gone))


def _until(done: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end:
            raise TimeoutError("the API did not do what the bench waits for")
        time.sleep(0.01)
