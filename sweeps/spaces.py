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

    when: dict[str, Scalar | tuple[Scalar, ...]] | None = None
    """Only where other axes have these values, e.g. {loss_type: sigmoid}; elsewhere the method's default stands."""

    @abstractmethod
    def corners(self) -> tuple[Scalar, ...]:
        """The values whose legality decides that of the whole axis."""


class FloatRange(_Axis):
    """Uniform between low and high, both ends included."""

    type: Literal["float"]
    low: float
    high: float
    step: float | None = None
    """Only low, low + step, ... up to high. None: any value."""

    @model_validator(mode="after")
    def _ordered(self) -> "FloatRange":
        _check_order(self.low, self.high)
        if self.step is not None:
            _check_step(self.low, self.high, self.step)
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
    step: int | None = None
    """Only low, low + step, ... up to high. None: every whole number."""

    @model_validator(mode="after")
    def _ordered(self) -> "IntRange":
        _check_order(self.low, self.high)
        if self.step is not None:
            _check_step(self.low, self.high, self.step)
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
        _check_condition(key, axis, space)
        for bound, value in _named_corners(axis):
            _check_value(method, key, value, f"{key}.{bound}" if bound else key)
    for point in _corner_points(space):
        try:
            method_from_dict({"name": method, **point})
        except ConfigError as error:
            raise ConfigError(f"this combination is refused: {error}", error.field) from error


def holds(axis: Range | Scalar, params: Mapping[str, Any]) -> bool:
    """Whether an axis is there, beside the unconditional values `params`."""
    when = axis.when if isinstance(axis, _Axis) else None
    return all(params.get(key) in _wanted(value) for key, value in (when or {}).items())


def grid_values(axis: Range | Scalar, points: int | None) -> list[Scalar]:
    """An axis cut into values: its choices, its steps, or `points` even parts. A continuous one needs `points`."""
    if isinstance(axis, Choice):
        return list(axis.choices)
    if not isinstance(axis, _Axis):
        return [axis]
    if isinstance(axis, IntRange):
        return list(range(axis.low, axis.high + 1, axis.step or 1))
    if isinstance(axis, FloatRange) and axis.step is not None:
        return [axis.low + k * axis.step for k in range(round((axis.high - axis.low) / axis.step) + 1)]
    assert points is not None  # check_search
    shares = [k / (points - 1) for k in range(points)]
    if isinstance(axis, LogFloatRange):
        # The ends as they were written: a power of a logarithm may lie a hair outside.
        inner = [math.exp(math.log(axis.low) + share * math.log(axis.high / axis.low)) for share in shares]
        return [axis.low, *inner[1:-1], axis.high]
    return [axis.low + share * (axis.high - axis.low) for share in shares]


def ungridded(space: Mapping[str, Range | Scalar]) -> str | None:
    """The first axis that `grid_values` could not cut without `points`."""
    for key, axis in sorted(space.items()):
        if isinstance(axis, LogFloatRange) or (isinstance(axis, FloatRange) and axis.step is None):
            return key
    return None


def grid_points(space: Mapping[str, Range | Scalar], points: int | None) -> Iterator[dict[str, Scalar]]:
    """Every combination of the axes once, conditional ones only where they hold; constants are left out."""
    keys = sorted(key for key, axis in space.items() if isinstance(axis, _Axis))
    fixed = {key: axis for key, axis in space.items() if not isinstance(axis, _Axis)}
    seen: set[tuple[tuple[str, Scalar], ...]] = set()
    for values in itertools.product(*(grid_values(space[key], points) for key in keys)):
        params = dict(zip(keys, values, strict=True))
        there = {key: value for key, value in params.items() if holds(space[key], fixed | params)}
        point = tuple(there.items())
        if point not in seen:
            seen.add(point)
            yield there


def grid_size(space: Mapping[str, Range | Scalar], points: int | None) -> int:
    """The number of `grid_points`, counted up to GRID_LIMIT."""
    return sum(1 for _ in itertools.islice(grid_points(space, points), GRID_LIMIT))


GRID_LIMIT = 10_000
"""Most trials of a sweep, so most points of a grid that matter."""


def _wanted(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _check_condition(key: str, axis: Range | Scalar, space: Mapping[str, Range | Scalar]) -> None:
    when = axis.when if isinstance(axis, _Axis) else None
    if when is None:
        return
    if key == "learning_rate" or not when:
        raise ConfigError("every trial needs a learning rate" if when else "names no axis", f"{key}.when")
    for parent, value in when.items():
        other = space.get(parent)
        if isinstance(other, _Axis) and (not isinstance(other, Choice) or other.when is not None):
            raise ConfigError(f"{parent} must be a categorical axis without a when of its own", f"{key}.when")
        if parent == key or other is None:
            raise ConfigError(f"{parent!r} is no other axis of this space", f"{key}.when")
        known = other.choices if isinstance(other, Choice) else (other,)
        for wanted in _wanted(value):
            if wanted not in known:
                raise ConfigError(f"{parent} is never {wanted!r}: it has {', '.join(map(repr, known))}", f"{key}.when")


def _check_step(low: float, high: float, step: float) -> None:
    if not (math.isfinite(step) and step > 0):
        raise ConfigError(f"must be greater than 0, not {step:g}", "step")
    steps = (high - low) / step
    if round(steps) < 1 or abs(steps - round(steps)) > 1e-9 * max(1.0, steps):
        raise ConfigError(f"must lead from low ({low:g}) to high ({high:g}) in whole steps, not {step:g}", "step")


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
        point = dict(zip(keys, values, strict=True))
        yield {key: value for key, value in point.items() if holds(space[key], point)}
