"""SIGTERM to the real program with watchers, requests and an upload on their way: nobody is cut off. And its log."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from service.auth import create_key
from service.models import Lease
from service.settings import Settings
from service.store import Store
from tests.service.ray_double import RayDouble
from tests.service.receiver import receiver
from tests.service.served import Served, served

WATCHERS = 100
PATIENCE_S = 240.0


@pytest.fixture
def ray() -> Iterator[RayDouble]:
    with RayDouble() as double:
        yield double


async def _watch(http: httpx.AsyncClient, path: str, opened: asyncio.Semaphore) -> str:
    text = ""
    async with http.stream("GET", path, headers={"accept": "text/event-stream"}) as answer:
        assert answer.status_code == 200
        async for piece in answer.aiter_text():
            if not text:
                opened.release()
            text += piece
    return text


def _keep_asking(url: str, key: str, statuses: list[int], over: threading.Event) -> None:
    """New connections all the time, until nobody listens any more: then it is `over`."""
    headers = {"authorization": f"Bearer {key}"}
    while not over.is_set():
        for path in ("/v1/sweeps", "/readyz", "/v1/datasets"):
            try:
                asked = httpx.get(url + path, headers=headers, trust_env=False, timeout=PATIENCE_S)
                statuses.append(asked.status_code)
            except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError):
                over.set()  # it listens no more, or closed a connection on which nothing was asked yet
                return


def test_an_end_cuts_off_nobody(settings: Settings, tmp_path: Path, ray: RayDouble) -> None:
    """A second SIGTERM ends its time to say that it goes, once that was heard; the next test waits for that time."""
    ray.trial_s = 3600.0
    settings = replace(
        settings, reconcile=True, reconcile_interval_s=0.2, drain_s=3000.0, ray_jobs_url=ray.url, ray_token="a-token"
    )
    store = Store(settings.database_url)
    key = create_key(store, "tests")
    headers = {"authorization": f"Bearer {key}"}
    row = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}).encode() + b"\n"
    with served(settings, tmp_path / "log", grace_s=3000) as program:
        wish = {"json": {"name": "a"}, "headers": headers, "timeout": PATIENCE_S}
        posted = httpx.post(f"{program.url}/v1/sweeps", trust_env=False, **wish)
        sweep_id = posted.json()["id"]
        statuses, over, sent = list[int](), threading.Event(), 0

        async def upload() -> httpx.Response:
            async def pieces() -> AsyncIterator[bytes]:
                nonlocal sent
                while not over.is_set() or sent < 2:  # on its way until after nobody new is let in
                    yield row
                    sent += 1
                    await asyncio.sleep(0.1)

            async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
                kind = {"content-type": "application/jsonl"}
                return await http.post(f"{program.url}/v1/datasets", content=pieces(), headers=headers | kind)

        async def all_of_it() -> tuple[list[str], httpx.Response, int | None]:
            limits = httpx.Limits(max_connections=None)
            opened = asyncio.Semaphore(0)
            async with httpx.AsyncClient(
                base_url=program.url, headers=headers, trust_env=False, timeout=PATIENCE_S, limits=limits
            ) as http:
                path = f"/v1/sweeps/{sweep_id}/events"
                watchers = [asyncio.create_task(_watch(http, path, opened)) for _ in range(WATCHERS)]
                sending = asyncio.create_task(upload())
                for _ in range(WATCHERS):
                    await opened.acquire()
                while statuses.count(200) <= 3 or not sent:
                    await asyncio.sleep(0.05)
                program.process.terminate()
                ready = await asyncio.to_thread(_not_ready, program)
                before = statuses.count(200)
                while statuses.count(200) <= before + 3:  # everything else is answered as before
                    await asyncio.sleep(0.05)
                program.process.terminate()
                return await asyncio.gather(*watchers), await sending, ready

        asker = threading.Thread(target=_keep_asking, args=(program.url, key, statuses, over))
        asker.start()
        try:
            texts, uploaded, ready = asyncio.run(all_of_it())
            program.process.wait(PATIENCE_S)  # far less than it may take: nobody is waited for in vain
        finally:
            over.set()
            asker.join()
    assert ready == 503, "it says that it goes before it stops to listen"
    assert all("job.queued" in text and "event: done" not in text for text in texts)
    hints = {text.rpartition("retry: ")[2] for text in texts}
    assert all(1000 <= int(hint) <= 5000 for hint in hints) and len(hints) > 10, "a hint each, and not the same"
    assert uploaded.status_code == 201 and uploaded.json()["rows"] == sent > 1
    assert set(statuses) <= {200, 503} and statuses.count(200) > 3
    with store.read() as session:
        leases = session.scalars(select(Lease)).all()
    assert {lease.name for lease in leases} == {"reconciler", "deployments", "webhooks", "datasets"}
    assert {lease.until for lease in leases} == {0.0}, "given back: the next process need not wait"
    store.close()


def _not_ready(program: Served) -> int | None:
    until = time.monotonic() + PATIENCE_S
    while (status := program.ready()) != 503 and program.process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    return status


def test_no_secret_comes_into_the_log(settings: Settings, tmp_path: Path, ray: RayDouble) -> None:
    """I12: secrets in every place that a request, a setting or a receiver has; then every line is looked at."""
    settings = replace(
        settings,
        reconcile=True,
        reconcile_interval_s=0.1,
        ray_jobs_url=ray.url.replace("127.0.0.1", "user:p4ssw0rd-of-ray@127.0.0.1"),
        ray_token="not-the-token-of-this-ray",
        webhook_loopback=True,
        log_level="DEBUG",
    )
    store = Store(settings.database_url)
    key = create_key(store, "tests")
    store.close()
    headers = {"authorization": f"Bearer {key}"}
    secrets = ["hf_" + "a" * 30, "sk-proj-" + "b" * 30, "whsec_" + "c" * 30, "sk-simpo-" + "d" * 40, "sk-" + "e" * 30]
    with (
        served(settings, tmp_path / "log") as program,
        receiver() as there,
        httpx.Client(base_url=program.url, trust_env=False, timeout=PATIENCE_S) as http,
    ):
        there.answer = lambda number, message: (500, {"x-token": secrets[0]})
        hook = http.post("/v1/webhooks", headers=headers, json={"url": f"{there.url}&t={secrets[2]}", "events": ["*"]})
        secrets += [hook.json()["secret"], "p4ssw0rd-of-ray", "not-the-token-of-this-ray", key]
        posted = http.post("/v1/sweeps", headers=headers, json={"name": "a"})
        http.post("/v1/sweeps", headers=headers, json={"name": "b", "base_model": f"/models/{secrets[0]}"})
        there.wait(1)
        for each in secrets:
            odd = {"authorization": f"Bearer {each}", "x-request-id": f"{each}\u00a0", "traceparent": each}
            http.get(f"/v1/sweeps/{each}", headers=headers)
            http.get("/v1/sweeps", params={"after": each, "token": each}, headers=headers)
            http.post("/v1/sweeps", json={"name": "A", "key": each, each: 1}, headers=headers)
            http.post("/v1/sweeps", content=f'{{"broken": "{each}"', headers=headers)
            http.get("/v1/sweeps", headers={name: value.encode() for name, value in odd.items()})
            http.post(f"/v1/files?api_key={each}", content=each, headers=headers)
        http.get("/v1/sweeps/a%0d%0aforged%20line%00", headers=headers)
        shown, until = posted.json(), time.monotonic() + PATIENCE_S
        while shown["reason"] != "RAY_UNREACHABLE":
            assert time.monotonic() < until, shown
            time.sleep(0.1)
            shown = http.get(f"/v1/sweeps/{posted.json()['id']}", headers=headers).json()
        assert ray.url.partition("//")[2] in shown["message"] and "p4ssw0rd" not in repr(shown)
        program.end()
    written = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    asked = [line for line in lines if line["logger"] == "service.observe"]
    assert len(asked) > 6 * len(secrets) and all(line["request_id"] and line["trace_id"] for line in asked)
    assert any("forged line" in line["path"] for line in asked) and not any("?" in line["path"] for line in asked)
    assert {line["logger"] for line in lines} >= {"service.observe", "uvicorn.error"}
    assert [secret for secret in secrets if secret in written] == []
    assert [secret for secret in secrets if secret in repr(lines)] == [], "nor in another writing"
