"""The wire format: each field of OpenAI's API is honoured or refused by name."""

import json
import pickle
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from service.serving.engines.base import Turn
from service.serving.openai import DEFAULT_COMPLETION_TOKENS, MAX_CHOICES, ChatRequest, CompletionRequest
from service.serving.openai_strict import WireError

pytestmark = pytest.mark.quick

HELLO = [{"role": "user", "content": "hello"}]
HONOURED = {
    *("model", "temperature", "top_p", "seed", "stop", "stream", "stream_options", "max_tokens", "n", "logprobs"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "user"),
}
CHAT_HONOURED = HONOURED | {"messages", "max_completion_tokens", "top_logprobs", "response_format"}
COMPLETION_HONOURED = HONOURED | {"prompt", "echo", "best_of"}


SCHEMA = {"name": "verdict", "schema": {"type": "object", "properties": {"good": {"type": "boolean"}}}}


def schema(**fields: Any) -> dict[str, Any]:
    """A response_format that differs from a good one in these fields."""
    return {"response_format": {"type": "json_schema", "json_schema": SCHEMA | fields}}


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.parse(json.dumps({"model": "m", "messages": HELLO} | fields).encode())


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.parse(json.dumps({"model": "m", "prompt": "once"} | fields).encode())


def fields_of(params: Any) -> list[str]:
    """Every field that the official client knows."""
    return sorted(params.CompletionCreateParamsBase.__annotations__.keys() | {"stream"})


@pytest.mark.parametrize("field", [f for f in fields_of(chat_create_params) if f not in CHAT_HONOURED])
def test_chat_fields_that_are_not_honoured_are_refused_by_name(field: str) -> None:
    with pytest.raises(WireError, match=f"^{field} is not supported by this server; leave it out") as caught:
        chat(**{field: {"something": "asked"}})
    assert (caught.value.param, caught.value.code, caught.value.status) == (field, "unsupported_parameter", 400)
    chat(**{field: None})  # null is OpenAI's way of not asking


@pytest.mark.parametrize("field", [f for f in fields_of(completion_create_params) if f not in COMPLETION_HONOURED])
def test_completion_fields_that_are_not_honoured_are_refused_by_name(field: str) -> None:
    with pytest.raises(WireError, match=f"^{field} is not supported by this server; leave it out") as caught:
        completion(**{field: {"something": "asked"}})
    assert caught.value.param == field
    completion(**{field: None})


@pytest.mark.parametrize(
    "neutral",
    [
        {"n": 1},
        {"frequency_penalty": 0.0, "presence_penalty": 0},
        {"logprobs": False},
        {"tools": [], "tool_choice": "none"},
        {"store": False, "metadata": {}},
        {"reasoning_effort": "none", "verbosity": "medium", "function_call": "none", "functions": []},
    ],
)
def test_values_that_ask_for_nothing_are_taken(neutral: dict[str, Any]) -> None:
    assert chat(**neutral) == chat()


@pytest.mark.parametrize("more", [{}, {"strict": True, "description": "what you think"}, {"strict": None}])
def test_a_json_schema_is_taken_for_the_engine_to_judge(more: dict[str, Any]) -> None:
    request = chat(**schema(**more))
    sampling = request.sampling(1, 64, 64)
    assert sampling.json_schema == request.json_schema == json.dumps(SCHEMA["schema"])
    assert not sampling.json_object and chat(response_format={"type": "text"}).json_schema is None


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n": 0}, "n", "invalid_value"),
        ({"n": MAX_CHOICES + 1}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"logprobs": 0}, "logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "invalid_value"),
        ({"presence_penalty": -2.5}, "presence_penalty", "invalid_value"),
        ({"logit_bias": {"one": 1}}, "logit_bias.one", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
        ({"response_format": {"type": "json_object", "json_schema": SCHEMA}}, "response_format", "invalid_value"),
        (schema(schema=None), "response_format.json_schema.schema", "invalid_value"),
        (schema(name="a b"), "response_format.json_schema.name", "invalid_value"),
        (schema(strict="yes"), "response_format.json_schema.strict", "invalid_value"),
        (schema(schema={"title": "x" * 2**16}), "response_format.json_schema.schema", "invalid_value"),
        (schema(examples=[]), "response_format.json_schema.examples", "unknown_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema", "unknown_parameter"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
        ({"min_p": 0.1}, "min_p", "unknown_parameter"),
        ({"min_p": None}, "min_p", "unknown_parameter"),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"temperature": True}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_p": 1.01}, "top_p", "invalid_value"),
        ({"seed": 1.5}, "seed", "invalid_value"),
        ({"seed": 2**64}, "seed", "invalid_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": 3}, "stop", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"every": 2}}, "stream_options.every", "unknown_parameter"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens", "invalid_value"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hello"}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages[0].name", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood", "unknown_parameter"),
        (
            {"messages": [*HELLO, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[1].content[0].type",
            "invalid_value",
        ),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(WireError) as caught:
        chat(**fields)
    error = caught.value
    assert (error.param, error.code, error.status) == (param, code, 400)
    assert error.body() == {
        "error": {"message": str(error), "type": "invalid_request_error", "param": param, "code": code}
    }
    assert pickle.loads(pickle.dumps(error)).body() == error.body()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"a": NaN}', b'{"model": "\xff"}', b'{"m": "\\ud800"}'])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match="JSON") as caught:
        ChatRequest.parse(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_messages_become_turns() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    answered = {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": None}
    request = chat(
        messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}, answered]
    )
    assert [message.turn() for message in request.messages] == [
        Turn(role="system", content="be brief"),
        Turn(role="user", content="hello"),
        Turn(role="assistant", content="hi"),
    ]


@pytest.mark.parametrize("prompt", [[], [["a"]], [[]], [[1], []], 3, ["a", 1], ["a"] * (MAX_CHOICES + 1), [True]])
def test_prompts_that_are_no_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(WireError) as caught:
        completion(prompt=prompt)
    assert caught.value.param is not None and caught.value.param.startswith("prompt")


def test_sampling_takes_what_was_asked() -> None:
    sampling = chat(temperature=0, top_p=0.5, seed=-3, stop="END", max_completion_tokens=7).sampling(10, 100, 100)
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0, 0.5, -3)
    assert (sampling.stop, sampling.max_new_tokens) == (("END",), 7)
    assert chat(stop=["a", "b"]).sampling(1, 9, 9).stop == ("a", "b")
    assert chat().sampling(1, 9, 9).seed is None


@pytest.mark.parametrize(
    ("prompt_tokens", "limit", "gives"),
    [(10, 100, 90), (10, 20, 20), (99, 100, 1)],
)
def test_a_chat_without_a_limit_takes_the_room_there_is(prompt_tokens: int, limit: int, gives: int) -> None:
    assert chat().sampling(prompt_tokens, 100, limit).max_new_tokens == gives


def test_a_completion_without_a_limit_is_short_as_at_openai() -> None:
    assert completion().sampling(10, 100, 100).max_new_tokens == DEFAULT_COMPLETION_TOKENS


@pytest.mark.parametrize(
    ("request_", "prompt_tokens", "param"),
    [
        (chat(), 100, "messages"),
        (chat(), 101, "messages"),
        (chat(max_tokens=11), 90, "messages"),
        (completion(), 90, "prompt"),
    ],
)
def test_what_does_not_fit_the_context_is_refused(request_: Any, prompt_tokens: int, param: str) -> None:
    with pytest.raises(WireError, match="context is 100 tokens") as caught:
        request_.sampling(prompt_tokens, 100, 100)
    assert (caught.value.param, caught.value.code) == (param, "context_length_exceeded")


def test_more_than_the_server_generates_is_refused() -> None:
    with pytest.raises(WireError, match="at most 20 tokens") as caught:
        chat(max_completion_tokens=21).sampling(10, 100, 20)
    assert caught.value.param == "max_completion_tokens"
