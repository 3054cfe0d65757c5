"""How a sweep searches: samplers, schedulers, objectives, as a person writes them. Light.

What one part cannot do with another is refused by name in `check_search`; what a machine lacks, in
`sweeps.samplers.check_installed`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from simpo.errors import ConfigError
from sweeps.spaces import Choice, FloatRange, IntRange, LogFloatRange, ungridded
from sweeps.strict import Strict


class _Sampler(Strict):
    """What is known of every sampler. Not a sampler itself."""

    learns_from_constraints: ClassVar[bool] = True
    """Whether it may search where constraints are told. False only where a broken constraint would mislead it."""
    choices: ClassVar[bool] = True
    """Whether it can search a categorical axis."""
    conditions: ClassVar[bool] = True
    """Whether it can search an axis that is there only `when` another has a certain value."""
    several_objectives: ClassVar[bool] = True
    """Whether it can search for a Pareto front."""
    ignores_results: ClassVar[bool] = False
    """Whether results have no influence on its points."""
    learns_from_others: ClassVar[bool] = False
    """Whether trials that it did not propose itself, of an earlier sweep, teach it."""
    keeps_notes: ClassVar[bool] = False
    """Whether it notes something in the study with every proposal, also when the point is then given."""


class Tpe(_Sampler):
    """Tree-structured Parzen estimator, multivariate, with constant liar for running trials.

    Pruned trials count as worse than complete ones, infeasible ones as worse still. With conditional axes each group
    of axes that occur together has an estimator of its own.
    """

    type: Literal["tpe"]
    learns_from_others: ClassVar[bool] = True
    startup_trials: Annotated[int, Field(ge=0)] = 6
    """Random points before the estimator takes over; warm-start trials count among them."""
    candidates: Annotated[int, Field(ge=1)] = 24
    """Points drawn from the good trials' density, of which the most promising is taken. More exploit more."""
    sharpness: Annotated[float, Field(ge=1, le=10)] = 1.0
    """How much narrower than Optuna's a good trial's neighbourhood may be (`sweeps.sharp_tpe`). 1 is Optuna's own; 5
    with 12 candidates finds a sharp optimum in fewer trials."""


class Gp(_Sampler):
    """Gaussian process with expected improvement, and its probability of keeping the constraints. Needs scipy, torch.

    It learns from complete and infeasible trials alone: under a scheduler that stops many, tpe learns more. A proposal
    takes a second or so: meant for up to a few hundred trials.
    """

    type: Literal["gp"]
    several_objectives: ClassVar[bool] = False  # Optuna 5.0.0 did not come back from its box decomposition
    learns_from_others: ClassVar[bool] = True
    conditions: ClassVar[bool] = False
    startup_trials: Annotated[int, Field(ge=1)] = 8
    """Random points before the process takes over."""
    noiseless: bool = False
    """Whether the same point would measure the same again."""


class CmaEs(_Sampler):
    """Covariance matrix adaptation (Hansen), on the space scaled to a cube. Needs the package cmaes.

    Stopped trials count with their last value; a trial that broke a constraint would count with a value it does not
    deserve, hence constraints are refused.
    """

    type: Literal["cmaes"]
    keeps_notes: ClassVar[bool] = True
    learns_from_constraints: ClassVar[bool] = False
    choices: ClassVar[bool] = False
    conditions: ClassVar[bool] = False
    several_objectives: ClassVar[bool] = False
    startup_trials: Annotated[int, Field(ge=1)] = 1
    """Random points before the first generation."""
    population: Annotated[int, Field(ge=3)] | None = None
    """Trials of a generation. None: 4 + 3 ln(axes)."""


class Qmc(_Sampler):
    """A scrambled low-discrepancy sequence: random search without its holes and clusters."""

    type: Literal["qmc"]
    ignores_results: ClassVar[bool] = True
    sequence: Literal["sobol", "halton"] = "sobol"
    """sobol is most even when the number of trials is a power of 2; halton does not mind."""


class RandomSearch(_Sampler):
    """Independent random points."""

    type: Literal["random"]
    ignores_results: ClassVar[bool] = True


class Grid(_Sampler):
    """Every combination once, in an order shuffled by the seed, so that a grid cut short has no blind corner.

    The sweep ends with the grid if that is smaller than budget.trials.
    """

    type: Literal["grid"]
    ignores_results: ClassVar[bool] = True
    points: Annotated[int, Field(ge=2)] | None = None
    """Values of an axis that has no step of its own: evenly from low to high, in the logarithm on a log_float axis."""


class Nsga2(_Sampler):
    """NSGA-II: a genetic search for a Pareto front; feasible parents first."""

    type: Literal["nsga2"]
    keeps_notes: ClassVar[bool] = True
    population: Annotated[int, Field(ge=2)] = 16
    """Trials of a generation."""
    crossover: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Probability that a child has two parents."""


class _Scheduler(Strict):
    """What schedulers with rungs have in common. Not a scheduler itself."""

    rungs: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.25, 0.5)
    """Shares of the full budget at which trials are compared, rising."""
    control_group: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the trials, chosen by the seed, that are never stopped: they show how well a rung's order foretells the
    final one (`rungs` in result.json). 0.125 costs little."""

    @field_validator("rungs")
    @classmethod
    def _rising(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        if not rungs or list(rungs) != sorted(set(rungs)):
            raise ConfigError("must be rising fractions of the budget, e.g. [0.25, 0.5]; for none use scheduler: none")
        return rungs


class Asha(_Scheduler):
    """Successive halving with cut-offs that are fixed when a trial is asked (sweeps/README.md, decisions)."""

    type: Literal["asha"]
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """The best 1/reduction_factor of the trials go on."""


class Median(_Scheduler):
    """Median stopping (Golovin et al. 2017): a trial goes on while it is no worse at a rung than the median of the
    others' averages up to there. Cut-offs are fixed when a trial is asked, as with asha."""

    type: Literal["median"]
    startup_trials: Annotated[int, Field(ge=1)] = 4
    """Trials that must have reached a rung before it stops anybody."""


class Halving(_Scheduler):
    """Synchronous successive halving (Jamieson and Talwalkar 2016): all trials train to the first rung, the best
    1/reduction_factor of them go on from their checkpoints to the next one, as trials of their own, and so on. The most
    is got out of a budget; whoever is ready waits for the others at each rung. budget.trials counts the points; control
    group and random stratum go to full budget at once and take nobody's place."""

    type: Literal["halving"]
    rungs: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.3)
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """Of the trials at a rung one in so many goes on, at least one; fitting rungs are so many times apart."""


class Pbt(Strict):
    """Population-based training (Jaderberg et al. 2017) in generations: trial n belongs to generation
    n // population, trains its share of the steps and is measured; then the worst members go on from the checkpoint of
    one of the best, with perturbed hyperparameters, the others from their own. All of a generation waits for all of the
    one before, so that seeds and results alone decide."""

    type: Literal["pbt"]
    population: Annotated[int, Field(ge=2)] = 4
    """Members; more than parallel.trials of them wait for each other."""
    generations: Annotated[int, Field(ge=2)] = 4
    """Equal shares of budget.steps. budget.trials must be population * generations."""
    replace: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the members, at least one, that go on from one of as many best."""
    factors: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=2)] = (0.8, 1.25)
    """One of these, by the seed, multiplies each perturbed hyperparameter; the result stays within its axis."""
    axes: Annotated[tuple[str, ...], Field(min_length=1)] = ("learning_rate", "beta")
    """What is perturbed: ranges of the space. An axis that the method or the space lacks is passed over."""


class NoScheduler(Strict):
    """Every trial runs to full budget."""

    type: Literal["none"]


class Objective(Strict):
    """What the search improves: a number measured on the rung data, never on the evaluation set of the report."""

    metric: Literal["win_rate", "accuracy", "margin"]
    goal: Literal["maximize", "minimize"] = "maximize"

    @property
    def sign(self) -> float:
        """Times a value: more is better."""
        return 1.0 if self.goal == "maximize" else -1.0


Sampler = Annotated[Tpe | Gp | CmaEs | Qmc | RandomSearch | Grid | Nsga2, Field(discriminator="type")]
Scheduler = Annotated[Asha | Median | Halving | Pbt | NoScheduler, Field(discriminator="type")]
TAGS = ("tpe", "gp", "cmaes", "qmc", "random", "grid", "nsga2", "asha", "median", "halving", "pbt", "none")
"""Names of the members of these unions."""


def check_search(
    *,
    space: Mapping[str, Any],
    sampler: Any,
    scheduler: Any,
    objectives: Sequence[Objective],
    constraints: Mapping[str, str],
    trials: int,
    steps: int,
    warm: bool = False,
) -> None:
    """Refuse what the parts of a search cannot do together. Raises ConfigError with the field."""
    ranges = {key: axis for key, axis in space.items() if isinstance(axis, FloatRange | LogFloatRange | IntRange)}
    choices = [key for key, axis in space.items() if isinstance(axis, Choice)]
    conditional = [key for key, axis in space.items() if getattr(axis, "when", None)]

    def refuse(field: str, why: str) -> None:
        raise ConfigError(why, field)

    name = sampler.type
    if choices and not sampler.choices:
        refuse("sampler", f"{name} searches numbers, and {choices[0]} is categorical: use tpe, or a plain value")
    if conditional and not sampler.conditions:
        refuse("sampler", f"{name} needs the same axes in every trial, and {conditional[0]} has a when: use tpe")
    if constraints and not sampler.learns_from_constraints:
        refuse("sampler", f"{name} cannot be told of constraints: use tpe, gp or nsga2, or set constraints: {{}}")
    if len(objectives) > 1 and not sampler.several_objectives:
        refuse("sampler", f"{name} searches for one number: use tpe or nsga2 with several objectives")
    if warm and not sampler.learns_from_others:
        refuse("warm_start", f"{name} learns nothing from an earlier sweep's trials: use tpe or gp, or leave it out")
    if isinstance(sampler, Grid):
        bare = ungridded(space) if sampler.points is None else None
        if bare:
            refuse("sampler.points", f"{bare} is continuous: give space.{bare}.step, or so many points for such axes")
    if len(objectives) > 1 and not isinstance(scheduler, NoScheduler):
        refuse("scheduler", f"{scheduler.type} compares trials by one number: use none with several objectives")
    if isinstance(scheduler, _Scheduler):
        at = [round(rung * steps) for rung in scheduler.rungs]
        if at != sorted(set(at)) or at[0] < 1 or at[-1] >= steps:
            refuse("scheduler.rungs", f"fall on steps {at} of {steps}: raise budget.steps or use fewer rungs")
    if isinstance(scheduler, Pbt):
        wanted = scheduler.population * scheduler.generations
        if trials != wanted:
            refuse("budget.trials", f"must be population * generations = {wanted} with scheduler pbt")
        if steps < scheduler.generations:
            refuse("scheduler.generations", f"cannot share {steps} steps: raise budget.steps")
        if not sampler.ignores_results or isinstance(sampler, Grid):
            refuse("sampler", f"{name} would only draw the first population of pbt: use random or qmc")
        if not any(key in ranges for key in scheduler.axes):
            refuse("scheduler.axes", f"none is a range of this space: use some of {', '.join(ranges) or '(no range)'}")
