"""OpenAI's wire format: requests read strictly, answers and errors in OpenAI's shape.

Every field of a request is honoured or refused by name. A field that we do not honour may still be sent with the value
that means "as if absent" (`n: 1`, `tools: null`), because then there is nothing to honour.
"""

import json
import time
import uuid
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.serving.engines.base import FinishReason, Sampling, Turn

MAX_BODY_BYTES = 4 * 2**20
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's own default of /v1/completions

# Fields of OpenAI's API that we do not honour -> the values besides null that change nothing.
_CHAT_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": (),
    "functions": (),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (),
    "user": (),
    "verbosity": (),
    "web_search_options": (),
}
_COMPLETION_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (),
    "n": (1,),
    "presence_penalty": (0,),
    "suffix": (),
    "user": (),
}


_RequestT = TypeVar("_RequestT", bound="_SamplingRequest")


class WireError(Exception):
    """A request that cannot be answered, in OpenAI's terms.

    `message`: one sentence with the remedy. `param`: the field, or None. `code`: OpenAI's word for the case.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message, param, code, status)
        self.message = message
        self.param = param
        self.code = code
        self.status = status

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(_Wire):
    """A part of a message's content; text is the only kind these models read."""

    type: Literal["text"]
    text: str


class ChatMessage(_Wire):
    """One message. `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    # Only as null: clients send an earlier answer back as they received it.
    name: None = None
    refusal: None = None
    audio: None = None
    annotations: None = None
    function_call: None = None
    tool_calls: None = None

    def turn(self) -> Turn:
        """As engines know it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(_Wire):
    """Options that need `stream: true`."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


_StopText = Annotated[str, Field(min_length=1)]


class _SamplingRequest(_Wire):
    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: _StopText | Annotated[list[_StopText], Field(max_length=4)] = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise pydantic_core.PydanticCustomError("stream_options", "stream_options needs stream to be true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _sampling(self, max_new_tokens: int) -> Sampling:
        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
        )


class ChatRequest(_SamplingRequest):
    """Body of POST /v1/chat/completions. `max_tokens` is OpenAI's older name of `max_completion_tokens`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise pydantic_core.PydanticCustomError(
                "max_tokens", "max_tokens and max_completion_tokens are two names of one limit; send one of them"
            )
        return self

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises WireError with the name of the field that cannot be honoured."""
        return _parse(cls, body, _CHAT_NEUTRAL)

    def sampling(self, num_prompt_tokens: int, context_length: int, limit: int) -> Sampling:
        """Sampling for a prompt of this length; without a limit in the request, as much as fits. Raises WireError."""
        wanted = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        name = "max_completion_tokens" if self.max_tokens is None else "max_tokens"
        return self._sampling(_room(wanted, name, "messages", num_prompt_tokens, context_length, limit))


class CompletionRequest(_SamplingRequest):
    """Body of POST /v1/completions: one prompt, as text or as token ids."""

    prompt: str | Annotated[list[int], Field(min_length=1)] | Annotated[list[str], Field(min_length=1, max_length=1)]
    max_tokens: int = Field(DEFAULT_COMPLETION_TOKENS, ge=1)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises WireError with the name of the field that cannot be honoured."""
        return _parse(cls, body, _COMPLETION_NEUTRAL)

    def sampling(self, num_prompt_tokens: int, context_length: int, limit: int) -> Sampling:
        """Sampling for a prompt of this length. Raises WireError."""
        room = _room(self.max_tokens, "max_tokens", "prompt", num_prompt_tokens, context_length, limit)
        return self._sampling(room)


class Answer:
    """Builds the JSON of one answer, whole or in chunks; id and time are the same throughout."""

    def __init__(self, model: str, *, chat: bool, fingerprint: str, include_usage: bool = False) -> None:
        self.chat = chat
        self.include_usage = include_usage
        self._head: dict[str, Any] = {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, text: str, finish_reason: FinishReason, prompt_tokens: int, tokens: int) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        content: dict[str, Any] = {"text": text}
        if self.chat:
            content = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice], "usage": _usage(prompt_tokens, tokens)}

    def opening(self) -> str:
        """First event of a chat stream: the role."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, None)

    def part(self, text: str) -> str:
        """An event with new text."""
        return self._chunk({"delta": {"content": text}} if self.chat else {"text": text}, None)

    def closing(self, finish_reason: FinishReason) -> str:
        """The event that ends the choice."""
        return self._chunk({"delta": {}} if self.chat else {"text": ""}, finish_reason)

    def usage(self, prompt_tokens: int, tokens: int) -> str:
        """The event that stream_options.include_usage asks for."""
        return sse({**self._head, "object": self._kind, "choices": [], "usage": _usage(prompt_tokens, tokens)})

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, content: dict[str, Any], finish_reason: FinishReason | None) -> str:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if self.include_usage else {}
        return sse({**self._head, "object": self._kind, "choices": [choice], **usage})


SSE_DONE = "data: [DONE]\n\n"


def sse(body: dict[str, Any]) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def model_list(name: str, created: int) -> dict[str, Any]:
    """Body of GET /v1/models."""
    return {"object": "list", "data": [model_entry(name, created)]}


def model_entry(name: str, created: int) -> dict[str, Any]:
    """Body of GET /v1/models/{name}."""
    return {"id": name, "object": "model", "created": created, "owned_by": "simpo"}


def unknown_model(wanted: str, served: str) -> WireError:
    """404 in OpenAI's words."""
    return WireError(f"model {wanted[:80]!r} is not served here; use {served!r}", "model", "model_not_found", 404)


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _room(
    wanted: int | None, name: str, prompt_field: str, num_prompt_tokens: int, context_length: int, limit: int
) -> int:
    """Tokens that may be generated: what was wanted, or all that fits."""
    left = context_length - num_prompt_tokens
    if left < 1 or (wanted is not None and left < wanted <= limit):
        asks = f" and {name} asks for {wanted} more" if wanted is not None else ""
        raise WireError(
            f"this model's context is {context_length} tokens, but the {prompt_field} take {num_prompt_tokens}{asks}; "
            "shorten one of them",
            prompt_field,
            "context_length_exceeded",
        )
    if wanted is None:
        return min(limit, left)
    if wanted > limit:
        raise WireError(f"{name} is {wanted}, but this server generates at most {limit} tokens", name, "invalid_value")
    return wanted


def _parse(model: type[_RequestT], body: bytes, neutral: dict[str, tuple[Any, ...]]) -> _RequestT:
    try:
        fields = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise WireError(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise WireError("the body must be a JSON object", code="invalid_json")
    asked: dict[str, Any] = {}
    for name, value in fields.items():
        if name in neutral:
            if value is not None and not any(_same(value, n) for n in neutral[name]):
                raise _unsupported(name, neutral[name])
        elif value is not None or name not in model.model_fields:
            asked[name] = value
    try:
        return model.model_validate(asked)
    except ValidationError as error:
        raise _fault(error) from error


def _same(value: Any, neutral: Any) -> bool:
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


def _unsupported(name: str, neutral: tuple[Any, ...]) -> WireError:
    remedy = "leave it out" + "".join(f" or send {json.dumps(value)}" for value in neutral)
    return WireError(f"{name} is not supported by this server; {remedy}", name, "unsupported_parameter")


def _fault(error: ValidationError) -> WireError:
    """The most specific of pydantic's faults (a union reports one per branch), by the name of its field."""
    paths = [(_path(fault["loc"]), fault) for fault in error.errors(include_url=False)]
    param, fault = max(paths, key=lambda pair: len(pair[1]["loc"]))
    if fault["type"] == "extra_forbidden":
        return WireError(f"{param} is not a field this server knows; leave it out", param, "unknown_parameter")
    if fault["type"] == "missing":
        return WireError(f"{param} is missing", param, "missing_required_parameter")
    message = fault["msg"]
    if not param:  # raised by one of our own validators, whose error type is the field
        return WireError(message, fault["type"], "invalid_value")
    return WireError(f"{param}: {message[:1].lower()}{message[1:]}", param, "invalid_value")


def _path(loc: tuple[int | str, ...]) -> str:
    """('messages', 0, 'content', 'list[TextPart]', 1, 'type') -> messages[0].content[1].type: no union branches."""
    path = ""
    for position, part in enumerate(loc):
        if isinstance(part, int):
            path += f"[{part}]"
        elif position == 0:
            path = part
        elif part.isidentifier() and part not in ("str", "int"):
            path += f".{part}"
    return path
