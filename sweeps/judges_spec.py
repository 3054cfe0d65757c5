"""What a spec says of its judge. A key is named, never given. Light.

    judge: practice                                 the practice task's own, programmatic
    judge: {type: reward_model, model: org/model}   a local model that scores answers
    judge: {type: openai, url: ..., model: ..., max_requests: ...}
                                                    any endpoint that speaks the OpenAI protocol, our own included

The first two score answers, at rungs and in the finals. An endpoint is asked in the finals alone.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from simpo.errors import ConfigError
from sweeps.strict import Strict

MIN_REQUESTS = 400
"""Least budget of an endpoint: both stages hide controls (40 and 60 pairs, two requests each), and the rest must say
something about the answers."""

_INSIDE = (".local", ".internal", ".svc", ".localhost", ".home.arpa")
_KEY_NAME = re.compile(r"(?!SIMPO_|RAY_)[A-Z][A-Z0-9_]{0,59}_API_KEY")  # not the keys of the service itself


class RewardModel(Strict):
    """A sequence-classification model with one output, run where the trials run; safetensors only, no remote code."""

    type: Literal["reward_model"]
    model: Annotated[str, Field(min_length=1)]
    """Directory or hub id."""
    max_length: Annotated[int, Field(ge=8)] = 4096
    """Tokens of prompt and answer together; a longer pair has no score."""
    dtype: Literal["float32", "bfloat16"] = "float32"


class Endpoint(Strict):
    """An OpenAI-compatible endpoint, asked for the better of two answers in both orders."""

    type: Literal["openai"]
    url: str
    """Base address, up to and with /v1, without credentials."""
    model: Annotated[str, Field(min_length=1)]
    """The name by which the endpoint knows its model."""
    api_key_env: str | None = None
    """NAME of the environment variable with the key, read where the driver starts; it ends in _API_KEY."""
    mode: Literal["text", "logprobs"] = "text"
    """text: reasons, then [[A]], [[B]] or [[C]]. logprobs: the probabilities of two labels as the first token."""
    max_requests: Annotated[int, Field(ge=1)]
    """Requests that may be sent over all attempts of the sweep, retries included. Never exceeded."""
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """Money that may be spent, in the currency of the prices; needs both prices."""
    price_in: Annotated[float, Field(ge=0)] | None = None
    """Price of a million prompt tokens."""
    price_out: Annotated[float, Field(ge=0)] | None = None
    """Price of a million generated tokens."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.0
    """None: not sent, for models that refuse it."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Most tokens of a written judgement; a longer one has no verdict."""
    token_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Under which name the endpoint takes max_tokens."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests at once."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Rate limit, evenly spaced."""
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """For one request, from connecting to the last byte."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 5
    """Tries of one request after 429, 5xx, time-outs and broken answers."""

    @field_validator("url")
    @classmethod
    def _reachable(cls, url: str) -> str:
        return checked_url(url)

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        if name is not None and not _KEY_NAME.fullmatch(name):
            # Not echoed: a key that was pasted here must not come back in an error.
            raise ConfigError(
                "must be the name of an environment variable that ends in _API_KEY, e.g. OPENAI_API_KEY, not the key"
            )
        return name

    @model_validator(mode="after")
    def _fits(self) -> "Endpoint":
        if self.max_cost is not None and (self.price_in is None or self.price_out is None):
            raise ConfigError("needs price_in and price_out, per million tokens", "max_cost")
        if self.api_key_env is not None and urlsplit(self.url).scheme != "https" and not _inside(self.url):
            raise ConfigError("must be https where a key is sent to it", "url")
        return self


class JudgeEndpoint(Endpoint):
    """The endpoint that judges the finals."""

    second: Annotated[RewardModel | Endpoint, Field(discriminator="type")] | None = None
    """Another judge, asked for a part of the same pairs: how far the two agree is reported."""
    second_pairs: Annotated[int, Field(ge=10, le=1000)] = 50
    """How many pairs of the report the second judge is asked for."""

    @model_validator(mode="after")
    def _enough(self) -> "JudgeEndpoint":
        if self.max_requests < MIN_REQUESTS:
            raise ConfigError(
                f"must be at least {MIN_REQUESTS}: hidden controls and both orders of each pair are part of it",
                "max_requests",
            )
        second = self.second
        if isinstance(second, Endpoint) and (second.url, second.model) == (self.url, self.model):
            raise ConfigError("must be another judge: a judge agrees with itself", "second.model")
        return self


def _kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return "named" if isinstance(value, str) else kind if kind in ("openai", "reward_model") else None


JudgeSpec = Annotated[
    Annotated[Literal["practice"], Tag("named")]
    | Annotated[JudgeEndpoint, Tag("openai")]
    | Annotated[RewardModel, Tag("reward_model")],
    Discriminator(
        _kind,
        custom_error_type="judge",
        custom_error_message="must be practice, null, or a mapping with type: openai or type: reward_model",
    ),
]
"""A judge, by name or described."""


def endpoints_of(judge: Any) -> Iterator[Endpoint]:
    """The endpoints of a validated judge: itself, and its second."""
    for each in (judge, getattr(judge, "second", None)):
        if isinstance(each, Endpoint):
            yield each


def checked_url(url: str) -> str:
    """A base URL without a trailing slash. Raises ConfigError: not http(s), credentials, query, a forbidden address."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"is no URL ({error})") from error
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or re.search(r"[\s\\]", url):
        raise ConfigError("must look like https://host/v1")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("must not hold credentials: name the key's variable in api_key_env")
    if parts.query or parts.fragment:
        raise ConfigError("must not have a query or fragment: give the base address, up to and with /v1")
    address = _literal(host)
    if address is not None and (address.is_link_local or address.is_multicast or address.is_unspecified):
        raise ConfigError("names an address that is no server's: link-local, multicast or unspecified")
    return url.rstrip("/")


def _inside(url: str) -> bool:
    """Whether the host is, by its name alone, on this machine or network."""
    host = urlsplit(url).hostname or ""
    address = _literal(host)
    if address is not None:
        return address.is_private
    return host == "localhost" or "." not in host or host.endswith(_INSIDE) or ".svc." in host


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
