"""The three endpoints over a scripted engine: OpenAI's official client is the judge of the wire format."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai.types.chat import ChatCompletionMessageParam

from service.serving.catalogue import OneModel
from service.serving.data_plane import create_data_plane
from service.serving.engines.base import EngineBusy, EngineError, Occupancy, Piece, Sampling, SchemaRefused, Turn
from service.serving.openai_strict import MAX_BODY_BYTES
from simpo.errors import DataError
from tests.serving.openai_contract import official

pytestmark = pytest.mark.quick

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


class ScriptedEngine:
    """Answers with its script; one prompt token per character."""

    context_length = 64
    vocab_size = 100

    def __init__(self, script: Sequence[Piece | EngineError] = ()) -> None:
        self.script = script or (
            Piece(text="Gr\u00fc", num_tokens=2),
            Piece(text="\u00dfe", num_tokens=1),
            Piece(text="", num_tokens=1, finish_reason="stop"),
        )
        self.asked: list[tuple[list[int], Sampling]] = []
        self.closed = 0
        self.room = 64

    def encode_chat(self, turns: Sequence[Turn]) -> list[int]:
        if turns[-1].role == "assistant":
            raise DataError("the last turn must be the user's")
        return [1] * sum(len(turn.content) for turn in turns)

    def encode_text(self, text: str) -> list[int]:
        return [2] * len(text)

    def check_schema(self, schema: str) -> None:
        if "pattern" in schema:
            raise SchemaRefused("it knows no patterns; leave them out")

    def admit(self, num_requests: int) -> None:
        if num_requests > self.room:
            raise EngineBusy("too many wait", 3)

    async def stream(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Piece]:
        self.asked.append((list(prompt_ids), sampling))
        try:
            for item in self.script:
                await asyncio.sleep(0)
                if isinstance(item, EngineError):
                    raise item
                yield item
        finally:
            self.closed += 1

    def warm_up(self) -> None: ...

    def check_health(self) -> None: ...

    def occupancy(self) -> Occupancy:
        return Occupancy(running=0, waiting=0, reused_tokens=0)

    def close(self) -> None: ...


def data_plane(engine: ScriptedEngine, **options: Any) -> FastAPI:
    return create_data_plane(OneModel(engine, name="winner", revision=3, created=1234), **options)


async def post(app: FastAPI, path: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, **options)


def test_official_client_chats() -> None:
    engine = ScriptedEngine()

    async def talk() -> Any:
        async with official(data_plane(engine)) as client:
            return await client.chat.completions.create(
                model="winner", messages=HELLO, temperature=0.3, top_p=0.9, seed=5, stop=["X"], max_tokens=9
            )

    answer = asyncio.run(talk())
    assert answer.choices[0].message.content == "Gr\u00fc\u00dfe"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 4, 9)
    assert (answer.model, answer.object, answer.system_fingerprint) == ("winner", "chat.completion", "rev-3")
    asked = Sampling(max_new_tokens=9, temperature=0.3, top_p=0.9, seed=5, stop=("X",))
    assert engine.asked == [([1] * 5, asked)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_json_schema_reaches_the_engine_or_is_refused_with_its_words(stream: bool) -> None:
    engine = ScriptedEngine()

    def ask(schema: dict[str, Any]) -> httpx.Response:
        wish = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}
        body = {"model": "winner", "messages": HELLO, "stream": stream, "response_format": wish}
        return asyncio.run(post(data_plane(engine), "/v1/chat/completions", json=body))

    assert ask({"type": "object"}).status_code == 200
    assert engine.asked[0][1].json_schema == '{"type": "object"}'
    refused = ask({"pattern": "a+"})
    assert refused.status_code == 400 and len(engine.asked) == 1
    error = refused.json()["error"]
    assert (error["param"], error["code"]) == ("response_format", "invalid_value")
    assert error["message"] == "response_format: it knows no patterns; leave them out"


def test_official_client_streams_a_chat_with_usage() -> None:
    async def talk() -> list[Any]:
        async with official(data_plane(ScriptedEngine())) as client:
            stream = await client.chat.completions.create(
                model="winner", messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
            return [chunk async for chunk in stream]

    *chunks, last = asyncio.run(talk())
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Gr\u00fc\u00dfe"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.completion_tokens == 4
    assert len({chunk.id for chunk in [*chunks, last]}) == 1


def test_official_client_completes_and_streams_a_completion() -> None:
    engine = ScriptedEngine()

    async def talk() -> tuple[Any, list[Any]]:
        async with official(data_plane(engine)) as client:
            whole = await client.completions.create(model="winner", prompt=[7, 8])
            stream = await client.completions.create(model="winner", prompt="once", stream=True)
            return whole, [chunk async for chunk in stream]

    whole, chunks = asyncio.run(talk())
    assert (whole.choices[0].text, whole.object) == ("Gr\u00fc\u00dfe", "text_completion")
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Gr\u00fc\u00dfe"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert [ids for ids, _ in engine.asked] == [[7, 8], [2] * 4]


def test_official_client_lists_the_model() -> None:
    async def ask() -> tuple[list[Any], Any]:
        async with official(data_plane(ScriptedEngine())) as client:
            return [model async for model in client.models.list()], await client.models.retrieve("winner")

    listed, one = asyncio.run(ask())
    assert [(model.id, model.created, model.owned_by) for model in listed] == [("winner", 1234, "simpo")]
    assert one == listed[0]


def test_the_bytes_of_a_stream_are_openais() -> None:
    body = {"model": "winner", "messages": HELLO, "stream": True}
    answer = asyncio.run(post(data_plane(ScriptedEngine()), "/v1/chat/completions", json=body))
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, end = answer.text.split("\n\n")
    assert end == "" and events[-1] == "data: [DONE]"
    assert all(event.startswith("data: {") and "\n" not in event for event in events[:-1])
    assert '"usage"' not in answer.text


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "loser", "messages": HELLO}, 404, "model", "model_not_found"),
        ({"model": "winner", "messages": HELLO, "n": 65}, 400, "n", "invalid_value"),
        ({"model": "winner", "messages": [{"role": "assistant", "content": "x"}]}, 400, "messages", "invalid_value"),
        (
            {"model": "winner", "messages": [{"role": "user", "content": "x" * 64}], "stream": True},
            400,
            "messages",
            "context_length_exceeded",
        ),
    ],
)
def test_refusals_have_openais_shape(body: dict[str, Any], status: int, param: str, code: str) -> None:
    engine = ScriptedEngine()
    answer = asyncio.run(post(data_plane(engine), "/v1/chat/completions", json=body))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    assert engine.asked == []


def test_the_official_client_shows_the_message() -> None:
    async def talk() -> None:
        async with official(data_plane(ScriptedEngine())) as client:
            await client.chat.completions.create(model="winner", messages=HELLO, store=True)

    with pytest.raises(openai.BadRequestError, match="store is not supported by this server") as caught:
        asyncio.run(talk())
    assert (caught.value.param, caught.value.code) == ("store", "unsupported_parameter")


@pytest.mark.parametrize("prompt", [[100], [-1], [3, 2**40]])
def test_token_ids_outside_the_vocabulary_are_refused(prompt: list[int]) -> None:
    body = {"model": "winner", "prompt": prompt}
    answer = asyncio.run(post(data_plane(ScriptedEngine()), "/v1/completions", json=body))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_unknown_paths_and_methods_have_openais_shape() -> None:
    app = data_plane(ScriptedEngine())
    assert (
        asyncio.run(post(app, "/v1/embeddings", json={})).json()["error"]["message"].startswith("POST /v1/embeddings")
    )
    assert asyncio.run(post(app, "/v1/models", json={})).status_code == 405


def test_a_huge_body_is_cut_off() -> None:
    answer = asyncio.run(post(data_plane(ScriptedEngine()), "/v1/completions", content=b" " * (MAX_BODY_BYTES + 1)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_an_engine_that_fails_says_so_in_every_form() -> None:
    engine = ScriptedEngine([Piece(text="so far", num_tokens=1), EngineError("out of memory")])
    app = data_plane(engine)
    whole = asyncio.run(post(app, "/v1/chat/completions", json={"model": "winner", "messages": HELLO}))
    assert (whole.status_code, whole.json()["error"]["type"]) == (500, "server_error")
    body = {"model": "winner", "messages": HELLO, "stream": True}
    streamed = asyncio.run(post(app, "/v1/chat/completions", json=body))
    assert "so far" in streamed.text and '"out of memory"' in streamed.text
    assert "[DONE]" not in streamed.text


def test_a_client_that_leaves_ends_the_work() -> None:
    engine = ScriptedEngine([Piece(text=str(i), num_tokens=1) for i in range(1000)])

    async def leave() -> None:
        async with official(data_plane(engine)) as client:
            request = client.chat.completions.create(model="winner", messages=HELLO)
            task = asyncio.ensure_future(request)
            while not engine.asked:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    assert engine.closed == 1


def test_the_servers_limit_holds() -> None:
    engine = ScriptedEngine()
    app = data_plane(engine, max_new_tokens=10)
    body = {"model": "winner", "messages": HELLO}
    assert asyncio.run(post(app, "/v1/chat/completions", json=body)).status_code == 200
    assert engine.asked[0][1].max_new_tokens == 10
    refused = asyncio.run(post(app, "/v1/chat/completions", json=body | {"max_tokens": 11}))
    assert refused.json()["error"]["param"] == "max_tokens"
