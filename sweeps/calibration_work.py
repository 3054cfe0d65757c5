"""What the processes of a calibration do: prepare a sample of a sweep, then train and measure its first trial."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simpo import practice
from simpo.errors import SimPOError
from simpo.objectives import OBJECTIVES
from simpo.records import Preference
from sweeps.measure import Measurement
from sweeps.prepare import RUNG_SEED, Splits, measure_on, prepare, read_inputs
from sweeps.run_dir import RunDir
from sweeps.small_base import SmallRecipe, build_small_base
from sweeps.spec import PRACTICE, SweepSpec, parse_spec
from sweeps.study import Study
from sweeps.trial import Assignment, Workbench, quiet_transformers, train_trial

BASE_STEPS = 5
"""Of a base that is made here; its first step is not counted."""
PAIRS, PROMPTS = 64, 16
"""Held-out rows that are scored, and prompts that are answered, to know what one takes."""
WAIT_S = 300.0
"""Most that one process waits for the others."""


class TrialFailed(SimPOError):
    """Nothing can be timed: the trial does not train."""


def prepare_sample(values: dict[str, Any], place: str, steps: int) -> dict[str, Any]:
    """Fill `place` with a run directory that `time_trial` can work in.

    Returns seconds of what is made once for the whole sweep (base_s, reference_s), rows of its splits (rungs, report)
    and the prompts that it answers at a rung.
    """
    torch.set_num_threads(1)
    quiet_transformers()
    spec, root = parse_spec(values), Path(place)
    splits = read_inputs(spec, root / "prepared")
    base_s = 0.0
    if spec.base_model == PRACTICE:
        base, base_s = _short_base(spec, splits, root / "base")
        spec = spec.model_copy(update={"base_model": str(base)})
    drawn = np.random.default_rng(spec.seed)
    sample = Splits(
        train=_some(splits.train, spec.train.batch_pairs * steps, drawn),
        rungs=_some(splits.rungs, PAIRS, drawn),
        report=_some(splits.report, 2, drawn),
        dropped={},
    )
    short = _shortened(spec, steps)
    RunDir(root).write_spec(short.model_dump(mode="json"))
    facts = prepare(short, sample, root / "prepared", lambda share, message: None)
    kl = OBJECTIVES[spec.method].needs_kl_batch
    batches = spec.train.batch_pairs * int(kl)  # mismatched pairs are scored for every step
    whole = len(splits.train) + spec.budget.steps * batches
    return {
        "base_s": base_s,
        "reference_s": facts.reference["seconds"] * whole / (facts.pairs["train"] + steps * batches),
        "rungs": len(splits.rungs),
        "report": len(splits.report),
        "prompts": min(len(splits.rungs), spec.evaluation.rung_prompts),
    }


def time_trial(place: str, number: int, processes: int) -> dict[str, Any]:
    """Train the first trial in step with the other processes; seconds of its later steps, of an answer, a pair and a
    checkpoint."""
    torch.set_num_threads(1)
    root = Path(place)
    bench = Workbench(place, str(root / "prepared"))
    ask = Study(bench.spec).ask()
    assert ask is not None  # the first of a search is there
    told = Assignment(
        trial_id=f"process_{number}",
        params=ask.params,
        cutoffs={},
        run_dir=place,
        prepared=str(root / "prepared"),
        directory=str(root / "trials" / str(number)),
        resume=[],
        deadline=None,
    )
    with _together(root, number, processes):
        updates = list(train_trial(bench, told))
        steps = [update.metrics["seconds"] for update in updates if update.kind == "progress"]
        rungs = bench.rungs
        pairs_s = _timed(bench, replace(rungs, prompts=[]))
        whole_s = _timed(bench, rungs) if rungs.prompts else pairs_s
        # Twice: what else the machine does may make one of them longer than the whole.
        pairs_s = min(pairs_s, _timed(bench, replace(rungs, prompts=[])))
    outcome = updates[-1].outcome
    if outcome is None or outcome.state == "FAILED":
        raise TrialFailed(f"the first trial fails ({outcome.reason if outcome else 'no end'}): look at its point")
    beside = updates[-1].seconds - sum(steps)
    return {
        "steps": steps[math.ceil(len(steps) / 3) :],
        "pair_s": pairs_s / len(rungs.pairs),
        "answer_s": max(0.0, whole_s - pairs_s) / max(1, len(rungs.prompts)),
        "save_s": max(0.0, beside - whole_s),
    }


def _shortened(spec: SweepSpec, steps: int) -> SweepSpec:
    """The same training and measuring, as one trial of a few steps."""
    values = spec.model_dump(mode="json")
    values |= {
        "sampler": {"type": "random"},
        "scheduler": {"type": "none"},
        "budget": {"trials": 1, "steps": steps},
        "finals": {"candidates": 1, "prompts": 2},
        "parallel": {"trials": 1, "workers_per_trial": 1},
        "random_stratum": 0.0,
        "warm_start": [],
        "constraints": {},
    }
    prompts = min(PROMPTS, spec.evaluation.rung_prompts)
    values["evaluation"] |= {"rung_prompts": prompts}
    return parse_spec(values)


def _short_base(spec: SweepSpec, splits: Splits, directory: Path) -> tuple[Path, float]:
    """A base of the right size after a few steps, and the seconds that all of its steps would take."""
    moments: list[float] = []
    total = 0

    def told(step: int, steps: int, loss: float) -> None:
        moments.append(time.perf_counter())

    if spec.dataset.train == PRACTICE:
        total = practice.BaseRecipe().steps
        recipe = practice.BaseRecipe(steps=BASE_STEPS)
        base = practice.build_base(directory, seed=spec.seed, progress=told, recipe=recipe)
    else:
        total = SmallRecipe().steps
        short = SmallRecipe(steps=BASE_STEPS)
        base = build_small_base(
            directory, splits.train, policy=spec.tokens, seed=spec.seed, progress=told, recipe=short
        )
    return base, total * (moments[-1] - moments[0]) / (len(moments) - 1)


def _some(rows: Sequence[Preference], count: int, drawn: np.random.Generator) -> list[Preference]:
    """A random sample, or all of them."""
    if len(rows) <= count:
        return list(rows)
    return [rows[place] for place in sorted(drawn.choice(len(rows), count, replace=False).tolist())]


def _timed(bench: Workbench, rungs: Any) -> float:
    began = time.perf_counter()
    found: Measurement = measure_on(
        bench.spec, bench.facts, rungs, bench.model, bench.tokenizer, seed=bench.spec.seed + RUNG_SEED
    )
    assert found.preference.accuracy.n == len(rungs.pairs)
    return time.perf_counter() - began


@contextlib.contextmanager
def _together(root: Path, number: int, processes: int) -> Iterator[None]:
    """Begin when all are ready: alone on the machine a step is faster than it will be."""
    (root / f"ready-{number}").touch()
    waited = time.monotonic() + WAIT_S
    while len(list(root.glob("ready-*"))) < processes and time.monotonic() < waited:
        time.sleep(0.05)
    yield
