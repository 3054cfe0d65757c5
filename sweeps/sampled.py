"""Optuna's side of a search: one Optuna study over one space, asked and told in the order that `sweeps.study` keeps.

A changed space makes a new one: Optuna holds on to the distributions that it has seen (other choices under the same
name are refused, another range drops the axis from what its samplers model jointly). What lies in the new space is
told again, and so is what an axis that is now held constant said of the others.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from sweeps.outcome import Ask, Lesson, Outcome
from sweeps.samplers import distribution, lies_in, suggest
from sweeps.spaces import Choice, FloatRange, IntRange, LogFloatRange, Scalar, holds
from sweeps.spec import SweepSpec


class Sampled:
    """Trials by number on this side, by Optuna's own count on the other."""

    def __init__(self, spec: SweepSpec, lessons: Sequence[Lesson] = (), held: frozenset[str] = frozenset()) -> None:
        self.spec = spec
        self.axes: dict[str, BaseDistribution] = {}
        """Those that every trial has."""
        self.conditional: dict[str, BaseDistribution] = {}
        self.constants: dict[str, Scalar] = {}
        for key, axis in sorted(spec.space.items()):  # sorted: the order of a YAML file must not move the search
            if isinstance(axis, FloatRange | LogFloatRange | IntRange | Choice):
                (self.axes if axis.when is None else self.conditional)[key] = distribution(axis)
            else:
                self.constants[key] = axis
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        goals = [objective.goal for objective in spec.objectives]
        self.optuna = optuna.create_study(directions=goals, pruner=optuna.pruners.NopPruner())
        self._open: dict[int, optuna.trial.Trial | None] = {}
        self._held = held & self.constants.keys()
        self._lessons = lessons
        self.lessons = sum([self._learn(lesson) for lesson in lessons])
        """How many of them lie in this space."""

    @property
    def open(self) -> list[int]:
        """Numbers of the trials that were asked and not told, rising."""
        return sorted(self._open)

    def ask(
        self, number: int, sampler: optuna.samplers.BaseSampler, *, fixed: Mapping[str, Any], whole: bool = False
    ) -> dict[str, Scalar]:
        """The point of a trial: what is not fixed is the sampler's. whole: nothing is, wherever the point lies."""
        self.optuna.sampler = sampler
        if whole:
            self._note(number, fixed)
            return dict(fixed)
        trial = self._ask(fixed)
        self._open[number] = trial
        return {**self.constants, **trial.params}

    def tell(self, ask: Ask, outcome: Outcome) -> None:
        """Constraints go first, intermediate values too: PRUNED keeps its last one."""
        trial = self._open.pop(ask.number)
        if trial is None:  # it lies outside of the space
            return
        for probe, violation in outcome.constraints.items():
            trial.set_constraint(probe, violation)
        if not self.spec.other_objectives:  # Optuna has no intermediate values for several
            for step, value in sorted(outcome.rungs.items()):
                trial.report(value, step)
        if outcome.reason:
            trial.set_user_attr("reason", outcome.reason)
        trial.set_user_attr("trial_id", ask.trial_id)
        if outcome.state == "FAILED":
            self.optuna.tell(trial, state=TrialState.FAIL)
        elif outcome.state == "PRUNED":
            self.optuna.tell(trial, state=TrialState.PRUNED)
        else:
            # Infeasible is complete with a violated constraint: the sampler learns where models collapse.
            self.optuna.tell(trial, values_of(self.spec, outcome), state=TrialState.COMPLETE)

    def moved(self, spec: SweepSpec, told: Iterable[tuple[Ask, Outcome]], asks: Mapping[int, Ask]) -> "Sampled":
        """The same search on another space. told: in order; asks: by number, of those that are open at least."""
        axes = self.axes.keys() | self.conditional.keys() | self._held
        other = Sampled(spec, self._lessons, held=frozenset(axes))
        other.optuna.sampler = optuna.samplers.RandomSampler(seed=0)  # never used: open trials have their points
        for ask, outcome in told:
            if (there := other._inside(ask.params)) is not None and outcome.value is not None:
                other._add(ask.params, outcome, there)
        for number in self.open:
            other._note(number, asks[number].params)
        return other

    def _ask(self, fixed: Mapping[str, Any]) -> optuna.trial.Trial:
        if fixed:
            self.optuna.enqueue_trial(dict(fixed))
        trial = self.optuna.ask(self.axes)
        for key, axis in self.conditional.items():
            if holds(self.spec.space[key], {**self.constants, **trial.params}):
                suggest(trial, key, axis)
        if self.spec.sampler.keeps_notes:
            trial.relative_params  # noqa: B018  # computed when looked at, which a replayed point would not do
        return trial

    def _note(self, number: int, params: Mapping[str, Any]) -> None:
        there = self._inside(params)
        self._open[number] = None if there is None else self._ask({key: params[key] for key in there})

    def _learn(self, lesson: Lesson) -> bool:
        """Add an earlier sweep's trial if it lies in this space; whether it does."""
        there, outcome = self._inside(lesson.params), lesson.outcome
        if there is None or outcome.value is None or (self.spec.other_objectives and outcome.state == "PRUNED"):
            return False
        self._add(lesson.params, outcome, there)
        return True

    def _inside(self, params: Mapping[str, Any]) -> dict[str, BaseDistribution] | None:
        """The axes that such a point has; None when it lies outside of the space."""
        there = {key: axis for key, axis in self.conditional.items() if holds(self.spec.space[key], params)}
        axes = {**self.axes, **there}
        fits = (
            params.keys() - self._held == {*axes, *self.constants} - self._held
            and all(params[key] == value for key, value in self.constants.items() if key not in self._held)
            and all(lies_in(axis, params[key]) for key, axis in axes.items())
        )
        return axes if fits else None

    def _add(self, params: Mapping[str, Any], outcome: Outcome, axes: Mapping[str, BaseDistribution]) -> None:
        several = bool(self.spec.other_objectives)
        if outcome.state == "FAILED" or (several and outcome.state == "PRUNED"):
            return
        self.optuna.add_trial(
            optuna.trial.create_trial(
                state=TrialState.PRUNED if outcome.state == "PRUNED" else TrialState.COMPLETE,
                values=values_of(self.spec, outcome),
                params={key: params[key] for key in axes},
                distributions=dict(axes),
                intermediate_values={} if several else outcome.rungs,
                constraints=outcome.constraints,
            )
        )


def value_of(outcome: Outcome) -> float:
    """The objective of an outcome that has one."""
    assert outcome.value is not None  # settled by honest
    return outcome.value


def values_of(spec: SweepSpec, outcome: Outcome) -> list[float]:
    """In the order of the objectives."""
    return [value_of(outcome), *(outcome.others[objective.metric] for objective in spec.other_objectives)]
