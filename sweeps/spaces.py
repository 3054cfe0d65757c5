"""The axes of a search space as a person writes them, their legality, and the default space of every method.

Light: pydantic and `simpo.methods` only. `sweeps.study` turns these axes into Optuna's distributions.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, model_validator

from simpo.errors import ConfigError
from simpo.methods import METHODS, hyperparameters, method_from_dict

Scalar = bool | int | float | str

# The paper's learning rates are for 7B models. Models made here have under 2M weights: on the practice task the best
# rates lie near 1e-4, and 3e-3 collapses to empty answers.
SMALL_MODEL_LEARNING_RATE: Mapping[str, Any] = {"type": "log_float", "low": 2e-5, "high": 3e-3}
LORA_RATE = 10
"""How much higher the learning rates of adapters are than those of all weights."""


class _Axis(BaseModel, ABC):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def corners(self) -> tuple[Scalar, ...]:
        """The values whose legality decides that of the whole axis."""


class FloatRange(_Axis):
    """Uniform between low and high, both ends included."""

    type: Literal["float"]
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> "FloatRange":
        _check_order(self.low, self.high)
        return self

    def corners(self) -> tuple[Scalar, ...]:
        return (self.low, self.high)


class LogFloatRange(_Axis):
    """Uniform in the logarithm between low and high; low must be positive."""

    type: Literal["log_float"]
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> "LogFloatRange":
        if self.low <= 0:
            raise ConfigError(f"must be greater than 0 on a logarithmic axis, not {self.low:g}", "low")
        _check_order(self.low, self.high)
        return self

    def corners(self) -> tuple[Scalar, ...]:
        return (self.low, self.high)


class IntRange(_Axis):
    """Whole numbers from low to high, both ends included."""

    type: Literal["int"]
    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> "IntRange":
        _check_order(self.low, self.high)
        return self

    def corners(self) -> tuple[Scalar, ...]:
        return (self.low, self.high)


class Choice(_Axis):
    """One of a list of values."""

    type: Literal["categorical"]
    choices: tuple[Scalar, ...]

    @model_validator(mode="after")
    def _some(self) -> "Choice":
        if not self.choices:
            raise ConfigError("must hold at least one value", "choices")
        if len(set(map(repr, self.choices))) != len(self.choices):
            raise ConfigError("holds a value twice: remove one", "choices")
        return self

    def corners(self) -> tuple[Scalar, ...]:
        return self.choices


Range = FloatRange | LogFloatRange | IntRange | Choice
AXIS_TYPES = ("float", "log_float", "int", "categorical")


def _axis_kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("type", "missing"))
    return str(getattr(value, "type", "constant"))


Axis = Annotated[
    Annotated[FloatRange, Tag("float")]
    | Annotated[LogFloatRange, Tag("log_float")]
    | Annotated[IntRange, Tag("int")]
    | Annotated[Choice, Tag("categorical")]
    | Annotated[Scalar, Tag("constant")],
    Discriminator(
        _axis_kind,
        custom_error_type="axis_type",
        custom_error_message=f"type must be one of {', '.join(AXIS_TYPES)}; a plain value holds the axis constant",
    ),
]
"""One axis: a range, a choice, or a plain value that stays constant."""


def default_space(method: str, *, small_model: bool, adapters: bool = False) -> dict[str, Any]:
    """A method's default axes in spec form. `small_model`: the base model is one that is made here.

    `adapters`: LoRA is trained, whose best learning rates are about ten times those of all weights (Schulman et al.
    2025, "LoRA Without Regret").
    """
    space = {key: dict(axis) for key, axis in METHODS[method].space.items()}
    if small_model:
        space["learning_rate"] = dict(SMALL_MODEL_LEARNING_RATE)
    if adapters:
        for bound in ("low", "high"):
            space["learning_rate"][bound] = float(f"{LORA_RATE * space['learning_rate'][bound]:.6g}")
    return space


def check_space(method: str, space: Mapping[str, Range | Scalar]) -> None:
    """Refuse what the method could not train. Raises ConfigError with the field `<key>` or `<key>.<bound>`."""
    known = ("learning_rate", *(key for key in hyperparameters(METHODS[method]) if key != "gamma"))
    if "gamma" in space:
        both = " (gamma and gamma_beta_ratio were both given)" if "gamma_beta_ratio" in space else ""
        raise ConfigError(
            f"is not searched: while beta varies, a range of gamma has no equivalent in gamma / beta{both}; "
            "use gamma_beta_ratio",
            "gamma",
        )
    for key, axis in space.items():
        if key not in known:
            raise ConfigError(f"{method} has no axis {key!r}: use one of {', '.join(known)}", key)
        for bound, value in _named_corners(axis):
            _check_value(method, key, value, f"{key}.{bound}" if bound else key)
    for point in _corner_points(space):
        try:
            method_from_dict({"name": method, **point})
        except ConfigError as error:
            raise ConfigError(f"this combination is refused: {error}", error.field) from error


def _check_order(low: float, high: float) -> None:
    for bound, value in (("low", low), ("high", high)):
        if not math.isfinite(value):
            raise ConfigError("must be a finite number", bound)
    if low >= high:
        raise ConfigError(
            f"must be greater than low ({low:g}), not {high:g}; for a constant give the plain value", "high"
        )


def _named_corners(axis: Range | Scalar) -> Iterator[tuple[str, Scalar]]:
    if isinstance(axis, Choice):
        for index, value in enumerate(axis.choices):
            yield f"choices.{index}", value
    elif isinstance(axis, _Axis):
        yield "low", axis.low
        yield "high", axis.high
    else:
        yield "", axis


def _check_value(method: str, key: str, value: Scalar, field: str) -> None:
    if key == "learning_rate":
        if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
            raise ConfigError(f"must be a number greater than 0, not {value!r}", field)
        return
    try:
        method_from_dict({"name": method, key: value})
    except ConfigError as error:
        if error.field == key:
            raise ConfigError(error.message, field) from error
        # Refused only in company of another default: the check of whole points below decides.


def _corner_points(space: Mapping[str, Range | Scalar]) -> Iterator[dict[str, Scalar]]:
    """At most 256 combinations of corners: enough to meet every pair that excludes another."""
    keys = [key for key in space if key != "learning_rate"]
    corners = [[value for _, value in _named_corners(space[key])] for key in keys]
    for values in itertools.islice(itertools.product(*corners), 256):
        yield dict(zip(keys, values, strict=True))
