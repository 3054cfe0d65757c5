"""The methods a person can choose, one frozen keyword-only dataclass each: hyperparameters, search space, presets.

Standard library only, so that the control plane can read it without torch; the loss functions are in `objectives.py`.
The classes nest in pydantic models as they are: `__pydantic_config__` makes an unknown key an error there too.

Spaces are the SimPO paper's (Table 7, App. B), widened where its README says so. Presets are released points.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from simpo.checks import in_range, not_negative, one_of, positive
from simpo.errors import ConfigError

Dimension = Mapping[str, Any]
"""One axis of a search space in the form of a sweep spec, e.g. {"type": "log_float", "low": 1e-7, "high": 2e-6}."""

Nll = Literal["sum", "mean", "token_mean"]
"""Normalisation of a negative log-likelihood term. sum: -S_w. mean: -S_w / n_w. token_mean: the mean over all chosen
tokens of the global batch. Published forms differ in this; it moves the best weight by orders of magnitude."""

DpoLoss = Literal["sigmoid", "hinge", "exo", "nca", "apo_zero", "apo_down", "bco", "sppo", "discopop"]
"""Losses on DPO's two log-ratios."""

_LEARNING_RATE: Dimension = {"type": "log_float", "low": 1e-7, "high": 2e-6}  # SimPO README: never 1e-5
_DPO_BETA: Dimension = {"type": "log_float", "low": 0.005, "high": 0.2}
_SFT_WEIGHT: Dimension = {"type": "log_float", "low": 0.05, "high": 10.0}
_BEST_DPO = ({"learning_rate": 5e-7, "beta": 0.01}, {"learning_rate": 7e-7, "beta": 0.01})


@dataclass(frozen=True, kw_only=True)
class _Method:
    """What every method has. Not a method itself."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    name: ClassVar[str]
    needs_reference: ClassVar[bool] = False
    space: ClassVar[Mapping[str, Dimension]]
    """The default search space; keys are learning_rate and fields of the class."""
    presets: ClassVar[tuple[Mapping[str, float], ...]] = ()
    """Points that the method's or SimPO's authors released."""


@dataclass(frozen=True, kw_only=True)
class SimPO(_Method):
    """SimPO (Meng, Xia, Chen 2024, Eq. 6): length-normalised reward, target margin, no reference model."""

    name: ClassVar[str] = "simpo"
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
        positive(self, "beta")
        _settle_margin(self, default_ratio=0.5)
        in_range(self, "label_smoothing", 0.0, 0.5)
        not_negative(self, "sft_weight")
        one_of(self, "loss_type", ("sigmoid", "hinge"))
        if self.loss_type == "hinge" and self.label_smoothing:
            raise ConfigError("has no meaning for the hinge: set it to 0 or use sigmoid", "label_smoothing")

    @property
    def margin(self) -> float:
        """gamma = beta * gamma_beta_ratio, in units of reward."""
        return _margin(self)


@dataclass(frozen=True, kw_only=True)
class AlphaPO(_Method):
    """AlphaPO (arXiv 2501.03884): SimPO with the reward bent by alpha; alpha -> 0 is SimPO."""

    name: ClassVar[str] = "alphapo"
    space: ClassVar[Mapping[str, Dimension]] = {
        **SimPO.space,
        "alpha": {"type": "categorical", "choices": [-0.25, -0.1, 0.1, 0.25]},
    }

    beta: float = 2.5
    """Scale of the reward."""
    alpha: float = 0.25
    """Shape of the reward (1 - exp(-alpha a)) / alpha. Not 0: that is the method simpo."""
    gamma_beta_ratio: float | None = None
    """Target margin divided by beta. 0.1 when neither this nor `gamma` is given."""
    gamma: float | None = None
    """Absolute target margin, an alias as in SimPO."""

    def __post_init__(self) -> None:
        positive(self, "beta")
        _settle_margin(self, default_ratio=0.1)
        in_range(self, "alpha", -2.0, 2.0)
        if self.alpha == 0:
            raise ConfigError("must not be 0: that is the method simpo", "alpha")

    @property
    def margin(self) -> float:
        """gamma = beta * gamma_beta_ratio, in units of reward."""
        return _margin(self)


@dataclass(frozen=True, kw_only=True)
class DPO(_Method):
    """Direct Preference Optimization (Rafailov et al. 2023, Eq. 7): summed log-ratios against a frozen reference."""

    name: ClassVar[str] = "dpo"
    needs_reference: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Dimension]] = {"learning_rate": _LEARNING_RATE, "beta": _DPO_BETA}
    presets: ClassVar[tuple[Mapping[str, float], ...]] = (*_BEST_DPO, {"learning_rate": 3e-7, "beta": 0.01})

    beta: float = 0.1
    """Strength of the pull towards the reference model: 0.01 to 0.1 as a rule; at least 5 with length_normalised."""
    label_smoothing: float = 0.0
    """Share of labels believed flipped, in [0, 0.5): conservative DPO, robust DPO with `robust`, EXO's target."""
    robust: bool = False
    """Unbiased form for noisy labels (Chowdhury et al. 2024) instead of the conservative one."""
    length_normalised: bool = False
    """Log-ratios per token instead of summed (Tulu 3's length-normalised DPO). Only with loss_type sigmoid."""
    loss_type: DpoLoss = "sigmoid"
    """The loss made of the two log-ratios; see `objectives.dpo` for the equations and their sources."""
    tau: float = 0.05
    """Temperature of discopop's blend; no other loss_type reads it."""

    def __post_init__(self) -> None:
        positive(self, "beta")
        in_range(self, "label_smoothing", 0.0, 0.499)
        one_of(self, "loss_type", get_args(DpoLoss))
        positive(self, "tau")
        if self.robust and not self.label_smoothing:
            raise ConfigError("needs label_smoothing above 0: it is the assumed share of flipped labels", "robust")
        if self.loss_type == "exo" and not self.label_smoothing:
            raise ConfigError("exo needs it above 0 (1e-3 as a rule): its logarithm is taken", "label_smoothing")
        if self.loss_type not in ("sigmoid", "exo") and self.label_smoothing:
            raise ConfigError(f"has no meaning for {self.loss_type}: set it to 0", "label_smoothing")
        if self.loss_type != "sigmoid" and (self.robust or self.length_normalised):
            field = "robust" if self.robust else "length_normalised"
            raise ConfigError(f"has no meaning for {self.loss_type}: use sigmoid", field)
        if self.loss_type != "discopop" and self.tau != type(self).tau:
            raise ConfigError(f"has no meaning for {self.loss_type}: leave it out", "tau")


@dataclass(frozen=True, kw_only=True)
class RDPO(_Method):
    """R-DPO (Park et al. 2024, Eq. 9 of arXiv 2403.19159): DPO with a length term that discourages long answers."""

    name: ClassVar[str] = "rdpo"
    needs_reference: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Dimension]] = {
        "learning_rate": _LEARNING_RATE,
        "beta": _DPO_BETA,
        "alpha": {"type": "log_float", "low": 0.005, "high": 1.0},
    }

    beta: float = 0.1
    """As in DPO."""
    alpha: float = 0.05
    """Reward given up per token of length. Positive discourages length."""

    def __post_init__(self) -> None:
        positive(self, "beta")
        not_negative(self, "alpha")


@dataclass(frozen=True, kw_only=True)
class IPO(_Method):
    """IPO (Azar et al. 2023, arXiv 2310.12036, Eq. 17): squared distance of the log-ratio to 1 / (2 tau)."""

    name: ClassVar[str] = "ipo"
    needs_reference: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Dimension]] = {
        "learning_rate": _LEARNING_RATE,
        "tau": {"type": "log_float", "low": 0.01, "high": 1.0},
    }

    tau: float = 0.1
    """Strength of the regularisation towards the reference."""
    average: bool = True
    """Log-ratios per token (TRL and HALOs, confirmed there by the authors) instead of summed (the paper)."""

    def __post_init__(self) -> None:
        positive(self, "tau")


@dataclass(frozen=True, kw_only=True)
class CPO(_Method):
    """CPO (Xu et al. 2024, arXiv 2401.08417, Eq. 5): DPO without its reference, plus the NLL of the chosen response."""

    name: ClassVar[str] = "cpo"
    space: ClassVar[Mapping[str, Dimension]] = {"learning_rate": _LEARNING_RATE, "beta": _DPO_BETA}

    beta: float = 0.1
    """Scale of the summed log-probabilities."""
    sft_weight: float = 1.0
    """Weight lambda of the NLL term; the paper's 1."""
    nll: Nll = "token_mean"
    """How the NLL is normalised: token_mean in the authors' code, sum in the SimPO paper's table."""

    def __post_init__(self) -> None:
        positive(self, "beta")
        not_negative(self, "sft_weight")
        one_of(self, "nll", ("sum", "mean", "token_mean"))


@dataclass(frozen=True, kw_only=True)
class SLiC(_Method):
    """SLiC-HF (Zhao et al. 2023, arXiv 2305.10425): hinge on summed log-probabilities, plus NLL of the chosen."""

    name: ClassVar[str] = "slic"
    space: ClassVar[Mapping[str, Dimension]] = {
        "learning_rate": _LEARNING_RATE,
        "delta": {"type": "log_float", "low": 0.1, "high": 10.0},
        "sft_weight": _SFT_WEIGHT,
    }

    delta: float = 1.0
    """Margin in nats between the summed log-probabilities."""
    sft_weight: float = 0.1
    """Weight lambda of the NLL term."""
    nll: Nll = "sum"
    """How the NLL is normalised; the paper sums."""

    def __post_init__(self) -> None:
        positive(self, "delta")
        not_negative(self, "sft_weight")
        one_of(self, "nll", ("sum", "mean", "token_mean"))


@dataclass(frozen=True, kw_only=True)
class RRHF(_Method):
    """RRHF (Yuan et al. 2023, arXiv 2304.05302): hinge on averaged log-probabilities, plus NLL of the chosen."""

    name: ClassVar[str] = "rrhf"
    space: ClassVar[Mapping[str, Dimension]] = {"learning_rate": _LEARNING_RATE, "sft_weight": _SFT_WEIGHT}

    sft_weight: float = 1.0
    """Weight lambda of the NLL term."""
    nll: Nll = "sum"
    """How the NLL is normalised; the SimPO paper's table sums, the original code averages (mean)."""

    def __post_init__(self) -> None:
        not_negative(self, "sft_weight")
        one_of(self, "nll", ("sum", "mean", "token_mean"))


@dataclass(frozen=True, kw_only=True)
class ORPO(_Method):
    """ORPO (Hong, Lee, Thorne 2024, arXiv 2403.07691, Eq. 6): NLL of the chosen response plus a log odds ratio."""

    name: ClassVar[str] = "orpo"
    space: ClassVar[Mapping[str, Dimension]] = {
        "learning_rate": _LEARNING_RATE,
        "odds_weight": {"type": "log_float", "low": 0.05, "high": 2.0},
    }

    odds_weight: float = 0.1
    """Weight lambda of the odds-ratio term."""
    nll: Nll = "mean"
    """How the NLL is normalised; the paper averages over each response."""

    def __post_init__(self) -> None:
        not_negative(self, "odds_weight")
        one_of(self, "nll", ("sum", "mean", "token_mean"))


@dataclass(frozen=True, kw_only=True)
class KTO(_Method):
    """KTO (Ethayarajh et al. 2024, arXiv 2402.01306, Eq. 8): each response judged alone against a batch KL estimate."""

    name: ClassVar[str] = "kto"
    needs_reference: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Dimension]] = {"learning_rate": _LEARNING_RATE, "beta": _DPO_BETA}

    beta: float = 0.1
    """Risk aversion: scale of the log-ratios."""
    desirable_weight: float = 1.0
    """lambda_w of the chosen responses."""
    undesirable_weight: float = 1.0
    """lambda_l of the rejected responses."""

    def __post_init__(self) -> None:
        positive(self, "beta", "desirable_weight", "undesirable_weight")


@dataclass(frozen=True, kw_only=True)
class SFT(_Method):
    """Supervised fine-tuning on the chosen responses: token-mean negative log-likelihood over the global batch."""

    name: ClassVar[str] = "sft"
    space: ClassVar[Mapping[str, Dimension]] = {"learning_rate": {"type": "log_float", "low": 1e-6, "high": 5e-5}}
    presets: ClassVar[tuple[Mapping[str, float], ...]] = ({"learning_rate": 2e-5},)


Method = SimPO | AlphaPO | DPO | RDPO | IPO | CPO | SLiC | RRHF | ORPO | KTO | SFT
METHODS: Mapping[str, type[Method]] = {
    cls.name: cls for cls in (SFT, RRHF, SLiC, DPO, IPO, CPO, KTO, ORPO, RDPO, SimPO, AlphaPO)
}
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


def _settle_margin(method: Any, *, default_ratio: float) -> None:
    """Turn the alias `gamma` into gamma_beta_ratio; refuse both."""
    if method.gamma is not None and method.gamma_beta_ratio is not None:
        raise ConfigError("give gamma or gamma_beta_ratio, not both (gamma = beta * gamma_beta_ratio)", "gamma")
    if method.gamma is not None:
        not_negative(method, "gamma")
        object.__setattr__(method, "gamma_beta_ratio", method.gamma / method.beta)
        object.__setattr__(method, "gamma", None)
    if method.gamma_beta_ratio is None:
        object.__setattr__(method, "gamma_beta_ratio", default_ratio)
    not_negative(method, "gamma_beta_ratio")


def _margin(method: Any) -> float:
    return float(method.beta * method.gamma_beta_ratio)
