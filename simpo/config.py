"""What a person can set: frozen, keyword-only dataclasses, one per method, prose under each field.

Standard library only, so that the control plane can read it without torch. The classes nest in pydantic models as they
are: `__pydantic_config__` makes an unknown key an error there too.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from simpo.errors import ConfigError

Dimension = Mapping[str, Any]
"""One axis of a search space in the form of a sweep spec, e.g. {"type": "log_float", "low": 1e-7, "high": 2e-6}."""

_LEARNING_RATE: Dimension = {"type": "log_float", "low": 1e-7, "high": 2e-6}  # science: SimPO README, never above 1e-5


@dataclass(frozen=True, kw_only=True)
class SimPO:
    """SimPO (Meng, Xia, Chen 2024, Eq. 6): length-normalised reward, target margin, no reference model."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    name: ClassVar[str] = "simpo"
    needs_reference: ClassVar[bool] = False
    space: ClassVar[Mapping[str, Dimension]] = {
        "learning_rate": _LEARNING_RATE,
        "beta": {"type": "log_float", "low": 1.0, "high": 20.0},
        "gamma_beta_ratio": {"type": "float", "low": 0.0, "high": 1.0},
    }
    presets: ClassVar[tuple[Mapping[str, float], ...]] = (  # the authors' released settings, SimPO README
        {"learning_rate": 3e-7, "beta": 2.0, "gamma_beta_ratio": 0.8},
        {"learning_rate": 5e-7, "beta": 2.5, "gamma_beta_ratio": 0.1},
        {"learning_rate": 6e-7, "beta": 2.0, "gamma_beta_ratio": 0.5},
        {"learning_rate": 1e-6, "beta": 2.5, "gamma_beta_ratio": 0.55},
        {"learning_rate": 1e-6, "beta": 10.0, "gamma_beta_ratio": 0.3},
        {"learning_rate": 8e-7, "beta": 10.0, "gamma_beta_ratio": 0.5},
    )

    beta: float = 2.0
    """Scale of the reward beta * mean log-probability. Far larger than DPO's: 2 to 10."""
    gamma_beta_ratio: float | None = None
    """Target margin divided by beta, in [0, 1] as a rule. 0.5 when neither this nor `gamma` is given."""
    gamma: float | None = None
    """Absolute target margin, an alias: becomes gamma_beta_ratio = gamma / beta. Giving both is refused."""
    label_smoothing: float = 0.0
    """Share of labels believed flipped, in [0, 0.5]. Only with loss_type sigmoid."""
    loss_type: Literal["sigmoid", "hinge"] = "sigmoid"
    """sigmoid: -log sigma(d). hinge: max(0, 1 - d). d = difference of rewards - gamma."""
    sft_weight: float = 0.0
    """Weight of an added token-mean NLL of the chosen responses. 0 is SimPO as published."""

    def __post_init__(self) -> None:
        _positive(self, "beta")
        if self.gamma is not None and self.gamma_beta_ratio is not None:
            raise ConfigError("give gamma or gamma_beta_ratio, not both (gamma = beta * gamma_beta_ratio)", "gamma")
        if self.gamma is not None:
            _not_negative(self, "gamma")
            object.__setattr__(self, "gamma_beta_ratio", self.gamma / self.beta)
            object.__setattr__(self, "gamma", None)
        if self.gamma_beta_ratio is None:
            object.__setattr__(self, "gamma_beta_ratio", 0.5)
        _not_negative(self, "gamma_beta_ratio")
        _in_range(self, "label_smoothing", 0.0, 0.5)
        _not_negative(self, "sft_weight")
        _one_of(self, "loss_type", ("sigmoid", "hinge"))
        if self.loss_type == "hinge" and self.label_smoothing:
            raise ConfigError("has no meaning for the hinge: set it to 0 or use sigmoid", "label_smoothing")

    @property
    def margin(self) -> float:
        """gamma = beta * gamma_beta_ratio, in units of reward."""
        assert self.gamma_beta_ratio is not None  # settled in __post_init__
        return self.beta * self.gamma_beta_ratio


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Direct Preference Optimization (Rafailov et al. 2023, Eq. 7): summed log-ratios against a frozen reference."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    name: ClassVar[str] = "dpo"
    needs_reference: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Dimension]] = {
        "learning_rate": _LEARNING_RATE,
        "beta": {"type": "log_float", "low": 0.005, "high": 0.2},
    }
    presets: ClassVar[tuple[Mapping[str, float], ...]] = (  # best DPO points of the SimPO authors: beta 0.01 everywhere
        {"learning_rate": 5e-7, "beta": 0.01},
        {"learning_rate": 7e-7, "beta": 0.01},
        {"learning_rate": 3e-7, "beta": 0.01},
    )

    beta: float = 0.1
    """Strength of the pull towards the reference model: 0.01 to 0.1 as a rule."""

    def __post_init__(self) -> None:
        _positive(self, "beta")


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Supervised fine-tuning on the chosen responses: token-mean negative log-likelihood over the global batch."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    name: ClassVar[str] = "sft"
    needs_reference: ClassVar[bool] = False
    space: ClassVar[Mapping[str, Dimension]] = {"learning_rate": {"type": "log_float", "low": 1e-6, "high": 5e-5}}
    presets: ClassVar[tuple[Mapping[str, float], ...]] = ({"learning_rate": 2e-5},)


Method = SimPO | DPO | SFT
METHODS: Mapping[str, type[SimPO] | type[DPO] | type[SFT]] = {cls.name: cls for cls in (SimPO, DPO, SFT)}
"""Every method by name, with its default search space; `simpo.objectives.OBJECTIVES` adds the loss functions."""


def method_from_dict(values: Mapping[str, Any]) -> Method:
    """A method's config from {"name": ..., hyperparameter: value, ...}; unknown names and keys are refused by name."""
    rest = dict(values)
    name = rest.pop("name", None)
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}: use one of {', '.join(sorted(METHODS))}", "method.name")
    known = hyperparameters(METHODS[name])
    for key in rest:
        if key not in known:
            has = ", ".join(known) or "none"
            raise ConfigError(f"{name} has no hyperparameter {key!r}: it has {has}", f"method.{key}")
    return METHODS[name](**rest)


def method_to_dict(method: Method) -> dict[str, Any]:
    """The inverse of `method_from_dict`: plain JSON values, without the alias `gamma`."""
    values = {key: value for key, value in dataclasses.asdict(method).items() if key != "gamma"}
    return {"name": method.name, **values}


def hyperparameters(cls: type[Any]) -> tuple[str, ...]:
    """The names a user may set on a method's config, in order."""
    return tuple(field.name for field in dataclasses.fields(cls))


@dataclass(frozen=True, kw_only=True)
class TokenPolicy:
    """How text becomes token ids; hashed into every manifest. Training, evaluation and serving use the same one."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    max_length: int = 1024
    """Most tokens of prompt + the longer response."""
    truncation: Literal["drop"] = "drop"
    """What happens to a pair over max_length: it is dropped and counted. Nothing is ever cut silently."""
    count_assistant_header: bool = False
    """False: the assistant header belongs to the prompt (TRL's rule). True: to the response (the authors' code)."""

    def __post_init__(self) -> None:
        _at_least(self, "max_length", 8)
        _one_of(self, "truncation", ("drop",))


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    learning_rate: float
    """Peak rate. The most important hyperparameter of SimPO: 3e-7 to 1e-6 for 7B models, never 1e-5 (SimPO README)."""
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    """wsd: warm up, hold, decay at the end, so that rung scores do not depend on the planned length. cosine: paper."""
    warmup_fraction: float = 0.1
    """Share of all steps with a linear rise from 0."""
    decay_fraction: float = 0.2
    """Share of all steps with a linear fall to 0 at the end (wsd only)."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on every parameter of two or more dimensions."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Adam's denominator floor."""
    max_grad_norm: float = 1.0
    """Global gradient norm above which the gradient is scaled down."""

    def __post_init__(self) -> None:
        _positive(self, "learning_rate")
        _one_of(self, "schedule", ("wsd", "cosine", "constant"))
        _in_range(self, "warmup_fraction", 0.0, 1.0)
        _in_range(self, "decay_fraction", 0.0, 1.0)
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1.0:
            raise ConfigError("warmup_fraction + decay_fraction must not exceed 1: lower one of them", "decay_fraction")
        _not_negative(self, "weight_decay")
        _in_range(self, "beta1", 0.0, 1.0)
        _in_range(self, "beta2", 0.0, 1.0)
        _positive(self, "eps")
        _positive(self, "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The run itself: how long, in which batches, in which precision."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    steps: int
    """Optimiser steps at full budget."""
    batch_pairs: int = 128
    """Pairs in one optimiser step (the global batch over all workers). The paper: 128."""
    token_budget: int = 16384
    """Most unique tokens in one packed micro-batch; a single longer pair gets a micro-batch of its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward products. Weights, sums, normalisation and loss are float32 always."""
    seed: int = 0
    """Order of the pairs and every random choice of training."""

    def __post_init__(self) -> None:
        _at_least(self, "steps", 1)
        _at_least(self, "batch_pairs", 1)
        _at_least(self, "token_budget", 1)
        _one_of(self, "dtype", ("float32", "bfloat16"))
        _at_least(self, "seed", 0)


def _number(config: object, field: str) -> float:
    value = getattr(config, field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"must be a finite number, not {value!r}", field)
    return float(value)


def _positive(config: object, field: str) -> None:
    if _number(config, field) <= 0:
        raise ConfigError(f"must be greater than 0, not {getattr(config, field)!r}", field)


def _not_negative(config: object, field: str) -> None:
    if _number(config, field) < 0:
        raise ConfigError(f"must not be negative, not {getattr(config, field)!r}", field)


def _in_range(config: object, field: str, low: float, high: float) -> None:
    if not low <= _number(config, field) <= high:
        raise ConfigError(f"must lie in [{low:g}, {high:g}], not {getattr(config, field)!r}", field)


def _at_least(config: object, field: str, low: int) -> None:
    value = getattr(config, field)
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"must be a whole number of at least {low}, not {value!r}", field)


def _one_of(config: object, field: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, field)
    if value not in choices:
        raise ConfigError(f"must be one of {', '.join(choices)}, not {value!r}", field)
