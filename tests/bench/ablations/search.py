"""All runs in order: the base, three grids, then every arm with every seed. Ends in one record.

The record is plain JSON: the setting, what each grid saw, every arm's figures seed by seed. Means, intervals and
verdicts are computed from it (`table`), so that they cannot disagree with it.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.ablations.recipe import (
    BASE,
    Arm,
    Setting,
    dpo_grid,
    final_arms,
    setting_record,
    simpo_grid,
    sums_grid,
)
from tests.bench.ablations.runs import Figures, Prepared, find, make, prepare

Record = dict[str, Any]
Say = Callable[[str], None]

TUNING_SEED = 0


def ablate(setting: Setting, work: Path, say: Say) -> Record:
    """Make every run that is not there yet, and return the record."""

    def base_made(step: int, steps: int, loss: float) -> None:
        if step % 160 == 0 or step == steps:
            say(f"base model: step {step} of {steps}, loss {loss:.2f}")

    bench = _Bench(prepare(setting, work, base_made), say)
    for seed in range(setting.seeds):
        bench.figures(BASE, seed)
    simpo = bench.best("simpo", simpo_grid(setting))
    margin = setting.ratio * simpo.record()["method"]["beta"]
    sums = bench.best("sums", sums_grid(setting, margin))
    dpo = bench.best("dpo", dpo_grid(setting))
    arms = [
        {
            "key": arm.key,
            "label": arm.label,
            **arm.record(),
            "seeds": [_without_scores(bench.figures(arm, seed)) for seed in range(setting.seeds)],
        }
        for arm in final_arms(setting, simpo, sums, dpo)
    ]
    return {
        "setting": setting_record(setting),
        "torch": bench.prepared.shared["torch"],
        "cpu_minutes": round((bench.prepared.base_cpu_s + sum(bench.cpu_s.values())) / 60, 1),
        "tuning": bench.tuning,
        "arms": arms,
    }


class _Bench:
    """Runs on demand, with a word about each."""

    def __init__(self, prepared: Prepared, say: Say) -> None:
        self.prepared, self.say = prepared, say
        self.tuning: dict[str, list[dict[str, Any]]] = {}
        self.cpu_s: dict[str, float] = {}
        """By run; also what runs took that were made earlier."""
        setting = prepared.setting
        grids = len(setting.learning_rates) * (len(setting.simpo_betas) + 3 * len(setting.sum_betas))
        # The tuned points are trained with the tuning seed already.
        self.total = setting.seeds * (5 + len(setting.ratios)) + grids - 3

    def figures(self, arm: Arm, seed: int) -> Figures:
        """Of a run, made now unless it is there."""
        name = f"{arm.record()} {seed}"
        made = find(self.prepared, arm, seed)
        figures = made or make(self.prepared, arm, seed)
        if name not in self.cpu_s:
            self.cpu_s[name] = figures["cpu_s"]
            self.say(f"{self._place()} {arm.label or arm.key}, seed {seed}: {_gist(figures)}{' (kept)' * bool(made)}")
        return figures

    def best(self, family: str, grid: list[Arm]) -> Arm:
        """The point with the highest win rate on the validation prompts."""
        seen = [self.figures(arm, TUNING_SEED)["validation"] for arm in grid]
        self.tuning[family] = [
            {**arm.record(), "win_rate": found["win_rate"], "mean_tokens": found["mean_tokens"]}
            for arm, found in zip(grid, seen, strict=True)
        ]
        return grid[max(range(len(grid)), key=lambda i: seen[i]["win_rate"])]

    def _place(self) -> str:
        """[12 of 71, about 9 CPU-minutes left]."""
        done = len(self.cpu_s)
        trained = [seconds for name, seconds in self.cpu_s.items() if "None, 'learning_rate': 0.0" not in name]
        left = (self.total - done) * statistics.mean(trained or [0.0]) / 60
        return f"[{done} of {self.total}" + (f", about {left:.0f} CPU-minutes left]" if trained else "]")


def _gist(figures: Figures) -> str:
    seen = figures["evaluation"]
    return (
        f"win rate {seen['win_rate']:.3f}, accuracy {seen['accuracy']:.3f}, Spearman {seen['spearman']:+.2f}, "
        f"{seen['mean_tokens']:.1f} tokens, {figures['cpu_s']:.0f} s"
    )


def _without_scores(figures: Figures) -> Figures:
    """For the record: the judge's single scores stay with the run."""
    splits = ("validation", "evaluation")
    rounded = {
        split: {key: round(value, 5) for key, value in figures[split].items() if key != "scores"} for split in splits
    }
    return {**rounded, "cpu_s": round(figures["cpu_s"], 1)}
