"""OpenAI's requests: every field is honoured or refused by name.

A field that we do not honour may still be sent with the value that means "as if absent" (`store: false`, `tools:
null`), because then there is nothing to honour.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import pydantic_core
from pydantic import Field, field_validator, model_validator

from service.serving.engines.base import Sampling, Turn
from service.serving.openai_strict import Neutral, Wire, WireError, parse

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's own default of /v1/completions
MAX_SCHEMA_BYTES = 64 * 1024
MAX_CHOICES = 64
"""Answers of one request: prompts times `n`."""

_CHAT_NEUTRAL: Neutral = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_COMPLETION_NEUTRAL: Neutral = {
    "suffix": (),
}


class TextPart(Wire):
    """A part of a message's content; text is the only kind these models read."""

    type: Literal["text"]
    text: str


class ChatMessage(Wire):
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


class StreamOptions(Wire):
    """Options that need `stream: true`."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class JsonSchema(Wire):
    """A schema that answers are held to. With `strict: false` too: what is stricter than asked for is asked for."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None

    @field_validator("schema_")
    @classmethod
    def _is_bounded(cls, schema: dict[str, Any]) -> dict[str, Any]:
        if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
            raise pydantic_core.PydanticCustomError(
                "json_schema", f"is longer than {MAX_SCHEMA_BYTES // 1024} KiB; shorten it"
            )
        return schema


class ResponseFormat(Wire):
    """Plain text, one JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise pydantic_core.PydanticCustomError(
                "json_schema", "type json_schema needs a json_schema, and no other type has one"
            )
        return self


_StopText = Annotated[str, Field(min_length=1)]
_TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]


class _SamplingRequest(Wire):
    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: _StopText | Annotated[list[_StopText], Field(max_length=4)] = Field(default_factory=list)
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    logit_bias: Annotated[dict[_TokenId, _Bias], Field(max_length=1024)] = Field(default_factory=dict)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Who asks: the gateway keeps them to one of two versions where a roll-out is sticky. Models never see it."""

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise pydantic_core.PydanticCustomError("stream_options", "stream_options needs stream to be true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises WireError for a bias on a token that is none."""
        if beyond := [token for token in self.logit_bias if int(token) >= vocab_size]:
            raise WireError(
                f"logit_bias: {beyond[0]} is no token id; they are 0 to {vocab_size - 1}", "logit_bias", "invalid_value"
            )

    def each(self, sampling: Sampling) -> list[Sampling]:
        """The sampling of each of the `n` choices: with a seed, choice i is what seed + i gives alone."""
        if sampling.seed is None:
            return [sampling] * self.n
        return [replace(sampling, seed=_int64(sampling.seed + i)) for i in range(self.n)]

    def _sampling(self, max_new_tokens: int) -> Sampling:
        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
        )


class ChatRequest(_SamplingRequest):
    """Body of POST /v1/chat/completions. `max_tokens` is OpenAI's older name of `max_completion_tokens`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise pydantic_core.PydanticCustomError(
                "max_tokens", "max_tokens and max_completion_tokens are two names of one limit; send one of them"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise pydantic_core.PydanticCustomError("top_logprobs", "top_logprobs needs logprobs to be true")
        return self

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises WireError with the name of the field that cannot be honoured."""
        return parse(cls, body, _CHAT_NEUTRAL)

    def sampling(self, num_prompt_tokens: int, context_length: int, limit: int) -> Sampling:
        """Sampling for a prompt of this length; without a limit in the request, as much as fits. Raises WireError."""
        wanted = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        name = "max_completion_tokens" if self.max_tokens is None else "max_tokens"
        room = _room(wanted, name, "messages", num_prompt_tokens, context_length, limit)
        return replace(
            self._sampling(room),
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            json_object=self.response_format is not None and self.response_format.type == "json_object",
            json_schema=self.json_schema,
        )

    @property
    def json_schema(self) -> str | None:
        """The schema that answers are to be held to."""
        wanted = None if self.response_format is None else self.response_format.json_schema
        return None if wanted is None else json.dumps(wanted.schema_)


_Ids = Annotated[list[int], Field(min_length=1)]
_Prompts = Field(min_length=1, max_length=MAX_CHOICES)


class CompletionRequest(_SamplingRequest):
    """Body of POST /v1/completions: one prompt or several, as text or as token ids."""

    prompt: str | _Ids | Annotated[list[str], _Prompts] | Annotated[list[_Ids], _Prompts]
    max_tokens: int = Field(DEFAULT_COMPLETION_TOKENS, ge=0)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise pydantic_core.PydanticCustomError(
                "max_tokens", "max_tokens is 0, which leaves nothing to answer but with echo: send 1 or more"
            )
        if self.best_of not in (None, self.n):
            raise pydantic_core.PydanticCustomError(
                "best_of", "best_of other than n is not supported by this server; leave it out, and ask for n answers"
            )
        if len(self.prompts) * self.n > MAX_CHOICES:
            raise pydantic_core.PydanticCustomError(
                "n", f"prompts times n is more than the {MAX_CHOICES} answers of one request; send several requests"
            )
        return self

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """One by one."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        return [prompt] if isinstance(prompt[0], int) else prompt

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises WireError with the name of the field that cannot be honoured."""
        return parse(cls, body, _COMPLETION_NEUTRAL)

    def sampling(self, num_prompt_tokens: int, context_length: int, limit: int) -> Sampling:
        """Sampling for a prompt of this length. Raises WireError."""
        room = _room(self.max_tokens, "max_tokens", "prompt", num_prompt_tokens, context_length, limit)
        return replace(self._sampling(room), top_logprobs=self.logprobs, echo=self.echo)


def _room(
    wanted: int | None, name: str, prompt_field: str, num_prompt_tokens: int, context_length: int, limit: int
) -> int:
    """Tokens that may be generated: what was wanted, or all that fits."""
    left = context_length - num_prompt_tokens
    if left < (wanted != 0) or (wanted is not None and left < wanted <= limit):
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


def _int64(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63
