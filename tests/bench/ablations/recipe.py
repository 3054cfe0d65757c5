"""What is trained: one setting for all, a grid a family, and the arms that are compared. Standard library and configs.

Each family (SimPO, SimPO without length normalisation, DPO) is tuned over a grid, the best point by win rate on the
validation prompts; then every arm is trained from the same base on the same batches. No rival has fewer points than
SimPO, so that an ablation is not won by tuning.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simpo.methods import DPO, Method, SimPO, method_to_dict
from simpo.practice import BaseRecipe


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs share: the quickstart's training, on data with the length bias of real preferences."""

    longer_share: float = 0.65
    """How often the chosen answer is the longer one. Real preference data has 0.6 to 0.75; the quickstart 0.2."""
    data_seed: int = 0
    """Of the practice data and the base model."""
    train_pairs: int = 2000
    validation_pairs: int = 256
    evaluation_pairs: int = 600
    steps: int = 120
    """Optimiser steps."""
    batch_pairs: int = 32
    token_budget: int = 4096
    dtype: str = "float32"
    prompts: int = 500
    """Evaluation prompts that are answered and judged."""
    validation_prompts: int = 256
    """The same of the validation split, by which hyperparameters are chosen."""
    max_new_tokens: int = 48
    temperature: float = 1.0
    seeds: int = 5
    """Training seeds: each its own order of batches and its own sampling, alike in all arms."""
    learning_rates: tuple[float, ...] = (2.5e-5, 5e-5, 1e-4)
    simpo_betas: tuple[float, ...] = (2.0, 5.0, 10.0)
    sum_betas: tuple[float, ...] = (0.3, 1.0, 3.0)
    """Of the arms on summed log-probabilities: about SimPO's divided by `mean_tokens`."""
    ratio: float = 0.5
    """gamma / beta while beta and learning rate are chosen: where SimPO's authors start."""
    mean_tokens: float = 7.0
    """Of an answer: what a margin a token becomes on sums."""
    ratios: tuple[float, ...] = (0.0, 0.25, 1.0, 1.5, 2.0)
    """The others that are tried afterwards."""
    base: BaseRecipe = field(default_factory=BaseRecipe)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One thing to train."""

    key: str
    """Its name in the record."""
    label: str = ""
    """Its name in the table."""
    method: Method | None = None
    """None: the base as it is."""
    learning_rate: float = 0.0
    constant_margin: float | None = None
    """SimPO without length normalisation: the margin gamma of DPO against a constant reference (`sums_arm`)."""

    def record(self) -> dict[str, Any]:
        """What decides the result, as plain JSON values."""
        return {
            "method": None if self.method is None else method_to_dict(self.method),
            "learning_rate": self.learning_rate,
            "constant_margin": self.constant_margin,
        }


BASE = Arm(key="base", label="before preference training")


def simpo_grid(setting: Setting) -> list[Arm]:
    """SimPO's points: beta and learning rate, gamma / beta fixed."""
    return [
        Arm(key=f"simpo-{i}", method=SimPO(beta=beta, gamma_beta_ratio=setting.ratio), learning_rate=learning_rate)
        for i, (learning_rate, beta) in enumerate(_points(setting, setting.simpo_betas))
    ]


def sums_grid(setting: Setting, kept_margin: float) -> list[Arm]:
    """Points of SimPO without length normalisation: each with SimPO's own gamma, and with its gamma / beta on sums."""
    points = [
        (learning_rate, beta, margin)
        for learning_rate, beta in _points(setting, setting.sum_betas)
        for margin in (kept_margin, setting.ratio * setting.mean_tokens * beta)
    ]
    return [
        sums_arm(f"sums-{i}", "", beta=beta, margin=margin, learning_rate=learning_rate)
        for i, (learning_rate, beta, margin) in enumerate(points)
    ]


def dpo_grid(setting: Setting) -> list[Arm]:
    """DPO's points."""
    return [
        Arm(key=f"dpo-{i}", method=DPO(beta=beta), learning_rate=learning_rate)
        for i, (learning_rate, beta) in enumerate(_points(setting, setting.sum_betas))
    ]


def final_arms(setting: Setting, simpo: Arm, sums: Arm, dpo: Arm) -> list[Arm]:
    """The rows of the table, given the best point of each family."""
    tuned = simpo.method
    assert isinstance(tuned, SimPO)
    ratios = [
        Arm(
            key=ratio_key(ratio),
            label=f"SimPO, gamma/beta {ratio:g}" if ratio else "SimPO, gamma = 0",
            method=dataclasses.replace(tuned, gamma_beta_ratio=ratio),
            learning_rate=simpo.learning_rate,
        )
        for ratio in setting.ratios
    ]
    kept = sums_arm(
        "sums-kept",
        "no length normalisation, SimPO's beta and lr",
        beta=tuned.beta,
        margin=tuned.margin,
        learning_rate=simpo.learning_rate,
    )
    return [
        BASE,
        dataclasses.replace(simpo, key="simpo", label=f"SimPO, gamma/beta {setting.ratio:g}"),
        *ratios,
        dataclasses.replace(sums, key="sums", label="no length normalisation, tuned again"),
        kept,
        dataclasses.replace(dpo, key="dpo", label="DPO"),
    ]


def ratio_key(ratio: float) -> str:
    """The record's name of SimPO with another gamma / beta."""
    return f"ratio-{ratio:g}"


def sums_arm(key: str, label: str, *, beta: float, margin: float, learning_rate: float) -> Arm:
    """SimPO without length normalisation: L = -log sigma(beta * (S_w - S_l) - gamma), the ablation of its Table 5.

    No method of the library has this form, and none is needed: DPO's h = (S_w - R_w) - (S_l - R_l) with the constant
    reference R_w = gamma / beta, R_l = 0 is S_w - S_l - gamma / beta.
    """
    return Arm(key=key, label=label, method=DPO(beta=beta), learning_rate=learning_rate, constant_margin=margin)


def setting_record(setting: Setting) -> dict[str, Any]:
    """The setting as it reads back from JSON."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(setting)))
    return values


def run_hash(shared: Mapping[str, Any], arm: Arm, seed: int) -> str:
    """Name of a run: over all that decides its figures, and not over what other arms are tried.

    shared: the setting's own part and the base model's recipe hash (`runs.Prepared.shared`).
    """
    body = {"shared": shared, "arm": arm.record(), "seed": seed}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:20]


def shared_record(setting: Setting) -> dict[str, Any]:
    """Those fields of a setting that every run depends on: not the grids, not the number of seeds."""
    choices = ("seeds", "learning_rates", "simpo_betas", "sum_betas", "mean_tokens", "ratio", "ratios")
    return {key: value for key, value in setting_record(setting).items() if key not in choices}


def _points(setting: Setting, betas: Sequence[float]) -> list[tuple[float, float]]:
    return [(learning_rate, beta) for learning_rate in setting.learning_rates for beta in betas]
