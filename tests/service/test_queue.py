"""A long queue of several projects before four places: all end, in order, nobody starves, at few queries a pass."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, event, func, select

from service.auth import Caller
from service.clock import SystemClock
from service.cluster import JobInfo, RayJobs
from service.models import Attempt, Sweep
from service.models_people import Project
from service.orders import sweep_order
from service.quotas import lines_of
from service.reconcile import Reconciler
from service.rows import create_sweep
from service.settings import Settings
from service.store import Store
from tests.fakes import FakeClock, FakeDeployer
from tests.service.ray_double import TOKEN, RayDouble

QUEUE = {"prj_a": 280, "prj_b": 80, "prj_c": 36, "prj_d": 4}
LIMIT = 4
PATIENCE_S = 1200.0


def test_a_queue_of_hundreds_ends_in_order_and_shares_are_fair(settings: Settings) -> None:
    settings = replace(settings, max_running_sweeps=LIMIT, project_sweeps=3)
    store, clock = Store(settings.database_url), SystemClock()
    order = sweep_order({"name": "a"}, lambda dataset_id: None)
    with store.write() as session:
        asked_at = clock.now() - timedelta(hours=1)
        for project, many in QUEUE.items():
            session.add(Project(id=project, name=project, created_by="tests", created_at=asked_at))
            caller = Caller(key_id="key_1", name="tests", project=project)
            for number in range(many):
                asked_at += timedelta(milliseconds=1)
                urgent = replace(order, name=f"{project[-1]}-{number}", priority=int(number % 50 == 49))
                create_sweep(session, urgent, caller, asked_at)
    with RayDouble() as ray:
        ray.trial_s, ray.trials, ray.leaves_s = 0.0, 1, 0.0
        jobs = RayJobs(ray.url, TOKEN)
        reconciler = Reconciler(
            store=store, jobs=jobs, deployer=FakeDeployer(), settings=settings, clock=clock
        )
        first = _counted(reconciler.run_once)
        assert first.total() < 100, "four starts, and hundreds told why they wait"
        began, most = time.monotonic(), 0
        while _left(store):
            assert time.monotonic() - began < PATIENCE_S
            while any(not job.terminal for job in ray.jobs.list().values()):
                # For the drivers, which are threads of this process: each has a place for one pass, however slow it is.
                assert time.monotonic() - began < PATIENCE_S
                time.sleep(0.001)
            reconciler.run_once()
            most = max(most, sum(not job.terminal for job in jobs.list().values()))
        _look_at(store, most)
    store.close()


def test_a_pass_over_a_thousand_that_wait_is_few_queries_and_one_call(settings: Settings) -> None:
    settings = replace(settings, max_running_sweeps=LIMIT, project_trials=1, project_hours=5.0)
    store, clock, jobs = Store(settings.database_url), FakeClock(), _Silent()  # no lease is renewed meanwhile
    order = sweep_order({"name": "a"}, lambda dataset_id: None)
    with store.write() as session:
        session.add(Project(id="prj_a", name="prj_a", created_by="tests", created_at=clock.now()))
        for number in range(1000):
            caller = Caller(key_id="key_1", name="tests", project=("default", "prj_a")[number % 2])
            create_sweep(session, replace(order, name=f"n-{number}", slots=1), caller, clock.now())
            clock.advance(0.001)
    reconciler = Reconciler(store=store, jobs=jobs, deployer=FakeDeployer(), settings=settings, clock=clock)
    for _ in range(3):
        reconciler.run_once()
    jobs.calls.clear()
    queries = _counted(reconciler.run_once)
    # One in 100 sweeps; Serve, roll-outs, doctor, promotions, jobs and hours look once each, each in a transaction.
    assert queries["SELECT"] <= 10 + 6 and queries.total() <= 10 + 16, queries
    assert queries["UPDATE"] == 0 and jobs.calls == ["list"]
    with store.read() as session:
        found = session.execute(select(Sweep.reason, func.count()).group_by(Sweep.reason))
        reasons = dict(found.all())
        line = select(Sweep.id).where(Sweep.project == "prj_a", Sweep.reason == "QUOTA").order_by(Sweep.created_at)
        ids = session.scalars(line).all()
        ends = lines_of(session, Sweep.id.in_([ids[0], ids[-1]]))
        assert [(each["place"], each["of"], each["after"]) for each in ends] == [(1, 499, None), (499, 499, ids[-2])]
    assert reasons == {"STARTING": 2, "QUOTA": 998}
    store.close()


def _look_at(store: Store, most: int) -> None:
    assert most <= LIMIT
    with store.read() as session:
        started = select(Sweep).join(Attempt, Attempt.sweep_id == Sweep.id).order_by(Attempt.created_at)
        sweeps = session.scalars(started).all()
    assert Counter(sweep.project for sweep in sweeps) == QUEUE, "each started once"
    assert {sweep.state for sweep in sweeps} == {"SUCCEEDED"}
    for project in QUEUE:
        mine = [(-sweep.priority, sweep.created_at) for sweep in sweeps if sweep.project == project]
        assert mine == sorted(mine), "by priority, then by age"
    # While all four wait each has a quarter of the places, however long the first one's line is.
    last = {project: max(n for n, sweep in enumerate(sweeps) if sweep.project == project) for project in QUEUE}
    assert last["prj_d"] < 36 and last["prj_c"] < 170 and last["prj_b"] < 290


def _left(store: Store) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).where(Sweep.state != "SUCCEEDED")) or 0


class _Silent:
    """A Ray whose jobs stay on their way."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.names: list[str] = []

    def submit(self, submission_id: str, entrypoint: str, env: Any) -> None:
        self.names.append(submission_id)

    def get(self, submission_id: str) -> None:
        self.calls.append("get")

    def list(self) -> Any:
        self.calls.append("list")
        return {name: JobInfo(submission_id=name, status="RUNNING") for name in self.names}

    def stop(self, submission_id: str) -> None:
        self.calls.append("stop")

    def logs(self, submission_id: str) -> str:
        self.calls.append("logs")
        return ""


def _counted(work: Callable[[], object]) -> Counter[str]:
    """Statements by their first word while `work` is done."""
    with _statements() as seen:
        work()
    return Counter(text.split()[0] for text in seen)


@contextmanager
def _statements() -> Iterator[list[str]]:
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)
