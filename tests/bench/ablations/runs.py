"""Train one arm from the base, measure it on held-out data, and keep what was found.

A run that was made before is read, not repeated. Its name is a hash over figures and data (`recipe.run_hash`), not over
code: what the code computes is held by the golden trajectories.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from simpo import practice
from simpo.checkpoint import read_manifest
from simpo.config import OptimConfig, TokenPolicy
from simpo.evaluation.judge import judge_answers
from simpo.evaluation.preference import preference_accuracy, preference_by_length
from simpo.evaluation.probes import probes
from simpo.evaluation.win_rate import win_rate
from simpo.fit import TrainState, fit
from simpo.generate import generate
from simpo.model import load_model, load_tokenizer
from simpo.objectives import objective_of
from simpo.packing import PairStore, TokenPair, build_plan
from simpo.records import Preference, load_preferences
from simpo.reference import Reference, reference_of
from simpo.scores import score_pairs
from simpo.tokenize import encode_prompt, stop_token_ids, tokenize_preferences
from tests.bench.ablations.recipe import BASE, Arm, Setting, run_hash, shared_record

Figures = dict[str, Any]
"""Of one run: {"validation": measures, "evaluation": measures, "cpu_s": CPU-seconds}. Scores are the judge's own."""

SPLITS = ("validation", "evaluation")


@dataclass(frozen=True)
class HeldOut:
    """Pairs to rank and prompts to answer."""

    pairs: list[TokenPair]
    rows: list[Preference]
    """The same pairs as text; the first `num_prompts` are asked."""
    num_prompts: int


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What all runs share."""

    setting: Setting
    base: Path
    base_cpu_s: float
    """What making the base took, now or earlier."""
    tokenizer: Any
    policy: TokenPolicy
    train: list[TokenPair]
    held_out: dict[str, HeldOut]
    runs: Path
    """Directory of the runs that are done."""
    shared: dict[str, Any]
    """What every run's name covers."""


def prepare(setting: Setting, work: Path, progress: Callable[[int, int, float], None] | None = None) -> Prepared:
    """Data and base model under `work`; what lies there already is used. progress: as in `practice.build_base`."""
    base, base_cpu_s = _base(setting, work, progress)
    data = practice.write_data(
        work / "data",
        seed=setting.data_seed,
        train=setting.train_pairs,
        validation=setting.validation_pairs,
        evaluation=setting.evaluation_pairs,
        longer_share=setting.longer_share,
    )
    tokenizer, policy = load_tokenizer(base), TokenPolicy(max_length=setting.base.max_length)

    def read(path: Path) -> tuple[list[Preference], list[TokenPair]]:
        rows = load_preferences(path).rows
        return rows, tokenize_preferences(rows, tokenizer, policy).pairs

    validation_rows, validation_pairs = read(data.validation)
    evaluation_rows, evaluation_pairs = read(data.evaluation)
    runs = work / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    return Prepared(
        setting=setting,
        base=base,
        base_cpu_s=base_cpu_s,
        tokenizer=tokenizer,
        policy=policy,
        train=read(data.train)[1],
        held_out={
            "validation": HeldOut(validation_pairs, validation_rows, setting.validation_prompts),
            "evaluation": HeldOut(evaluation_pairs, evaluation_rows, setting.prompts),
        },
        runs=runs,
        shared={"setting": shared_record(setting), "base": read_manifest(base)["recipe"], "torch": torch.__version__},
    )


def find(prepared: Prepared, arm: Arm, seed: int) -> Figures | None:
    """The figures of a run that was made before, or None."""
    try:
        kept: dict[str, Any] = json.loads(_path(prepared, arm, seed).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    figures: Figures = kept["figures"]
    return figures


def make(prepared: Prepared, arm: Arm, seed: int) -> Figures:
    """Train and measure one arm with one seed, and keep the figures. The base's run of that seed must be there."""
    started = time.process_time()
    model = load_model(prepared.base, dtype=prepared.setting.dtype)
    if arm.method is not None:
        _train(prepared, model, arm, seed)
    base = None if arm.method is None else find(prepared, BASE, seed)
    figures: Figures = {
        split: measure(
            prepared, model, split, seed=2 * seed + place, base=None if base is None else base[split]["scores"]
        )
        for place, split in enumerate(SPLITS)
    }
    figures["cpu_s"] = time.process_time() - started
    path = _path(prepared, arm, seed)
    partial = path.with_suffix(f".{os.getpid()}")
    body = {"arm": arm.record(), "seed": seed, **prepared.shared, "figures": figures}
    partial.write_text(json.dumps(body, indent=1), encoding="utf-8")
    partial.replace(path)
    return figures


def measure(prepared: Prepared, model: Any, split: str, *, seed: int, base: list[float] | None) -> dict[str, Any]:
    """Ranking of held-out pairs, and answers under the judge. base: its scores on the same prompts and seed."""
    held_out, setting = prepared.held_out[split], prepared.setting
    scores = score_pairs(model, PairStore.of(held_out.pairs).evaluation_batches(setting.token_budget))
    ranking, correlation = preference_accuracy(scores), preference_by_length(scores).correlation
    assert correlation is not None  # held-out answers vary in length and likelihood
    asked, lengths = held_out.rows[: held_out.num_prompts], [len(p.chosen) for p in held_out.pairs]
    answers = generate(
        model,
        prepared.tokenizer,
        [encode_prompt(_turns(row), prepared.tokenizer, prepared.policy) for row in asked],
        max_new_tokens=setting.max_new_tokens,
        stop_ids=stop_token_ids(prepared.tokenizer, prepared.policy),
        temperature=setting.temperature,
        seed=seed,
    )
    judged = judge_answers(practice.PracticeJudge(), [row.instruction for row in asked], [a.text for a in answers])
    return {
        "win_rate": 0.5 if base is None else win_rate(judged, base).estimate,
        "exact": sum(score == 1.0 for score in judged) / len(judged),
        "accuracy": ranking.accuracy.estimate,
        "margin": ranking.margin.estimate,
        "chosen_mean": ranking.chosen_mean,
        "spearman": correlation.estimate,
        **probes(answers, lengths[: held_out.num_prompts]),
        "scores": judged,
    }


def constant_reference(num_pairs: int, margin: float, beta: float) -> Reference:
    """R_w = gamma / beta and R_l = 0 for every pair: see `recipe.sums_arm`."""
    return Reference(torch.tensor([[margin / beta, 0.0]]).repeat(num_pairs, 1))


def _base(setting: Setting, work: Path, progress: Callable[[int, int, float], None] | None) -> tuple[Path, float]:
    note, started = work / "base_cpu_s.json", time.process_time()
    base = practice.build_base(work / "base", seed=setting.data_seed, recipe=setting.base, progress=progress)
    # A base that lay there already took no time now.
    spent = max(time.process_time() - started, json.loads(note.read_text()) if note.exists() else 0.0)
    note.write_text(json.dumps(spent))
    return base, spent


def _train(prepared: Prepared, model: Any, arm: Arm, seed: int) -> None:
    setting, method = prepared.setting, arm.method
    assert method is not None
    plan = build_plan(
        prepared.train,
        batch_pairs=setting.batch_pairs,
        steps=setting.steps,
        token_budget=setting.token_budget,
        seed=seed,
    )
    reference = None
    if arm.constant_margin is not None:
        reference = constant_reference(len(prepared.train), arm.constant_margin, method_beta(arm))
    elif objective_of(method).needs_reference:
        reference = reference_of(model, plan)
    state = TrainState.fresh(model, OptimConfig(learning_rate=arm.learning_rate), setting.steps)
    for _ in fit(state, plan, method, reference=reference):
        pass


def method_beta(arm: Arm) -> float:
    """The beta of an arm that has one."""
    return float(arm.record()["method"]["beta"])


def _path(prepared: Prepared, arm: Arm, seed: int) -> Path:
    return prepared.runs / f"{run_hash(prepared.shared, arm, seed)}.json"


def _turns(row: Preference) -> Any:
    return row.prompt if isinstance(row.prompt, str) else list(row.prompt)
