"""Whatever somebody sends: an answer or a refusal in OpenAI's shape, never a 500."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.serving.catalogue import OneModel
from service.serving.data_plane import create_data_plane
from service.serving.engines.transformers import TransformersEngine
from simpo.config import TokenPolicy
from tests.serving.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.quick

_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_SOUND: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(1e-9, 1),
    "n": st.integers(1, 3),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.text(min_size=1, max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=4),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.integers(0, 300).map(str), st.floats(-100, 100), max_size=3),
    "max_tokens": st.integers(0, 4),
    "stream": st.booleans(),
    "stream_options": st.just({"include_usage": True}),
    "logprobs": st.booleans() | st.integers(0, 5),
    "top_logprobs": st.integers(0, 20),
    "echo": st.booleans(),
    "response_format": st.just({"type": "json_object"}),
    "user": st.just("ann"),
}
_TEXT = st.text(max_size=12)
_MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": _TEXT})
_PROMPT = _TEXT | st.lists(_TEXT, max_size=3) | st.lists(st.integers(-1, 300), max_size=4)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A path and a body that is mostly sound."""
    chat = draw(st.booleans())
    named = draw(st.lists(st.sampled_from(sorted(_SOUND)), max_size=5, unique=True))
    body: dict[str, Any] = {"model": "winner", "max_tokens": 2, **{name: draw(_SOUND[name]) for name in named}}
    body |= {"messages": draw(st.lists(_MESSAGE, max_size=3))} if chat else {"prompt": draw(_PROMPT)}
    if draw(st.integers(0, 3)) == 0:
        body[draw(st.sampled_from([*sorted(body), "what"]))] = draw(_JUNK)
    return ("/v1/chat/completions" if chat else "/v1/completions"), body


class Wire:
    """The data plane over a tiny model, made once for all examples."""

    def __init__(self) -> None:
        self.engine = TransformersEngine(tiny_model(), tiny_tokenizer(), TokenPolicy())
        self.app = create_data_plane(OneModel(self.engine, name="winner", revision=1, created=1))

    def post(self, path: str, content: bytes) -> httpx.Response:
        async def post() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.post(path, content=content)

        return asyncio.run(post())


@pytest.fixture(scope="module")
def wire() -> Any:
    wire = Wire()
    yield wire
    wire.engine.close()


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies())
@example(("/v1/completions", {"model": "winner", "prompt": "x" * 200}))
@example(("/v1/completions", {"model": "winner", "prompt": "x" * 96, "max_tokens": 0, "echo": True}))
@example(("/v1/chat/completions", {"model": "winner", "messages": [{"role": "user", "content": "</s>"}]}))
def test_no_body_is_answered_with_500(wire: Wire, asked: tuple[str, dict[str, Any]]) -> None:
    path, body = asked
    answer = wire.post(path, json.dumps(body).encode())
    if answer.status_code == 200:
        if body.get("stream"):
            assert answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text
        else:
            assert answer.json()["choices"]
        return
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"[" * 100_000, b'{"model": ' * 5000, b'{"n": 1e400}', b'{"a": "\\ud800"}']
)
def test_no_bytes_are_answered_with_500(wire: Wire, content: bytes) -> None:
    answer = wire.post("/v1/chat/completions", content)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
