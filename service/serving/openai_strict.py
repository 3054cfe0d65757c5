"""Requests read strictly, as OpenAI's API does: what is wrong is named, and the error has OpenAI's shape."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, ValidationError

MAX_BODY_BYTES = 4 * 2**20

Neutral = Mapping[str, tuple[Any, ...]]
"""Fields of OpenAI's API that we do not honour -> the values besides null that change nothing."""

RequestT = TypeVar("RequestT", bound=BaseModel)


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


class Wire(BaseModel):
    """A part of a request: unknown fields are refused, and no type is made into another."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def parse(model: type[RequestT], body: bytes, neutral: Neutral) -> RequestT:
    """A request out of its bytes. Raises WireError with the name of the field that cannot be honoured."""
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
