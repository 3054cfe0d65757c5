"""What every arm of the sweep benchmark gets: the same rows, base model, sixteen points, steps and rungs."""

import itertools
import json
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.lengths import SHAPES
from tests.bench.step import llama
from tests.house import REPO

DATA = REPO.parent / "shared" / "data" / "preferences"
POINTS = [
    {"learning_rate": rate, "beta": beta, "gamma_beta_ratio": ratio}
    for rate, beta, ratio in itertools.product((3e-6, 3e-5, 1e-4, 3e-4), (2.0, 10.0), (0.3, 0.8))
]
"""Every arm tries all of them, in the order of the grid that our own sampler shuffles."""
BATCH = 4
"""Pairs of an optimiser step."""
LONGEST = 512
"""Tokens of a prompt and its longer response, at most: nearly all rows, so lengths differ as in real sets."""
VOCABULARY = 8000
"""Of the tokenizer; the model has the positions of its shape, as a real one has more than a small data set needs."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """The amount of work; written to and read from task.json."""

    steps: int
    """Optimiser steps of a trial at full budget."""
    reduction: int
    """Of the trials at a rung one in so many goes on; rungs are so many times apart."""
    rung_pairs: int
    """Held-out pairs measured at the rungs."""
    report_pairs: int
    """Held-out pairs on which the winners are compared, after the arms."""

    @property
    def rungs(self) -> list[int]:
        """Steps at which trials are compared, the end not included."""
        return [self.steps // self.reduction**2, self.steps // self.reduction]


def make_task(directory: Path, task: Task) -> None:
    """Write train.jsonl, eval.jsonl, base/ and task.json, unless they are there.

    Raises FileNotFoundError without the preference data, ValueError when too few rows are short enough.
    """
    if (directory / "task.json").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    rows = list(_short_rows(directory))
    needed = task.steps * BATCH + task.rung_pairs
    if len(rows) < needed + task.report_pairs:
        raise ValueError(f"{len(rows)} rows of at most {LONGEST} tokens, {needed + task.report_pairs} needed")
    _write(directory / "train.jsonl", rows[:needed])
    _write(directory / "eval.jsonl", rows[needed : needed + task.report_pairs])
    (directory / "task.json").write_text(json.dumps(asdict(task)))
    _write_our_split(directory, task)


def read_task(directory: Path) -> Task:
    """What `make_task` wrote."""
    return Task(**json.loads((directory / "task.json").read_text()))


def our_spec(directory: Path, task: Task, *, scheduler: Mapping[str, Any] | str) -> dict[str, Any]:
    """The spec of our arms: a grid of the points, accuracy, no generated text. Stock TRL generates none either."""
    axes = {key: sorted({point[key] for point in POINTS}) for key in POINTS[0]}
    held_out = task.rung_pairs / (task.steps * BATCH + task.rung_pairs)
    return {
        "name": "bench-sweep",
        "method": "simpo",
        "base_model": str(directory / "base"),
        "dataset": {
            "train": str(directory / "train.jsonl"),
            "eval": str(directory / "eval.jsonl"),
            "validation_fraction": held_out,
        },
        "judge": None,
        "constraints": {},
        "objective": "accuracy",
        "space": {key: {"type": "categorical", "choices": values} for key, values in axes.items()},
        "sampler": "grid",
        "scheduler": scheduler,
        "budget": {"trials": len(POINTS), "steps": task.steps},
        "train": {"batch_pairs": BATCH, "dtype": "bfloat16"},
        "optim": {"schedule": "constant", "warmup_fraction": 0.1},
        "tokens": {"max_length": 2 * LONGEST},
        "evaluation": {"rung_prompts": 0},
        "finals": {"candidates": 1, "prompts": 2},
        "parallel": {"trials": 2},
    }


def halving(task: Task) -> dict[str, Any]:
    """Our scheduler of the full arm."""
    rungs = [rung / task.steps for rung in task.rungs]
    return {"type": "halving", "rungs": rungs, "reduction_factor": task.reduction}


def _write_our_split(directory: Path, task: Task) -> None:
    """stock-train.jsonl and stock-rungs.jsonl: train.jsonl as our sweep divides it, so that every arm sees the same."""
    from sweeps.prepare import read_inputs  # noqa: PLC0415  # lazy: the stock arm must not pay for it
    from sweeps.spec import parse_spec  # noqa: PLC0415  # lazy: as above

    with tempfile.TemporaryDirectory() as scratch:
        splits = read_inputs(parse_spec(our_spec(directory, task, scheduler="none")), Path(scratch))
    _write(directory / "stock-train.jsonl", map(_turns, splits.train))
    _write(directory / "stock-rungs.jsonl", map(_turns, splits.rungs))


def _short_rows(directory: Path) -> Iterator[dict[str, Any]]:
    """Rows of hh_harmless that fit, shuffled; makes the base on the way, for its tokenizer decides what fits."""
    from simpo.config import TokenPolicy  # noqa: PLC0415  # lazy: the stock arm reads tasks and must not pay for torch
    from simpo.records import load_preferences  # noqa: PLC0415  # lazy: as above
    from simpo.tokenize import tokenize_preferences  # noqa: PLC0415  # lazy: as above
    from sweeps.small_base import train_tokenizer  # noqa: PLC0415  # lazy: as above

    rows = load_preferences(str(DATA / "hh_harmless_train.jsonl.gz")).rows
    tokenizer = train_tokenizer(rows, VOCABULARY, 2 * LONGEST)
    _save_base(directory / "base", tokenizer)
    policy = TokenPolicy(max_length=4096)
    random.Random(0).shuffle(rows)
    for row in rows:
        pair = tokenize_preferences([row], tokenizer, policy).pairs[0]
        if len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) <= LONGEST:
            yield _turns(row)


def _turns(row: Any) -> dict[str, Any]:
    turns = [{"role": turn.role, "content": turn.content} for turn in row.prompt]
    sides = {side: [{"role": "assistant", "content": getattr(row, side)}] for side in ("chosen", "rejected")}
    return {"prompt": turns, **sides}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _save_base(directory: Path, tokenizer: Any) -> None:
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    llama(SHAPES["30M"], **ids).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
