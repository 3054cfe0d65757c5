"""From OpenAI's own client over the gateway to a real engine, on sockets: all but Ray Serve between them."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.serving.catalogue import OneModel
from service.serving.data_plane import create_data_plane
from service.serving.engines.transformers import TransformersEngine
from service.settings import Settings
from simpo.config import TokenPolicy
from tests.fakes import FakeDeployer, FakeJobs
from tests.service.conftest import make_plane
from tests.service.served import in_thread
from tests.service.test_deployments import deploy, succeeded
from tests.serving.tiny import tiny_model, tiny_tokenizer

HELLO: Any = [{"role": "user", "content": "hello"}]
LONG = 30_000  # tokens: minutes, if nobody stopped it
FOREVER: Any = {"logit_bias": {"257": -100}, "max_tokens": LONG}  # the end token never comes


class Wire:
    """A gateway with the deployment `best`, and the engine behind it."""

    def __init__(self, url: str, key: str, engine: TransformersEngine) -> None:
        self.url = f"{url}/v1"
        self.key = key
        self.engine = engine

    def until(self, there: Callable[[], bool]) -> float:
        """Wait; seconds that it took."""
        begun = time.monotonic()
        while not there():
            assert time.monotonic() < begun + 300
            time.sleep(0.005)
        return time.monotonic() - begun

    def busy(self) -> bool:
        return self.engine._decoder.num_open > 0


@pytest.fixture
def wire(settings: Settings) -> Iterator[Wire]:
    engine = TransformersEngine(tiny_model(max_position_embeddings=2 * LONG), tiny_tokenizer(), TokenPolicy())
    serve = FastAPI()
    serve.mount("/d/best", create_data_plane(OneModel(engine, name="best", revision=1, created=1)))
    with ExitStack() as stack:
        stack.callback(engine.close)
        origin = stack.enter_context(in_thread(serve))
        with contextmanager(make_plane)(settings) as plane:
            deploy(plane, succeeded(plane))
            plane.turn()
            key = plane.key
        api = create_app(replace(settings, serve_url=origin), jobs=FakeJobs(), deployer=FakeDeployer())
        yield Wire(stack.enter_context(in_thread(api)), key, engine)


def test_openais_clients_ask_everything_over_the_gateway(wire: Wire) -> None:
    options: Any = {"model": "best", "messages": HELLO, "max_tokens": 6, "seed": 3, "n": 2}
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=wire.url, api_key=wire.key, http_client=http, max_retries=0) as client:
        whole = client.chat.completions.create(
            **options, logprobs=True, top_logprobs=1, presence_penalty=0.5, frequency_penalty=0.5, stop=["\x00\x01"]
        )
        assert len(whole.choices) == 2 and whole.usage is not None
        assert whole.choices[0].logprobs is not None and whole.choices[0].logprobs.content
        again = client.chat.completions.create(**options, presence_penalty=0.5, frequency_penalty=0.5)
        assert [c.message.content for c in again.choices] == [c.message.content for c in whole.choices]
        with client.chat.completions.create(
            **options, presence_penalty=0.5, frequency_penalty=0.5, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
        assert chunks[-1].usage == whole.usage
        assert "".join(c.delta.content or "" for x in chunks for c in x.choices if c.index == 1) == (
            whole.choices[1].message.content
        )
        text = client.completions.create(model="best", prompt=["a", "b"], max_tokens=3, temperature=0)
        assert len(text.choices) == 2
        assert (
            "".join(
                chunk.choices[0].text
                for chunk in client.completions.create(
                    model="best", prompt="a", max_tokens=3, temperature=0, stream=True
                )
            )
            == text.choices[0].text
        )
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="best", messages=HELLO, tool_choice="required")
        assert caught.value.param == "tool_choice"
        assert [model.id for model in client.models.list()] == ["best"]

    async def asynchronous() -> list[Any]:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(base_url=wire.url, api_key=wire.key, http_client=http, max_retries=0) as client:
            return await asyncio.gather(*(client.chat.completions.create(**options) for _ in range(4)))

    answers = asyncio.run(asynchronous())
    assert len({tuple(c.message.content for c in answer.choices) for answer in answers}) == 1


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_ends_the_work(wire: Wire, stream: bool) -> None:
    body = {"model": "best", "messages": HELLO, "stream": stream, **FOREVER}
    headers = {"Authorization": f"Bearer {wire.key}"}
    begun = threading.Event()

    async def ask() -> None:
        async with (
            httpx.AsyncClient(timeout=None, trust_env=False) as client,
            client.stream("POST", f"{wire.url}/chat/completions", json=body, headers=headers) as answer,
        ):
            async for _ in answer.aiter_raw():
                begun.set()

    async def leave() -> None:
        asking = asyncio.create_task(ask())
        await asyncio.to_thread(wire.until, begun.is_set if stream else wire.busy)
        assert begun.is_set() == stream, "left in the middle"
        asking.cancel()
        (left,) = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(left, asyncio.CancelledError)

    asyncio.run(leave())
    took_s = wire.until(lambda: not wire.busy())
    assert took_s < 30, "by itself it would go on for minutes"
    print(f"work stopped {took_s:.2f} s after the client left")


def test_a_body_that_nests_without_end_is_no_json(wire: Wire) -> None:
    headers = {"Authorization": f"Bearer {wire.key}"}
    content = b'{"a":' + b"[" * 100_000
    answer = httpx.post(f"{wire.url}/chat/completions", content=content, headers=headers, trust_env=False, timeout=300)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "The body is not JSON.")
