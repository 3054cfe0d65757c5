"""Constraints on probes, as a person writes them: "<=0.1", ">=0.5". Light."""

import operator
import re
from collections.abc import Callable, Mapping

from simpo.errors import ConfigError

PROBES = ("length_ratio", "repetition", "eos_rate", "empty_rate", "mean_tokens")
"""The probes of `simpo.evaluation.probes` that a constraint may name."""

_COMPARE: dict[str, Callable[[float, float], float]] = {
    # Optuna's sign: at most 0 is feasible.
    "<=": operator.sub,
    ">=": lambda value, limit: limit - value,
}


def parse_constraint(probe: str, text: str) -> Callable[[float], float]:
    """A function of the probe's value that is <= 0 exactly when the constraint holds. Raises ConfigError."""
    if probe not in PROBES:
        raise ConfigError(f"unknown probe: use one of {', '.join(PROBES)}", probe)
    match = re.fullmatch(r"\s*(<=|>=)\s*([0-9.eE+-]+)\s*", text)
    try:
        limit = float(match[2]) if match else float("nan")
    except ValueError:
        limit = float("nan")
    if match is None or limit != limit:
        raise ConfigError(f'must look like "<=0.1" or ">=0.5", not {text!r}', probe)
    compare = _COMPARE[match[1]]
    return lambda value: compare(value, limit)


def violations(constraints: Mapping[str, str], probes: Mapping[str, float]) -> dict[str, float]:
    """Every constraint's value by probe, at most 0 when it holds. A probe that was not measured counts as violated."""
    return {
        # 1.0: an unmeasured probe must not look feasible, and Optuna refuses NaN.
        probe: parse_constraint(probe, text)(probes[probe]) if probes.get(probe) is not None else 1.0
        for probe, text in constraints.items()
    }
