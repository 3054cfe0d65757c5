"""The client against the real application over real HTTP. The reconciler is off: the test plays its part."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from service import events, rows
from service.app import create_app
from service.auth import create_key
from service.client import Client
from service.client_errors import ApiError
from service.local_process import free_ports
from service.settings import Settings
from service.states import State
from service.store import Store


class Server:
    """The application on a free port of loopback, in a thread."""

    def __init__(self, directory: Path) -> None:
        self.settings = Settings(
            database_url=f"sqlite:///{directory / 'simpo.db'}", store=directory / "store", reconcile=False
        )
        self.store = Store(self.settings.database_url)
        self.store.migrate()
        self.key = create_key(self.store, "test")
        (self.port,) = free_ports(1)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = uvicorn.Config(
            create_app(self.settings),
            host="127.0.0.1",
            port=self.port,
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._uvicorn.run)
        self._thread.start()
        while not self._uvicorn.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join()

    def happen(self, sweep_id: str, kind: str, **data: Any) -> None:
        """What the reconciler would write."""
        with self.store.write() as session:
            sweep = rows.lock_sweep(session, sweep_id)
            assert sweep is not None
            events.append(session, sweep, kind, "", data, now=datetime.now(UTC))

    def end(self, sweep_id: str) -> None:
        with self.store.write() as session:
            sweep = rows.lock_sweep(session, sweep_id)
            assert sweep is not None
            rows.move(session, sweep, State.CANCELLED, "CANCELLED", "Cancelled.", datetime.now(UTC))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("api"))
    yield running
    running.stop()
    running.store.close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, server.key) as connected:
        yield connected


def test_a_sweep_is_made_found_listed_and_cancelled(client: Client) -> None:
    made = client.create_sweep({"name": "first", "budget": {"trials": 3}})
    assert (made.state, made.body["spec"]["budget"]["trials"]) == ("PENDING", 3)
    assert client.find("sweeps", "first").id == made.id == client.find("sweeps", made.id).id
    assert [sweep.id for sweep in client.iterate("sweeps", name="first")] == [made.id]
    assert client.trials(made.id) == [] and client.leaderboard(made.id) == []
    assert client.cancel("sweeps", made.id).reason == "CANCEL_REQUESTED"


def test_pages_of_one(client: Client) -> None:
    names = [client.create_run({"name": f"r-{number}", "learning_rate": 1e-4}).name for number in range(3)]
    assert [run.name for run in client.iterate("runs", limit=1)] == names[::-1]


def test_the_same_key_is_the_same_sweep(client: Client) -> None:
    first, second = (client.create_sweep({"name": "once"}, idempotency_key="k-1") for _ in range(2))
    assert first.id == second.id
    with pytest.raises(ApiError) as caught:
        client.create_sweep({"name": "twice"}, idempotency_key="k-1")
    assert caught.value.code == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"name": "x", "space": {"beta": -1}}, "space.beta: must be greater than 0"),
        ({"name": "x", "method": "simpoo"}, "method: unknown method 'simpoo'"),
        ({"name": "x", "budgett": {}}, "budgett: unknown key"),
        ({"name": "x", "base_model": "/no/model"}, "base_model: there is no model directory /no/model"),
    ],
)
def test_refusals_name_the_field(client: Client, spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ApiError) as caught:
        client.create_sweep(spec)
    assert caught.value.status == 422 and sentence in str(caught.value)
    assert caught.value.request_id


def test_a_plan_makes_nothing(client: Client) -> None:
    planned = client.plan("sweeps", {"name": "only-a-plan", "budget": {"trials": 5}})
    assert planned["plan"]["trials"] == 5
    assert not list(client.iterate("sweeps", name="only-a-plan"))


def test_a_wrong_key_says_where_to_get_one(server: Server) -> None:
    with Client(server.url, "wrong") as stranger, pytest.raises(ApiError, match="SIMPO_API_KEY"):
        next(stranger.iterate("sweeps"))


def test_a_deployment_of_an_unfinished_sweep_is_refused(client: Client) -> None:
    sweep = client.create_sweep({"name": "not-yet"})
    with pytest.raises(ApiError) as caught:
        client.deploy("early", sweep=sweep.id)
    assert caught.value.users_mistake


def test_chat_with_nobody(client: Client) -> None:
    assert client.models() == []
    with pytest.raises(ApiError, match="The model 'x' does not exist"):
        list(client.chat("x", [{"role": "user", "content": "hi"}]))


def test_events_survive_a_restart_of_the_service(server: Server, client: Client) -> None:
    sweep = client.create_sweep({"name": "watched"})
    seen: list[str] = []

    def follow() -> None:
        with Client(server.url, server.key) as watcher:
            seen.extend(f"{event.type} {event.data.get('step', '')}" for event in watcher.events("sweeps", sweep.id))

    watching = threading.Thread(target=follow)
    watching.start()
    for step in range(3):
        server.happen(sweep.id, "trial.progress", trial_id="t", step=step)
    server.stop()
    server.happen(sweep.id, "trial.progress", trial_id="t", step=3)
    server.start()
    server.end(sweep.id)
    watching.join(timeout=300)
    assert seen == ["job.queued ", *(f"trial.progress {step}" for step in range(4))]
    assert [event.id for event in client.past_events("sweeps", sweep.id)] == [f"evt_{n:08d}" for n in range(1, 6)]
