"""The asynchronous client is the blocking one, awaited: the same methods, the same walk, the same errors."""

import ast
import asyncio
import functools
import inspect
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import Client
from service.client_async import AsyncClient
from service.client_errors import ApiError, ClientError, ServiceUnreachable, WaitTimeout
from tests.async_stub import STUB, blocking_methods, rendered
from tests.service.test_client_app import Server

Json = dict[str, Any]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The test, in an event loop of its own."""
    return functools.wraps(test)(lambda *given, **named: asyncio.run(test(*given, **named)))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("api"))
    yield running
    running.stop()
    running.store.close()


# -- the same methods


def test_the_types_are_those_of_the_blocking_client() -> None:
    assert STUB.read_text() == rendered(), "python -m tests.async_stub --write"


def test_every_method_is_awaited_or_iterated_as_its_types_say() -> None:
    client = AsyncClient("http://service.test", "k")
    told = {node.name: node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef)}
    found = list(blocking_methods())
    assert len(found) > 50 and {"", "datasets", "edits", "webhooks", "keys"} <= {topic for topic, _ in found}
    for topic, method in found:
        holder = getattr(client, topic) if topic else client
        called = getattr(holder, method.name)
        yields = ast.unparse(method.returns or ast.Constant(None)).startswith("Iterator[")
        assert yields == inspect.isgeneratorfunction(inspect.unwrap(called)), (topic, method.name)
    assert {"AsyncClient", "AsyncDatasets", "AsyncEdits"} <= set(told)
    assert not hasattr(client, "no_such_method") and not hasattr(client, "_send")
    assert client.url == "http://service.test"


# -- the same walk


async def done(value: Any) -> Any:
    """A result, of either client."""
    return await value if inspect.isawaitable(value) else value


async def listed(value: Any) -> list[Any]:
    """Everything that is yielded, by either client."""
    return [item async for item in value] if hasattr(value, "__aiter__") else list(value)


async def walk(client: Any, server: Server, name: str, rows: Path) -> list[Any]:
    """What a person does in an hour; everything that came back and does not depend on ids and clocks."""
    seen: list[Any] = []
    made = await done(client.create_sweep({"name": name, "budget": {"trials": 3}}, idempotency_key=f"k-{name}"))
    again = await done(client.create_sweep({"name": name, "budget": {"trials": 3}}, idempotency_key=f"k-{name}"))
    seen += [made.state, made.id == again.id, (await done(client.find("sweeps", name))).id == made.id]
    seen.append([each.id == made.id for each in await listed(client.iterate("sweeps", limit=1, name=name))])
    seen.append((await done(client.plan("sweeps", {"name": f"{name}-b"})))["object"])
    edit = await done(client.edits.extend(made.id, trials=9))
    seen += [edit["state"], [each["action"] for each in await listed(client.edits.iterate(made.id))]]
    held = await done(client.datasets.upload(rows, name=f"rows-{name}"))
    seen += [held["rows"], [row["line"] for row in await done(client.datasets.preview(held["id"]))]]
    seen.append((await done(client.datasets.delete(held["id"])))["state"])
    for wrong in (lambda: client.get("sweeps", "swp_x"), lambda: client.create_sweep({"name": "NO"})):
        with pytest.raises(ApiError) as caught:
            await done(wrong())
        seen.append((caught.value.status, caught.value.code, str(caught.value)))
    with pytest.raises(WaitTimeout) as late:
        await done(client.wait("sweeps", made.id, timeout_s=0.0))
    seen.append(str(late.value).replace(made.id, "it"))
    seen.append((await done(client.cancel("sweeps", made.id))).body["desired"])
    await asyncio.to_thread(server.end, made.id)
    seen.append([event.type for event in await listed(client.events("sweeps", made.id))])
    seen.append(await done(client.models()))
    return seen


@in_loop
async def test_one_walk_on_both(server: Server, tmp_path: Path) -> None:
    def rows(name: str) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps({"prompt": name, "chosen": "a", "rejected": "b"}) + "\n")
        return path

    with Client(server.url, server.key) as blocking:
        first = await walk(blocking, server, "one", rows("one"))
    async with AsyncClient(server.url, server.key) as client:
        second = await walk(client, server, "two", rows("two"))
    assert first == second
    assert first[-2] == ["job.queued", "sweep.edited", "job.cancel_requested"]


@in_loop
async def test_many_at_once_share_one_thread_and_a_cancel_reaches_the_call(server: Server) -> None:
    async with AsyncClient(server.url, server.key) as client:
        sweeps = await asyncio.gather(*(client.create_sweep({"name": f"many-{n}"}) for n in range(8)))
        watchers = [asyncio.create_task(listed(client.events("sweeps", sweep.id))) for sweep in sweeps]
        await asyncio.sleep(0.1)
        for watcher in watchers[:4]:
            watcher.cancel()
        for sweep in sweeps:
            await asyncio.to_thread(server.end, sweep.id)
        found = await asyncio.gather(*watchers, return_exceptions=True)
    assert [isinstance(each, asyncio.CancelledError) for each in found] == [True] * 4 + [False] * 4
    heard = [[event.type for event in events] for events in found if isinstance(events, list)]
    assert heard == [["job.queued"]] * 4


# -- without a server


PAUSES: list[float] = []


def mocked(handler: Callable[[httpx.Request], httpx.Response]) -> AsyncClient:
    """A client of a scripted service that never really waits."""

    async def sleep(seconds: float) -> None:
        PAUSES.append(seconds)

    return AsyncClient("http://service.test", "sk", transport=httpx.MockTransport(handler), sleep=sleep)


@in_loop
async def test_retries_pause_the_loop_and_not_the_thread() -> None:
    answers = iter([httpx.Response(503, headers={"retry-after": "7"}), httpx.Response(200, json={"id": "swp_1"})])
    client = mocked(lambda request: next(answers))
    PAUSES.clear()
    assert (await client.get("sweeps", "swp_1")).id == "swp_1" and PAUSES == [7.0]


@in_loop
async def test_nobody_there_and_errors_inside_a_stream() -> None:
    def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ServiceUnreachable):
        await mocked(nobody).models()
    text = 'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\ndata: {"error": {"message": "lost"}}\n\n'
    client = mocked(lambda request: httpx.Response(200, content=text))
    heard = []
    with pytest.raises(ClientError, match="lost"):
        async for piece in client.chat("m", [{"role": "user", "content": "?"}]):
            heard.append(piece)
    assert heard == ["Hel"]


@in_loop
async def test_an_iteration_that_is_left_closes_its_stream() -> None:
    closed = []

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                yield b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'

        async def aclose(self) -> None:
            closed.append(True)

    client = mocked(lambda request: httpx.Response(200, stream=Endless()))
    pieces: Any = client.chat("m", [])
    assert await anext(pieces) == "x"
    await pieces.aclose()
    assert closed == [True]

