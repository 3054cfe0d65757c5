"""A spec's faults in the words of the person who wrote it: dotted field, message with the remedy. Light."""

import dataclasses
from typing import Any

from pydantic import ValidationError

from simpo.config import TokenPolicy
from simpo.errors import ConfigError
from sweeps.search_spec import TAGS as SEARCH_TAGS
from sweeps.spaces import AXIS_TYPES


class SpecError(ConfigError):
    """A spec that cannot be honoured: every fault as (dotted field, message)."""

    def __init__(self, faults: tuple[tuple[str, str], ...], source: str | None = None) -> None:
        super().__init__(faults[0][1], faults[0][0] or None)
        self.args = (faults, source)  # what pickle passes back to __init__
        self.faults = faults
        self.source = source

    def __str__(self) -> str:
        text = "; ".join(f"{field}: {message}" if field else message for field, message in self.faults)
        return f"{self.source}: {text}" if self.source else text


def faults_of(error: ValidationError) -> tuple[tuple[str, str], ...]:
    """Pydantic's errors as (dotted field, message with the remedy), without its own inner words."""
    return tuple(_fault(dict(item)) for item in error.errors(include_url=False))


# Names of union members, which pydantic puts into an error's place though no one wrote them.
_TAGS = {*AXIS_TYPES, *SEARCH_TAGS, "constant", "named", "openai", "reward_model"}


def _fault(item: dict[str, Any]) -> tuple[str, str]:
    place = [str(part) for index, part in enumerate(item["loc"]) if not (index and part in _TAGS)]
    context = item.get("ctx", {})
    message = str(item["msg"])
    cause = context.get("error")
    if isinstance(cause, ConfigError):
        # A validator of a whole class names the field itself.
        place += [cause.field.removeprefix(f"{place[-1]}." if place else "")] if cause.field else []
        message = cause.message
    elif item["type"] == "unknown_key":
        place.append(str(context["key"]))
    elif item["type"] == "unexpected_keyword_argument":  # the one plain dataclass in a spec
        message = f"unknown key: use one of {', '.join(field.name for field in dataclasses.fields(TokenPolicy))}"
    elif item["type"] == "missing":
        message = "is required"
    elif item["type"] not in ("axis_type", "extra_forbidden"):
        given = item.get("input")
        message = message.replace("Input should be", "must be").replace(
            "a valid dictionary or instance of", "a mapping like"
        )
        message += f", not {given!r}" if isinstance(given, str | int | float) else ""
    return ".".join(part for part in place if part), message
