"""Schedulers whose trials go on from others' checkpoints: who of a generation goes on, from whose, with what.

Pure functions of spec and results: see `sweeps.search_spec.Pbt` and `Halving` for the rules.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeps.samplers import seed_of
from sweeps.search_spec import Halving, Pbt
from sweeps.spaces import FloatRange, IntRange, LogFloatRange, Scalar
from sweeps.spec import SweepSpec


@dataclass(frozen=True, kw_only=True)
class Heir:
    """A member of the next generation."""

    parent: int
    """Number of the trial whose checkpoint it starts from."""
    params: dict[str, Scalar]
    """The parent's, perturbed where the parent is another member."""


def heirs(
    spec: SweepSpec, generation: int, params: Mapping[int, Mapping[str, Any]], values: Mapping[int, float]
) -> list[Heir]:
    """The generation after `generation`: of pbt in order of members, of halving the best first; empty when nobody
    survived.

    params: by number, of all in the generation who compete. values: by number, of those that reached its end within the
    constraints; of equals the first is the better one.
    """
    ranked = sorted(values, key=lambda number: (-spec.objective.sign * values[number], number))
    if not ranked:
        return []
    if isinstance(spec.scheduler, Halving):
        places = _places(spec.scheduler, len(params))
        return [Heir(parent=number, params=dict(params[number])) for number in ranked[:places]]
    pbt = spec.scheduler
    assert isinstance(pbt, Pbt)
    count = max(1, int(pbt.replace * pbt.population))
    best, survivors = ranked[:count], set(ranked[: max(count, len(ranked) - count)])
    following = []
    for number in sorted(params):
        if number in survivors:
            following.append(Heir(parent=number, params=dict(params[number])))
            continue
        rng = np.random.default_rng(seed_of(spec, number, generation + 1))
        parent = best[int(rng.integers(len(best)))]
        following.append(Heir(parent=parent, params=_perturbed(spec, pbt, params[parent], rng)))
    return following


def bar(spec: SweepSpec, members: int, values: Collection[float]) -> float | None:
    """What a later member of a generation must beat to go on, where `values` are those of earlier ones that reached its
    end; of equals the earlier one is the better. None: nobody knows yet. Only halving has one."""
    if not isinstance(spec.scheduler, Halving):
        return None
    places, sign = _places(spec.scheduler, members), spec.objective.sign
    best = sorted((sign * value for value in values), reverse=True)
    return None if len(best) < places else sign * best[places - 1]


def in_generations(spec: SweepSpec) -> bool:
    """Whether trials of this search go on from others' checkpoints."""
    return isinstance(spec.scheduler, Halving | Pbt)


def _places(halving: Halving, competing: int) -> int:
    return max(1, int(competing / halving.reduction_factor))


def _perturbed(spec: SweepSpec, pbt: Pbt, params: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Scalar]:
    changed = dict(params)
    for key in pbt.axes:
        axis = spec.space.get(key)
        if key not in params or not isinstance(axis, FloatRange | LogFloatRange | IntRange):
            continue
        value = float(params[key]) * pbt.factors[int(rng.integers(len(pbt.factors)))]
        value = min(float(axis.high), max(float(axis.low), value))
        if isinstance(axis, FloatRange) and axis.step is not None:
            value = axis.low + axis.step * round((value - axis.low) / axis.step)
        if isinstance(axis, IntRange):
            step = axis.step or 1
            changed[key] = axis.low + step * round((value - axis.low) / step)
        else:
            changed[key] = value
    return changed
