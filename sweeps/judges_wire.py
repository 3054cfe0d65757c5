"""The OpenAI protocol as a judge needs it: one request, and an answer that is believed only in the expected shape."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from simpo.evaluation.templates import Template, read_logprobs, read_text
from simpo.evaluation.verdicts import Comparison, Verdict
from sweeps.judges_spec import Endpoint

MAX_BYTES = 1 << 20
"""An answer that is longer is no answer."""
TOP = 20
"""Most alternatives of a token that are asked for and read; OpenAI's limit."""


class Malformed(ValueError):
    """An answer with status 200 that is not a chat completion of the expected shape."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is kept of a chat completion."""

    output: dict[str, Any]
    """text and finish, or top: what `verdict_of` reads. Stored, so that a verdict can be read again."""
    tokens: tuple[int, int] | None
    """(prompt, generated) tokens as the endpoint counts them; None if it does not say."""


def request_body(settings: Endpoint, template: Template, comparison: Comparison) -> dict[str, Any]:
    """The JSON of one request."""
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": template.messages(comparison),
        settings.token_parameter: generated_tokens(settings),
        "n": 1,
        "stream": False,
    }
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if settings.mode == "logprobs":
        body |= {"logprobs": True, "top_logprobs": TOP}
    return body


def generated_tokens(settings: Endpoint) -> int:
    """Most tokens that one answer can have."""
    return 1 if settings.mode == "logprobs" else settings.max_tokens


def most_expensive(settings: Endpoint, body: dict[str, Any]) -> float:
    """What a request can cost at most: a token is at least one byte of text, and a template adds a few per message."""
    if settings.price_in is None or settings.price_out is None:
        return 0.0
    prompt = sum(len(message["content"].encode()) + 16 for message in body["messages"]) + 16
    return price(settings, prompt, generated_tokens(settings))


def price(settings: Endpoint, prompt: int, generated: int) -> float:
    """The cost of so many tokens; 0 without prices."""
    return (prompt * (settings.price_in or 0.0) + generated * (settings.price_out or 0.0)) / 1e6


def read_answer(content: bytes, *, mode: str) -> Answer:
    """A chat completion, strictly. Raises Malformed."""
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        message = choice["message"]
        output: dict[str, Any] = {"finish": _text(choice.get("finish_reason") or "")}
        if message.get("refusal"):
            output["finish"] = "content_filter"
        if mode == "logprobs" and output["finish"] != "content_filter":
            alternatives = choice["logprobs"]["content"][0]["top_logprobs"]
            output["top"] = [[_text(each["token"]), _number(each["logprob"])] for each in alternatives[:TOP]]
        else:
            output["text"] = _text(message.get("content") or "")
        return Answer(output=output, tokens=_tokens(body.get("usage")))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise Malformed(type(error).__name__) from error


def verdict_of(output: dict[str, Any], template: Template) -> Verdict:
    """What a kept answer says of the comparison it was given for."""
    if output["finish"] == "content_filter":
        return Verdict(reason="refused")
    if "top" in output:
        preference, reason = read_logprobs([(token, p) for token, p in output["top"]], template.labels)
    elif output["finish"] == "length":
        preference, reason = None, "unparsable"  # cut off: what looks like a verdict was not meant as one
    else:
        preference, reason = read_text(output["text"])
    return Verdict(preference=preference, reason=reason)


def without(secret: str, output: Any) -> Any:
    """The output, should an endpoint have sent the key back: it must not get into the record."""
    if isinstance(output, dict):
        return {key: without(secret, value) for key, value in output.items()}
    if isinstance(output, list):
        return [without(secret, value) for value in output]
    return output.replace(secret, "(key)") if isinstance(output, str) and secret else output


def retry_after(header: str | None, *, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date (RFC 9110, 10.2.3); None if it is neither."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - (now or datetime.now(UTC))).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    return float(value)


def _tokens(usage: Any) -> tuple[int, int] | None:
    counts = [usage.get(key) if isinstance(usage, dict) else None for key in ("prompt_tokens", "completion_tokens")]
    good = [count for count in counts if type(count) is int and 0 <= count < 1 << 40]
    return (good[0], good[1]) if len(good) == 2 else None
