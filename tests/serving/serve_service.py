"""The service in a process of its own over a real Ray Serve, and what its callers see."""

import json
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from service.local_process import members
from service.local_ray import RayHead
from service.settings import Settings
from service.store import Store
from simpo.checkpoint import save_checkpoint
from tests.service.conftest import make_plane
from tests.service.served import served
from tests.service.test_deployments import succeeded
from tests.serving.tiny import BOS, EOS, TURN, tiny_model, tiny_tokenizer

LONG = 8000
"""Tokens of an answer that takes seconds."""
ENDLESS = 1_000_000
"""Likewise, hours: it lasts until somebody stops it, however fast the machine is."""
NO_END = {str(token): -100 for token in (BOS, EOS, TURN)}
"""A logit bias under which an answer is as long as it may be."""
ASK = {"model": "best", "prompt": "hello", "temperature": 0, "max_tokens": 8}


@dataclass(kw_only=True)
class Service:
    """The service in a process of its own, over a sweep whose trials 0 and 1 are two models."""

    client: httpx.Client
    head: RayHead
    token: str
    sweep: str
    run_dir: Path
    name: str = "best"
    deployment: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    """What each revision answers to `ASK`, as it was first heard."""

    def ask(self, **more: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={**ASK, "model": self.name, **more})

    def version(self, **more: Any) -> str:
        """Who answers; the text is that version's own, whoever is asked meanwhile."""
        answer = self.ask(**more)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        version: str = answer.headers["x-simpo-version"]
        assert body["system_fingerprint"] == version
        assert self.texts.setdefault(version, body["choices"][0]["text"]) == body["choices"][0]["text"]
        return version

    def wish(self, verb: str, **body: Any) -> dict[str, Any]:
        """POST a verb of the deployment."""
        answer = self.client.post(f"/v1/deployments/{self.deployment}/{verb}", json=body or None)
        assert answer.status_code == 202, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def get(self, part: str = "") -> dict[str, Any]:
        """The deployment, or a part of it."""
        answer = self.client.get(f"/v1/deployments/{self.deployment}{part}")
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def canary(self, checkpoint: str, weight: int, *, until: str, **more: Any) -> dict[str, Any]:
        """A candidate, once it is in this state; the champion answers meanwhile."""
        champion = f"rev-{self.get()['revision']}"
        self.wish("canary", sweep=self.sweep, checkpoint=checkpoint, weight=weight, guard=None, **more)

        def there() -> bool:
            state = self.get("/canary")["state"]
            assert state in ("PENDING", until)
            if state == "PENDING":
                assert self.version() == champion or self.get("/canary")["state"] == until
            return bool(state == until)

        wait(there)
        return self.get("/canary")

    def replica(self, application: str) -> psutil.Process:
        """The process that answers for a Serve application, once no other is there: one may be about to end."""
        wait(lambda: len(self.replicas(application)) == 1)
        (found,) = self.replicas(application)
        return found

    def replicas(self, application: str) -> list[psutil.Process]:
        """Processes that answer for a Serve application, or begin to, or end."""
        return members(self.head.stack_id, f"ServeReplica:{application}:")


@contextmanager
def service_on(ray: RayHead, token: str, home: Path, **more: Any) -> Iterator[Service]:
    """Over that head; nothing is deployed yet, and in the end nothing any more. `more`: settings."""
    settings = Settings(database_url=f"sqlite:///{home / 'simpo.db'}", store=home / "store", reconcile=False)
    Store(settings.database_url).migrate()
    for plane in make_plane(settings):
        sweep, key = succeeded(plane), plane.key
    run_dir = Path(settings.run_dir(sweep))
    for number in (0, 1):
        directory = run_dir / f"attempts/1/trials/trl_000{number}/checkpoint"
        shutil.rmtree(directory)
        model = tiny_model(number, max_position_embeddings=2 * ENDLESS)
        save_checkpoint(directory, model=model, tokenizer=tiny_tokenizer(), manifest=None)
    shutil.rmtree(run_dir / "base", ignore_errors=True)
    shutil.copytree(run_dir / "attempts/1/trials/trl_0000/checkpoint", run_dir / "base")
    (run_dir / "base/pytorch_model.bin").write_bytes(b"\x80\x04.")
    settings = replace(
        settings,
        reconcile=True,
        reconcile_interval_s=0.5,
        ray_jobs_url=ray.dashboard_url,
        ray_token=token,
        serve_url=ray.serve_url,
        **more,
    )
    with ExitStack() as stack:
        running = stack.enter_context(served(settings, home / "service.log"))
        client = httpx.Client(
            base_url=running.url, headers={"authorization": f"Bearer {key}"}, timeout=300, trust_env=False
        )
        stack.enter_context(client)
        found = Service(client=client, head=ray, token=token, sweep=sweep, run_dir=run_dir)
        yield found
        client.delete(f"/v1/models/{found.name}")
        wait(lambda: found.get()["state"] == "DELETED")


def wait(until: Callable[[], bool], timeout_s: float = 300.0) -> None:
    """Until it holds."""
    deadline = time.monotonic() + timeout_s
    while not until():
        assert time.monotonic() < deadline, f"not reached in {timeout_s:.0f} s"
        time.sleep(0.2)


def events(client: httpx.Client, number: int, **more: Any) -> Generator[dict[str, Any]]:
    """Of a stream of so many tokens."""
    body = {**ASK, "stream": True, "max_tokens": number, "logit_bias": NO_END, **more}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line[6:])
