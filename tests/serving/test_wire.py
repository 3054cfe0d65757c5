"""OpenAI's endpoints over the engine of transformers: the contract of all engines, and what is its own."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from service.serving.catalogue import OneModel
from service.serving.data_plane import create_data_plane
from service.serving.engines.transformers import TransformersEngine
from simpo.config import TokenPolicy
from tests.serving.openai_contract import OpenAIContract, chatted, completed
from tests.serving.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    engine = TransformersEngine(tiny_model(), tiny_tokenizer(), TokenPolicy())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def app(engine: TransformersEngine) -> FastAPI:
    return create_data_plane(OneModel(engine, name="winner", revision=1, created=1))


class TestTransformers(OpenAIContract):
    """All of it."""


def test_a_prompt_that_was_read_is_not_read_again(app: FastAPI, engine: TransformersEngine) -> None:
    prefixes = engine._decoder.prefixes
    long = "the quick brown fox jumps over"
    first, before = completed(app, long, temperature=0, max_tokens=8).choices[0].text, prefixes.reused_tokens
    assert completed(app, long, temperature=0, max_tokens=8).choices[0].text == first
    assert prefixes.reused_tokens - before == len(long) - 1
    grown = completed(app, long + " the dog", temperature=0, max_tokens=8).choices[0].text
    assert prefixes.reused_tokens - before == 2 * len(long) - 1
    fresh = TransformersEngine(tiny_model(), tiny_tokenizer(), TokenPolicy())
    try:
        other = create_data_plane(OneModel(fresh, name="winner", revision=1, created=1))
        assert completed(other, long + " the dog", temperature=0, max_tokens=8).choices[0].text == grown
    finally:
        fresh.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_json_schema_is_refused_with_the_way_out(app: FastAPI, stream: bool) -> None:
    wish = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": {"type": "object"}}}
    with pytest.raises(
        openai.BadRequestError, match=r"not supported by the engine transformers; ask for json_object"
    ) as e:
        chatted(app, response_format=wish, stream=stream)
    assert (e.value.param, e.value.code) == ("response_format", "invalid_value")


def test_more_than_may_wait_is_refused_with_a_time(app: FastAPI) -> None:
    narrow = TransformersEngine(tiny_model(), tiny_tokenizer(), TokenPolicy(), max_batch=1, max_waiting=1)
    small = create_data_plane(OneModel(narrow, name="winner", revision=1, created=1))

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app=small, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"model": "winner", "prompt": "x", "n": 3, "stream": True}
            return await client.post("/v1/completions", json=body)

    try:
        answer = asyncio.run(post())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert len(completed(small, "x", n=2, max_tokens=2).choices) == 2
    finally:
        narrow.close()


def test_health_is_a_token(engine: TransformersEngine) -> None:
    engine._decoder._progress_at -= 3600
    engine.check_health()
    assert engine._decoder.silent_s < 60
