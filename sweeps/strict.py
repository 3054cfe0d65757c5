"""The base of everything that a spec is made of: frozen, no unknown key, no infinite number. Light."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """A part of a spec. An unknown key is refused by name, with the names that are known."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_key(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key: use one of {known}",
                        {"key": str(key), "known": ", ".join(cls.model_fields)},
                    )
        return values


def shorthand(key: str) -> BeforeValidator:
    """A plain string stands for {key: string}."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)
