"""From a spec's sampler to Optuna's, made anew for each ask; grids and sequences, whose points are known beforehand."""

import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from simpo.errors import ConfigError
from sweeps.search_spec import CmaEs, Gp, Grid, Nsga2, Qmc, Tpe
from sweeps.sharp_tpe import sharpen
from sweeps.spaces import Choice, IntRange, LogFloatRange, Range, Scalar, grid_points
from sweeps.spec import SweepSpec

_NEEDS: Mapping[str, tuple[str, ...]] = {"gp": ("scipy", "torch"), "cmaes": ("cmaes",), "qmc": ("scipy",)}
"""Packages that a sampler imports and Optuna does not install."""


def check_installed(spec: SweepSpec) -> None:
    """Raises ConfigError, naming the package, where this machine cannot run the spec's sampler."""
    for package in _NEEDS.get(spec.sampler.type, ()):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{spec.sampler.type} needs {package}: pip install {package}, or use tpe", "sampler")


def seed_of(spec: SweepSpec, *place: int) -> int:
    """A seed of its own for every place in the search."""
    return int(np.random.SeedSequence([spec.seed, *place]).generate_state(1)[0])


def optuna_sampler(spec: SweepSpec, number: int, *, conditional: bool) -> optuna.samplers.BaseSampler:
    """The sampler of ask `number`. Everything that it learnt lies in the study, nothing in itself.

    conditional: whether some axes are there in some trials only.
    """
    seed, sampler = seed_of(spec, number), spec.sampler
    with _quiet():
        if isinstance(sampler, Tpe):
            tpe = optuna.samplers.TPESampler(
                n_startup_trials=sampler.startup_trials,
                multivariate=True,
                constant_liar=True,
                seed=seed,
                group=conditional,
                n_ei_candidates=sampler.candidates,
            )
            return tpe if sampler.sharpness == 1.0 else sharpen(tpe, sampler.sharpness)
        if isinstance(sampler, Gp):
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=sampler.startup_trials, deterministic_objective=sampler.noiseless
            )
        if isinstance(sampler, CmaEs):
            return optuna.samplers.CmaEsSampler(
                seed=seed,
                n_startup_trials=sampler.startup_trials,
                popsize=sampler.population,
                consider_pruned_trials=True,
                warn_independent_sampling=False,
            )
        if isinstance(sampler, Nsga2):
            return optuna.samplers.NSGAIISampler(
                seed=seed, population_size=sampler.population, crossover_prob=sampler.crossover
            )
        return optuna.samplers.RandomSampler(seed=seed)


def planned_point(spec: SweepSpec, number: int) -> dict[str, Scalar]:
    """The point of trial `number` where it is known beforehand; {} where the sampler decides."""
    if isinstance(spec.sampler, Grid):
        points, order = _grid(spec)
        return points[order[number]]
    if isinstance(spec.sampler, Qmc):
        axes = {key: axis for key, axis in sorted(spec.space.items()) if not isinstance(axis, bool | int | float | str)}
        shares = _sequence(spec.sampler.sequence, len(axes), seed_of(spec), spec.budget.trials)[number] if axes else ()
        return {key: _at(distribution(axis), share) for (key, axis), share in zip(axes.items(), shares, strict=True)}
    return {}


def distribution(axis: Range) -> BaseDistribution:
    """An axis as Optuna has it."""
    if isinstance(axis, Choice):
        return CategoricalDistribution(axis.choices)
    if isinstance(axis, IntRange):
        return IntDistribution(axis.low, axis.high, step=axis.step or 1)
    if isinstance(axis, LogFloatRange):
        return FloatDistribution(axis.low, axis.high, log=True)
    return FloatDistribution(axis.low, axis.high, step=axis.step)


def lies_in(axis: BaseDistribution, value: Any) -> bool:
    """Whether an axis could give this value."""
    try:
        return bool(axis._contains(axis.to_internal_repr(value)))
    except ValueError:  # no such choice
        return False


def suggest(trial: optuna.trial.Trial, key: str, axis: BaseDistribution) -> Any:
    """Ask one more axis of a trial that was asked already."""
    if isinstance(axis, CategoricalDistribution):
        return trial.suggest_categorical(key, axis.choices)
    if isinstance(axis, IntDistribution):
        return trial.suggest_int(key, axis.low, axis.high, step=axis.step)
    assert isinstance(axis, FloatDistribution)
    return trial.suggest_float(key, axis.low, axis.high, log=axis.log, step=axis.step)


@contextmanager
def _quiet() -> Iterator[None]:
    """Options that Optuna calls experimental."""
    # They are held by the pin on Optuna's version, and by our tests.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _grid(spec: SweepSpec) -> tuple[list[dict[str, Scalar]], list[int]]:
    assert isinstance(spec.sampler, Grid)
    points = list(grid_points(spec.space, spec.sampler.points))
    return points, np.random.default_rng(seed_of(spec)).permutation(len(points)).tolist()


@cache
def _sequence(kind: str, dimensions: int, seed: int, length: int) -> Any:
    """The first `length` points of a scrambled sequence in the unit cube."""
    from scipy.stats import qmc  # noqa: PLC0415  # lazy: half a second that other samplers need not pay

    if kind == "halton":
        return qmc.Halton(dimensions, scramble=True, rng=seed).random(length)
    # A power of 2 is drawn, so that the sequence keeps its balance, and cut to length.
    return qmc.Sobol(dimensions, scramble=True, rng=seed).random_base2(max(0, (length - 1).bit_length()))[:length]


def _at(axis: BaseDistribution, share: float) -> Any:
    """The value below which `share` of the axis lies."""
    if isinstance(axis, CategoricalDistribution):
        return axis.choices[int(share * len(axis.choices))]
    if isinstance(axis, IntDistribution):
        return axis.low + axis.step * int(share * ((axis.high - axis.low) // axis.step + 1))
    assert isinstance(axis, FloatDistribution)
    if axis.step is not None:
        return axis.low + axis.step * int(share * (round((axis.high - axis.low) / axis.step) + 1))
    if axis.log:
        return float(min(axis.high, axis.low * (axis.high / axis.low) ** share))
    return float(axis.low + share * (axis.high - axis.low))
