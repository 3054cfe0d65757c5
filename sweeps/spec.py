"""What a person asks for: HTTP body, YAML file and stored record are these same classes.

Every key is honoured or refused by name with the remedy; after validation all defaults stand in the spec, so that the
stored record says everything. Light: no torch, ray or optuna.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from simpo.config import LoraConfig, OptimConfig, TokenPolicy, TrainConfig
from simpo.errors import ConfigError
from simpo.methods import METHODS, method_from_dict, method_to_dict
from sweeps.constraints import parse_constraint
from sweeps.defaults import PRACTICE as PRACTICE
from sweeps.defaults import scores_answers, with_task_defaults
from sweeps.effort_spec import Budget as Budget
from sweeps.effort_spec import Finals as Finals
from sweeps.effort_spec import Parallel as Parallel
from sweeps.effort_spec import check_finals
from sweeps.faults import SpecError, faults_of
from sweeps.judges_spec import Endpoint, JudgeSpec, RewardModel
from sweeps.search_spec import (
    Asha,
    Halving,
    NoScheduler,
    Objective,
    Pbt,
    RandomSearch,
    Sampler,
    Scheduler,
    Tpe,
    check_search,
)
from sweeps.spaces import Axis, Scalar, check_space
from sweeps.strict import Strict, shorthand
from sweeps.yaml_text import read_yaml


class Dataset(Strict):
    """Preference data. A plain string is short for {train: ...}."""

    train: Annotated[str, Field(min_length=1)]
    """`practice`, a .jsonl/.jsonl.gz/.parquet file, a directory saved by datasets, or a hub id."""
    eval: str | None = None
    """Held-out preferences, same forms, used for the final report alone. None: the practice task's own, else a second
    split off `train`."""
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.15
    """Share of the training rows set aside for the rungs; the search sees only these."""
    limit: Annotated[int, Field(ge=4)] | None = None
    """Use at most so many rows of `train`."""


class Train(Strict):
    """The step, the same for all trials (simpo.config.TrainConfig without steps and seed)."""

    batch_pairs: Annotated[int, Field(ge=1)] = TrainConfig.batch_pairs
    token_budget: Annotated[int, Field(ge=1)] = TrainConfig.token_budget
    dtype: Literal["float32", "bfloat16"] = TrainConfig.dtype
    lora: LoraConfig | None = None
    """Train adapters beside the frozen base, which all trials of a process share. Winners are served merged."""
    checkpointing: Literal["off", "on", "auto"] = TrainConfig.checkpointing
    sharding: Literal["none", "full"] = TrainConfig.sharding
    """Whether the workers of a trial divide the weights among them; needs more than one."""


class Optim(Strict):
    """The optimiser, the same for all trials (simpo.config.OptimConfig without learning_rate)."""

    schedule: Literal["wsd", "cosine", "constant"] = OptimConfig.schedule
    warmup_fraction: float = OptimConfig.warmup_fraction
    decay_fraction: float = OptimConfig.decay_fraction
    weight_decay: float = OptimConfig.weight_decay
    beta1: float = OptimConfig.beta1
    beta2: float = OptimConfig.beta2
    eps: float = OptimConfig.eps
    max_grad_norm: float = OptimConfig.max_grad_norm

    @model_validator(mode="after")
    def _legal(self) -> "Optim":
        OptimConfig(learning_rate=1.0, **self.model_dump())
        return self


class Evaluation(Strict):
    """Generation at rungs and in the finals."""

    rung_prompts: Annotated[int, Field(ge=0)] = 200
    """Prompts answered at each rung for judge and probes; 0 turns generation at rungs off."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1)] = 48


class Job(Strict):
    """What sweeps and runs have in common."""

    name: str
    base_model: Annotated[str, Field(min_length=1)] = PRACTICE
    dataset: Annotated[Dataset, shorthand("train")] = Dataset(train=PRACTICE)
    judge: JudgeSpec | None = None
    """Who compares answers: see `sweeps.judges_spec`. One that scores answers does so at the rungs too."""
    constraints: dict[str, str] = Field(default_factory=dict)
    train: Train = Train()
    optim: Optim = Optim()
    tokens: TokenPolicy = TokenPolicy()
    evaluation: Evaluation = Evaluation()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="before")
    @classmethod
    def _task_defaults(cls, values: Any) -> Any:
        return (
            with_task_defaults(values, searches="space" in cls.model_fields) if isinstance(values, Mapping) else values
        )

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9-]{1,63}", name):
            raise ConfigError("must be 1 to 63 of the characters a-z, 0-9 and -")
        return name

    @field_validator("constraints")
    @classmethod
    def _parsed(cls, constraints: dict[str, str]) -> dict[str, str]:
        for probe, text in constraints.items():
            parse_constraint(probe, text)
        return constraints

    @model_validator(mode="after")
    def _judge_fits(self) -> "Job":
        if self.judge == PRACTICE and self.dataset.train != PRACTICE:
            raise ConfigError("practice scores only the practice task: use dataset: practice, or judge: null", "judge")
        if self.judge and not self.evaluation.rung_prompts:
            raise ConfigError("must be at least 1 with a judge", "evaluation.rung_prompts")
        if self.constraints and not self.evaluation.rung_prompts:
            raise ConfigError(
                "need generated text: set evaluation.rung_prompts above 0, or constraints: {}", "constraints"
            )
        return self


class SweepSpec(Job):
    """One search: one method, one space, one budget."""

    method: str = "simpo"
    space: dict[str, Axis] = Field(default_factory=dict)
    presets: Literal["none", "paper"] = "none"
    """paper: the authors' released settings are tried first; a value of theirs outside the space is sampled instead."""
    warm_start: tuple[Annotated[str, Field(pattern=r"/|^[A-Za-z0-9][A-Za-z0-9_.-]*$")], ...] = ()
    """Earlier sweeps that teach the sampler: run directories, or ids of sweeps that lie beside this one. Refused when
    their values mean something else (`sweeps.warm_start`)."""
    sampler: Annotated[Sampler, shorthand("type")] = Tpe(type="tpe")
    scheduler: Annotated[Scheduler, shorthand("type")] = Asha(type="asha")
    objective: Annotated[Objective, shorthand("metric")] = Objective(metric="accuracy")
    """A list of several asks for their Pareto front; its first then stands here and chooses among the finalists."""
    other_objectives: tuple[Objective, ...] = ()
    """The rest of such a list."""
    mode: Literal["deterministic", "asynchronous"] = "deterministic"
    """deterministic: points and stops depend on seeds and results alone. asynchronous: no trial waits for another's
    result, for clusters of many unequal machines; another run, or a resumed one, may find other points."""
    random_stratum: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the trials, evenly spread, that are drawn at random from the space and never stopped early, whatever
    sampler and scheduler do with the others: tuning curves are made of these (`sweeps.tuning_curve`)."""
    budget: Budget = Budget()
    finals: Finals = Finals()
    parallel: Parallel = Parallel()

    @model_validator(mode="before")
    @classmethod
    def _search_defaults(cls, values: Any) -> Any:
        """A list of objectives taken apart, and what follows from other choices unless it is said."""
        if not isinstance(values, Mapping):
            return values
        filled = dict(values)
        listed = filled.get("objective")
        if isinstance(listed, list | tuple) and listed:
            if filled.get("other_objectives"):
                raise ConfigError(
                    "is the rest of the list under objective: write all of them there", "other_objectives"
                )
            each = [{"metric": value} if isinstance(value, str) else value for value in listed]
            filled |= {"objective": each[0], "other_objectives": each[1:]}
        if filled.get("other_objectives"):
            filled.setdefault("scheduler", "none")
        scheduler = filled.get("scheduler")
        if (scheduler.get("type") if isinstance(scheduler, Mapping) else scheduler) == "pbt":
            filled.setdefault("sampler", "random")
        return filled

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in METHODS:
            raise ConfigError(f"unknown method {method!r}: use one of {', '.join(sorted(METHODS))}")
        return method

    @model_validator(mode="after")
    def _fits_together(self) -> "SweepSpec":
        try:
            check_space(self.method, self.space)
        except ConfigError as error:
            raise ConfigError(error.message, f"space.{error.field}" if error.field else "space") from error
        metrics = [objective.metric for objective in self.objectives]
        if len(set(metrics)) != len(metrics):
            raise ConfigError("names a metric twice", "objective")
        if "win_rate" in metrics and not scores_answers(self.judge):
            reason = "needs a judge: set judge: practice, or"
            if self.judge is not None:
                reason = "is measured at every rung, and an endpoint judges the finals alone:"
            raise ConfigError(f"win_rate {reason} use accuracy or margin", "objective.metric")
        check_search(
            space=self.space,
            sampler=self.sampler,
            scheduler=self.scheduler,
            objectives=self.objectives,
            constraints=self.constraints,
            trials=self.budget.trials,
            steps=self.budget.steps,
            warm=bool(self.warm_start),
        )
        if isinstance(self.scheduler, Halving | Pbt):
            name = self.scheduler.type
            if self.mode == "asynchronous":
                raise ConfigError(f"{name} waits for whole generations: use deterministic", "mode")
            if self.budget.total_steps is not None:
                raise ConfigError(f"the steps of {name} follow from its trials: leave it out", "budget.total_steps")
        if self.random_stratum and (self.scheduler.type == "pbt" or self.sampler.type == "grid"):
            chosen = "pbt" if self.scheduler.type == "pbt" else "grid"
            raise ConfigError(f"{chosen} lays down every trial's point beforehand: set it to 0", "random_stratum")
        check_finals(
            self.finals,
            scheduler=self.scheduler.type,
            sharded=self.train.sharding != "none",
            endpoint=isinstance(self.judge, Endpoint),
            win_rate=self.objective.metric == "win_rate",
            rung_prompts=self.evaluation.rung_prompts,
        )
        if self.budget.total_steps is not None and self.budget.total_steps < self.budget.steps:
            raise ConfigError("must be at least budget.steps, or no trial fits", "budget.total_steps")
        if self.train.batch_pairs < self.parallel.workers_per_trial:
            raise ConfigError("must be at least parallel.workers_per_trial", "train.batch_pairs")
        if self.train.sharding != "none" and self.parallel.workers_per_trial == 1:
            raise ConfigError(
                "one worker has nobody to share with: raise parallel.workers_per_trial (workers of a run), or use none",
                "train.sharding",
            )
        return self

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """All of them; the first one chooses among finalists."""
        return (self.objective, *self.other_objectives)


class RunSpec(Job):
    """A single training job: the one-point sweep."""

    method: Annotated[dict[str, Scalar | None], shorthand("name")] = Field(default={"name": "simpo"})
    """{name: ..., hyperparameter: value, ...}; here `gamma` is allowed and becomes gamma_beta_ratio."""
    learning_rate: Annotated[float, Field(gt=0)]
    steps: Annotated[int, Field(ge=1)] = 120
    finals_prompts: Annotated[int, Field(ge=2)] = 500
    workers: Annotated[int, Field(ge=1)] = 1
    wall_clock_s: Annotated[float, Field(gt=0)] | None = None

    @field_validator("method")
    @classmethod
    def _trainable(cls, method: dict[str, Scalar | None]) -> dict[str, Scalar | None]:
        return method_to_dict(method_from_dict(method))

    @model_validator(mode="after")
    def _sweepable(self) -> "RunSpec":
        self.to_sweep()
        return self

    def to_sweep(self) -> SweepSpec:
        """The same work as a sweep of one constant point, without rungs."""
        shared = self.model_dump(include=set(Job.model_fields))
        point = {key: value for key, value in self.method.items() if key != "name"}
        return SweepSpec(
            **shared,
            method=str(self.method["name"]),
            space={"learning_rate": self.learning_rate, **point},
            sampler=RandomSearch(type="random"),
            scheduler=NoScheduler(type="none"),
            objective=Objective(metric="win_rate" if scores_answers(self.judge) else "accuracy"),
            budget=Budget(trials=1, steps=self.steps, wall_clock_s=self.wall_clock_s),
            finals=Finals(candidates=1, prompts=self.finals_prompts),
            parallel=Parallel(trials=1, workers_per_trial=self.workers),
        )


def spec_hash(spec: SweepSpec | RunSpec) -> str:
    """sha256 of the canonical JSON: equal specs, equal hash.

    A field that came later joins it only with a value of its own, so that an upgrade changes no hash.
    """
    return hash_of(spec.model_dump(mode="json"))


def hash_of(values: Mapping[str, Any]) -> str:
    """`spec_hash` of a spec's JSON, every default in it."""
    canonical = json.dumps(_without_later(values), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


_LATER: Mapping[str, Any] = {
    "mode": "deterministic",
    "warm_start": [],
    "other_objectives": [],
    "train.sharding": "none",
    "parallel.gpus_per_worker": None,
    "random_stratum": 0.0,
    "budget.total_steps": None,
    "budget.accelerator_hours": None,
    "finals.seeds": 1,
    "finals.extra": [],
    "finals.scales": [0.5, 0.75, 1.25],
    "sampler.candidates": 24,
    "sampler.sharpness": 1.0,
    "scheduler.control_group": 0.0,
    "space.*.when": None,
    "space.*.step": None,
}


def _without_later(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{place}{'*' if place == 'space.' else key}"
        if path in _LATER and value == _LATER[path]:
            continue
        kept[key] = _without_later(value, f"{path}.") if isinstance(value, dict) else value
    return kept


def parse_spec(values: Any, *, source: str | None = None) -> SweepSpec:
    """A validated sweep from JSON values. Raises SpecError.

    A body with `learning_rate` at its top, or with a `method` that holds hyperparameters, is a run: it becomes the
    one-point sweep.
    """
    if not isinstance(values, Mapping):
        raise SpecError((("", "a spec is a mapping of keys to values, e.g. name: my-sweep"),), source)
    try:
        if "learning_rate" in values or isinstance(values.get("method"), Mapping):
            return RunSpec.model_validate(values).to_sweep()
        return SweepSpec.model_validate(values)
    except ValidationError as error:
        raise SpecError(faults_of(error), source) from error


def load_spec(path: str | Path) -> SweepSpec:
    """A spec from a .yaml, .yml or .json file. Raises SpecError: no file, malformed text (with the line), faults."""
    return parse_spec(read_spec_file(path), source=str(path))


def read_spec_file(path: str | Path) -> Any:
    """Values of a .yaml, .yml or .json file. Raises SpecError: no file, malformed text (with the line)."""
    path = Path(path)
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError((("", f"cannot read the spec file ({error.strerror}): check the path"),), str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError((("", f"not valid YAML or JSON: {' '.join(str(error).split())}"),), str(path)) from error


def with_absolute_paths(spec: SweepSpec) -> SweepSpec:
    """Local files named relative to here, by their full path: a driver inside Ray has another working directory."""

    def located(source: str | None) -> str | None:
        if source is None or source == PRACTICE or not Path(source).expanduser().exists():
            return source
        return str(Path(source).expanduser().absolute())

    dataset = spec.dataset.model_copy(update={key: located(getattr(spec.dataset, key)) for key in ("train", "eval")})
    judge = spec.judge
    if isinstance(judge, RewardModel):
        judge = judge.model_copy(update={"model": located(judge.model)})
    warm = tuple(str(Path(name).expanduser().absolute()) if "/" in name else name for name in spec.warm_start)
    return spec.model_copy(
        update={"base_model": located(spec.base_model), "dataset": dataset, "judge": judge, "warm_start": warm}
    )
