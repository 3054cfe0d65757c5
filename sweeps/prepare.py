"""From a spec to a sealed prepared directory: data, splits, base model, plan, held-out sets, base answers.

Everything here is a function of the spec: a resumed attempt that has to prepare again gets the same bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simpo import practice
from simpo.errors import DataError
from simpo.lora import adapted_layers
from simpo.model import load_model, load_tokenizer
from simpo.objectives import OBJECTIVES
from simpo.packing import PairStore, TokenPair, build_plan
from simpo.records import Preference, Records, load_preferences
from simpo.reference import ReferenceCost, reference_of
from simpo.tokenize import encode_prompt, stop_token_ids, tokenize_preferences
from sweeps.judges import judge_of
from sweeps.measure import Measurement, measure
from sweeps.prepared import BASE, Facts, HeldOut, save_facts
from sweeps.small_base import build_small_base
from sweeps.spec import PRACTICE, SweepSpec, spec_hash

Progress = Callable[[float, str], None]
"""(share done from 0 to 1, what is being done)."""

EVALUATION_ROWS = 600
"""Least rows of the practice task's own evaluation set."""

RUNG_SEED, REPORT_SEED = 1, 2
"""Seeds of generation, the same for every model that is compared, apart for every comparison."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Who sees which rows."""

    train: list[Preference]
    """The trials learn from these."""
    rungs: list[Preference]
    """Rungs and the choice among finalists use these."""
    report: list[Preference]
    """Only the final report uses these."""
    dropped: dict[str, int]
    """Unusable rows of the sources, by reason."""


def read_inputs(spec: SweepSpec, directory: Path) -> Splits:
    """The splits, after a look at the base model: what a user must mend shows here, before anything slow begins.

    Raises DataError, ModelError.
    """
    if spec.base_model != PRACTICE:
        stop_token_ids(load_tokenizer(spec.base_model), spec.tokens)
    directory.mkdir(parents=True, exist_ok=True)
    return read_splits(spec, directory)


def prepare(
    spec: SweepSpec,
    splits: Splits,
    directory: Path,
    progress: Progress,
    *,
    threads: int = 1,
    references: Path | None = None,
) -> Facts:
    """Fill `directory` and seal it. `threads` make the base model, where one is made.

    references: where reference log-probabilities are looked up and kept; None computes them all.
    Raises DataError, ModelError, ConfigError for what the user must mend.
    """
    with _threads(threads):
        base = _base(spec, directory, splits, progress)
    tokenizer = load_tokenizer(base, chat_template=spec.tokens.chat_template)
    progress(0.8, "tokenising")
    dropped, truncated = dict(splits.dropped), dict[str, int]()
    train = _token_pairs(spec, splits.train, tokenizer, dropped, truncated)[0]
    objective = OBJECTIVES[spec.method]
    plan = build_plan(
        train,
        batch_pairs=spec.train.batch_pairs,
        steps=spec.budget.steps,
        token_budget=spec.train.token_budget,
        seed=spec.seed,
        chosen_only=objective.chosen_only,
    )
    plan.save(directory / "plan.safetensors")
    rungs = _held_out(spec, splits.rungs, tokenizer, dropped, truncated, spec.evaluation.rung_prompts)
    report = _held_out(spec, splits.report, tokenizer, dropped, truncated, spec.finals.prompts)
    facts = Facts(  # as far as they are known
        spec_hash=spec_hash(spec),
        base=base,
        pairs={"train": len(train), "rungs": len(rungs.pairs), "report": len(report.pairs)},
        dropped=dropped,
        truncated=truncated,
        stop_ids=stop_token_ids(tokenizer, spec.tokens),
    )
    progress(0.85, "measuring the base model")
    model = load_model(base, dtype=spec.train.dtype)
    if spec.train.lora is not None:
        adapted_layers(model, spec.train.lora)  # a wrong name is told now, not by every trial
    cost = ReferenceCost()
    if objective.needs_reference:
        reference = reference_of(model, plan, mismatched=objective.needs_kl_batch, store=references, seed=spec.seed)
        reference.save(directory / "reference.safetensors")
        cost = reference.cost
    facts = replace(facts, reference=cost.as_dict(), warnings=list(cost.warnings))
    measured = measure_on(spec, facts, rungs, model, tokenizer, seed=spec.seed + RUNG_SEED)
    replace(rungs, base_scores=measured.scores).save(directory / "rungs")
    report.save(directory / "report")
    save_facts(directory, facts)
    cut = f", {truncated['pairs']} cut" if truncated else ""
    progress(1.0, f"ready: {len(train)} pairs to train on, {sum(dropped.values())} rows dropped{cut}")
    return facts


def measure_on(
    spec: SweepSpec, facts: Facts, held_out: HeldOut, model: Any, tokenizer: Any, *, seed: int
) -> Measurement:
    """`measure` with the settings of a spec."""
    return measure(
        model,
        tokenizer,
        held_out,
        evaluation=spec.evaluation,
        stop_ids=facts.stop_ids,
        token_budget=spec.train.token_budget,
        seed=seed,
        judge=judge_of(spec.judge),
    )


def read_splits(spec: SweepSpec, directory: Path) -> Splits:
    """The three splits. Rows with the same prompt stay together, so that no held-out prompt was trained on."""
    if spec.dataset.train == PRACTICE:
        return _practice_splits(spec, directory)
    train = load_preferences(spec.dataset.train, limit=spec.dataset.limit)
    dropped = dict(train.dropped)
    rows = train.rows
    if spec.dataset.eval is None:
        rows, report = _split_off(rows, spec.dataset.validation_fraction, seed=spec.seed, salt=1)
    else:
        report = _counted(load_preferences(spec.dataset.eval), dropped)
    rows, rungs = _split_off(rows, spec.dataset.validation_fraction, seed=spec.seed, salt=0)
    return Splits(train=rows, rungs=rungs, report=report, dropped=dropped)


def _practice_splits(spec: SweepSpec, directory: Path) -> Splits:
    data = directory / "data"
    practice.write_data(data, seed=spec.seed, evaluation=max(EVALUATION_ROWS, spec.finals.prompts))
    dropped: dict[str, int] = {}
    train = _counted(load_preferences(data / "train.jsonl.gz", limit=spec.dataset.limit), dropped)
    rungs = _counted(load_preferences(data / "validation.jsonl.gz"), dropped)
    report = _counted(load_preferences(spec.dataset.eval or data / "eval.jsonl.gz"), dropped)
    return Splits(train=train, rungs=rungs, report=report, dropped=dropped)


def _counted(records: Records, dropped: dict[str, int]) -> list[Preference]:
    for reason, count in records.dropped.items():
        dropped[reason] = dropped.get(reason, 0) + count
    return records.rows


def _split_off(
    rows: list[Preference], fraction: float, *, seed: int, salt: int
) -> tuple[list[Preference], list[Preference]]:
    """(the rest, about `fraction` of the rows), whole prompts at a time. Raises DataError when a side stays empty."""
    by_prompt: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        by_prompt.setdefault(row.prompt, []).append(index)
    groups = list(by_prompt.values())
    taken: set[int] = set()
    for group in np.random.default_rng([seed, salt]).permutation(len(groups)).tolist():
        if len(taken) >= max(2, round(fraction * len(rows))):
            break
        taken.update(groups[group])
    if len(taken) < 2 or len(taken) == len(rows):
        raise DataError(
            f"{len(rows)} usable rows with {len(groups)} different prompts are too few to set some aside: give more"
        )
    rest = [row for index, row in enumerate(rows) if index not in taken]
    return rest, [row for index, row in enumerate(rows) if index in taken]


def _base(spec: SweepSpec, directory: Path, splits: Splits, progress: Progress) -> str:
    """The base model's place, made here when the spec names none."""
    if spec.base_model != PRACTICE:
        return spec.base_model
    progress(0.05, "making the base model")

    def told(step: int, total: int, loss: float) -> None:
        progress(0.05 + 0.75 * step / total, f"making the base model: step {step} of {total}, loss {loss:.2f}")

    if spec.dataset.train == PRACTICE:
        return str(practice.build_base(directory / BASE, seed=spec.seed, progress=told))
    return str(build_small_base(directory / BASE, splits.train, policy=spec.tokens, seed=spec.seed, progress=told))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _token_pairs(
    spec: SweepSpec, rows: Sequence[Preference], tokenizer: Any, dropped: dict[str, int], truncated: dict[str, int]
) -> tuple[list[TokenPair], list[Preference]]:
    tokenized = tokenize_preferences(rows, tokenizer, spec.tokens)
    for counts, found in ((dropped, tokenized.dropped), (truncated, tokenized.truncated)):
        for reason, count in found.items():
            counts[reason] = counts.get(reason, 0) + count
    return tokenized.pairs, [rows[index] for index in tokenized.rows]


def _held_out(
    spec: SweepSpec,
    rows: Sequence[Preference],
    tokenizer: Any,
    dropped: dict[str, int],
    truncated: dict[str, int],
    num_prompts: int,
) -> HeldOut:
    pairs, kept = _token_pairs(spec, rows, tokenizer, dropped, truncated)
    if len(pairs) < 2:
        raise DataError("fewer than two held-out pairs are usable: give more data, or raise tokens.max_length")
    asked = list(zip(kept, pairs, strict=True))[:num_prompts]
    return HeldOut(
        pairs=PairStore.of(pairs),
        prompts=[encode_prompt(_turns(row), tokenizer, spec.tokens) for row, _ in asked],
        instructions=[row.instruction for row, _ in asked],
        reference_lengths=[len(pair.chosen) for _, pair in asked],
        chosen=[row.chosen for row, _ in asked],
    )


def _turns(row: Preference) -> Any:
    return row.prompt if isinstance(row.prompt, str) else list(row.prompt)
