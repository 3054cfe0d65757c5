"""A control plane in one process: real store on SQLite, everything around it fake."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.app import create_app
from service.auth import create_key
from service.clock import Clock
from service.cluster import Jobs
from service.context import Context
from service.examine import Doctor
from service.models import Attempt, Deployment, Event, Sweep, Trial
from service.oidc import Oidc
from service.reconcile import Reconciler
from service.serving.deployer import Deployer
from service.settings import Settings
from service.store import Store
from tests.fakes import FakeClock, FakeDeployer, FakeDriver, FakeJobs
from tests.service.postgres import private_postgres
from tests.service.serve_double import ServeDouble


@dataclass(kw_only=True)
class Plane:
    """The application and what a test may reach behind it. The reconciler moves when a test says `turn`."""

    client: TestClient
    settings: Settings
    store: Store
    jobs: FakeJobs
    deployer: FakeDeployer
    clock: FakeClock
    key: str
    reconciler: Reconciler

    def post(self, name: str = "a", kind: str = "sweeps", **body: Any) -> dict[str, Any]:
        """An accepted sweep."""
        extra = {"learning_rate": 1e-4} if kind == "runs" else {}
        answer = self.client.post(f"/v1/{kind}", json={"name": name, **extra, **body})
        assert answer.status_code == 202, answer.text
        accepted: dict[str, Any] = answer.json()
        return accepted

    def turn(self, times: int = 1) -> None:
        """So many passes of the reconciler, a second apart."""
        for _ in range(times):
            self.reconciler.run_once()
            self.clock.advance(1.0)

    def drive(self, sweep_id: str, attempt: int = 1) -> FakeDriver:
        """The driver of an attempt, as Ray would have started it."""
        return FakeDriver(self.settings.run_dir(sweep_id), attempt)

    def sweep(self, sweep_id: str) -> dict[str, Any]:
        """The resource as the API shows it."""
        kind = "runs" if sweep_id.startswith("run") else "sweeps"
        found: dict[str, Any] = self.client.get(f"/v1/{kind}/{sweep_id}").json()
        return found

    def events(self, parent_id: str) -> list[str]:
        """Types of all events, in order."""
        with self.store.read() as session:
            return list(session.scalars(select(Event.type).where(Event.parent_id == parent_id).order_by(Event.seq)))

    def attempts(self, sweep_id: str) -> list[Attempt]:
        """Rows, in order."""
        with self.store.read() as session:
            return list(session.scalars(select(Attempt).where(Attempt.sweep_id == sweep_id).order_by(Attempt.n)))

    def counts(self) -> dict[str, int]:
        """Rows of every table that people's wishes fill."""
        with self.store.read() as session:
            tables = (Sweep, Attempt, Trial, Event, Deployment)
            return {table.__tablename__: len(session.scalars(select(table)).all()) for table in tables}


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database at the newest schema, to be copied: migrating takes longer than a whole test."""
    path = tmp_path_factory.mktemp("migrated") / "empty.db"
    store = Store(f"sqlite:///{path}")
    store.migrate()
    with store.read() as session:
        session.connection().exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Path]:
    """The socket directory of a private PostgreSQL; skips where there is none."""
    with private_postgres() as home:
        yield home


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> Settings:
    """One sweep at a time, hearts that count as still after 20 s, no thread."""
    (tmp_path / "simpo.db").write_bytes(migrated.read_bytes())
    return Settings(database_url=f"sqlite:///{tmp_path / 'simpo.db'}", store=tmp_path / "store", reconcile=False)


@pytest.fixture
def plane(settings: Settings) -> Iterator[Plane]:
    """The default one."""
    yield from make_plane(settings)


def make_plane(
    settings: Settings,
    *,
    serve: httpx.AsyncBaseTransport | None = None,
    doctor: Doctor | None = None,
    real_deployer: Deployer | None = None,
    real_jobs: Jobs | None = None,
    oidc: Callable[[Clock], Oidc] | None = None,
    **changes: Any,
) -> Iterator[Plane]:
    """A plane with changed settings, as a generator fixture. `serve`: what answers as Ray Serve's HTTP proxy.

    `real_deployer`, `real_jobs`: work instead of the fakes, which then are idle. `oidc`: who looks at tokens.
    """
    settings = replace(settings, **changes)
    store, jobs, deployer, clock = Store(settings.database_url), FakeJobs(), FakeDeployer(), FakeClock()
    models = ServeDouble(serve) if serve else None
    app = create_app(
        settings,
        store=store,
        jobs=real_jobs or jobs,
        deployer=real_deployer or deployer,
        clock=clock,
        models=models,
        doctor=doctor,
        oidc=oidc and oidc(clock),
    )
    context: Context = app.state.context
    with TestClient(app, raise_server_exceptions=False) as client:
        key = create_key(store, "tests")
        client.headers["authorization"] = f"Bearer {key}"
        yield Plane(
            client=client,
            settings=settings,
            store=store,
            jobs=jobs,
            deployer=deployer,
            clock=clock,
            key=key,
            reconciler=context.reconciler,
        )
