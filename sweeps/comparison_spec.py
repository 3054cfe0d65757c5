"""What a person asks of a comparison: several methods, one budget, the same data, batches and seeds. Light.

A comparison is nothing but ordinary sweeps, one a method: `ComparisonSpec.sweeps` says which. Rungs, judge, constraints
and optimiser are the same for all; the space is each method's own.

Learning rates. The best one differs between methods, so each searches its own default range (`simpo.methods`,
`sweeps.spaces.default_space`): one wide range for models that are made here, and for others SFT's ten times higher than
the rest. `space` of a method changes its axes one by one; `learning_rate` beside `methods` sets one range for all. No
range costs more than another: the number of trials does not depend on it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from simpo.errors import ConfigError
from simpo.methods import METHODS
from sweeps.defaults import scores_answers, with_task_defaults
from sweeps.faults import SpecError, faults_of
from sweeps.search_spec import Asha, Objective, Sampler, Scheduler, Tpe
from sweeps.spaces import Axis
from sweeps.spec import Budget, Finals, Job, Parallel, SweepSpec, read_spec_file, with_absolute_paths
from sweeps.strict import Strict, shorthand

PAPER = ("sft", "rrhf", "slic", "dpo", "ipo", "cpo", "kto", "orpo", "rdpo", "simpo")
"""The methods of the SimPO paper's main table."""


class Contender(Strict):
    """One method of a comparison. A plain string is short for {method: ...}."""

    method: str
    space: dict[str, Axis] = Field(default_factory=dict)
    """Axes that differ from the method's default space; a plain value holds one constant."""
    label: str | None = None
    """Its name in tables and its folder; the method's by default. Needed where a method competes twice."""
    presets: Literal["none", "paper"] = "none"
    """paper: the authors' released settings are tried first, outside the random stratum."""

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in METHODS:
            raise ConfigError(f"unknown method {method!r}: use one of {', '.join(sorted(METHODS))}")
        return method

    @property
    def name(self) -> str:
        """The label, or the method."""
        return self.label or self.method


class EqualBudget(Strict):
    """The same for every method."""

    rule: Literal["trials", "steps"] = "trials"
    """trials: every method gets `trials`, of which its scheduler stops some early. steps: every method gets
    `total_steps` optimiser steps, and as many trials as these are enough for."""
    trials: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Trials a method; by the rule steps the most that may start."""
    steps: Annotated[int, Field(ge=1)] = 120
    """Optimiser steps of a trial at full budget."""
    total_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps of all trials of a method together; for the rule steps alone."""
    wall_clock_s: Annotated[float, Field(gt=0)] | None = None
    """A limit for each method, preparing and searching. Where it strikes, budgets are no longer equal: the result says
    so."""
    accelerator_hours: Annotated[float, Field(gt=0)] | None = None
    """The same of hours that a method's trials and retrainings hold training processes. A method with a slow step then
    gets fewer trials, and the result says so."""

    @model_validator(mode="after")
    def _one_rule(self) -> "EqualBudget":
        if (self.rule == "steps") != (self.total_steps is not None):
            raise ConfigError("is what the rule steps divides, and no other rule does", "total_steps")
        return self


class ComparisonSpec(Job):
    """Several methods under one budget. Everything that is not a method's own is that of a sweep (`SweepSpec`)."""

    methods: Annotated[tuple[Annotated[Contender, shorthand("method")], ...], Field(min_length=2)] = tuple(
        Contender(method=method) for method in PAPER
    )
    learning_rate: Axis | None = None
    """One range, or one value, for all methods. None: each method's own."""
    budget: EqualBudget = EqualBudget()
    random_stratum: float | int = 0.5
    """Trials of each method that are drawn at random from its space and never stopped: a share below 1, or a count.
    Tuning curves and verdicts rest on these alone; the others, which the sampler chooses, look for the best model."""
    sampler: Annotated[Sampler, shorthand("type")] = Tpe(type="tpe")
    scheduler: Annotated[Scheduler, shorthand("type")] = Asha(type="asha")
    objective: Annotated[Objective, shorthand("metric")] = Objective(metric="accuracy")
    finals: Finals = Finals()
    parallel: Parallel = Parallel()

    @model_validator(mode="before")
    @classmethod
    def _scored_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        judge = with_task_defaults(values, searches=False).get("judge")
        return {"objective": "win_rate" if scores_answers(judge) else "accuracy", **values}

    @field_validator("objective")
    @classmethod
    def _a_best_is_sought(cls, objective: Objective) -> Objective:
        if objective.goal != "maximize":
            raise ConfigError("a comparison asks for the best: the goal is maximize")
        return objective

    @model_validator(mode="after")
    def _fits_together(self) -> "ComparisonSpec":
        names = [contender.name for contender in self.methods]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"{twice[0]} stands twice: give one of them a label of its own", "methods")
        if self.drawn < 1:
            raise ConfigError("leaves no random trial: tuning curves need some", "random_stratum")
        if self.drawn > self.budget.trials:
            raise ConfigError(f"is more than the {self.budget.trials} trials of a method", "random_stratum")
        for index in range(len(self.methods)):
            self._check(index)
        return self

    @property
    def drawn(self) -> int:
        """Random trials of a method if all of its trials start."""
        whole = isinstance(self.random_stratum, int) and not isinstance(self.random_stratum, bool)
        return int(self.random_stratum if whole else self.budget.trials * self.random_stratum + 1e-9)

    def sweeps(self) -> dict[str, SweepSpec]:
        """The sweep of every method, by its name, in the order of `methods`."""
        return {contender.name: self._sweep(contender) for contender in self.methods}

    def _sweep(self, contender: Contender) -> SweepSpec:
        shared = self.model_dump(include={*Job.model_fields, "sampler", "scheduler", "objective", "finals", "parallel"})
        everyone = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
        return SweepSpec(
            **{
                **shared,
                "name": f"{self.name}-{contender.name}",
                "method": contender.method,
                "space": {**everyone, **contender.space},
                "presets": contender.presets,
                "budget": Budget(**self.budget.model_dump(exclude={"rule"})),
                "random_stratum": self.drawn / self.budget.trials,
            }
        )

    def _check(self, index: int) -> None:
        """Faults of a method's sweep, told as faults of the comparison."""
        contender = self.methods[index]
        try:
            self._sweep(contender)
        except ValidationError as error:
            field, message = faults_of(error)[0]
            if field.startswith("space"):
                field = f"methods.{index}.{field}"
            elif field == "name":
                field, message = f"methods.{index}.label", f"as {self.name}-{contender.name} it {message}"
            raise ConfigError(message, field) from error


def parse_comparison(values: Any, *, source: str | None = None) -> ComparisonSpec:
    """A validated comparison from JSON values. Raises SpecError."""
    if not isinstance(values, Mapping):
        raise SpecError((("", "a comparison is a mapping of keys to values, e.g. name: my-comparison"),), source)
    try:
        return ComparisonSpec.model_validate(values)
    except ValidationError as error:
        raise SpecError(faults_of(error), source) from error


def load_comparison(path: str | Path) -> ComparisonSpec:
    """A comparison from a .yaml, .yml or .json file; its local paths become absolute. Raises SpecError."""
    spec = parse_comparison(read_spec_file(path), source=str(path))
    placed = with_absolute_paths(next(iter(spec.sweeps().values())))
    return spec.model_copy(update={key: getattr(placed, key) for key in ("base_model", "dataset", "judge")})
