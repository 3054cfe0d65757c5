"""Checks that configuration classes share: each raises ConfigError with the field's name and what it may be."""

import math

from simpo.errors import ConfigError


def number(config: object, field: str) -> float:
    """The field as a finite float."""
    value = getattr(config, field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"must be a finite number, not {value!r}", field)
    return float(value)


def positive(config: object, *fields: str) -> None:
    """Each field is greater than 0."""
    for field in fields:
        if number(config, field) <= 0:
            raise ConfigError(f"must be greater than 0, not {getattr(config, field)!r}", field)


def not_negative(config: object, *fields: str) -> None:
    """Each field is 0 or greater."""
    for field in fields:
        if number(config, field) < 0:
            raise ConfigError(f"must not be negative, not {getattr(config, field)!r}", field)


def in_range(config: object, field: str, low: float, high: float) -> None:
    """The field lies in [low, high]."""
    if not low <= number(config, field) <= high:
        raise ConfigError(f"must lie in [{low:g}, {high:g}], not {getattr(config, field)!r}", field)


def at_least(config: object, field: str, low: int) -> None:
    """The field is a whole number of at least `low`."""
    value = getattr(config, field)
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"must be a whole number of at least {low}, not {value!r}", field)


def one_of(config: object, field: str, choices: tuple[str, ...]) -> None:
    """The field is one of the choices."""
    value = getattr(config, field)
    if value not in choices:
        raise ConfigError(f"must be one of {', '.join(choices)}, not {value!r}", field)
