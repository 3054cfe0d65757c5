"""What a sweep will take on this machine, from a few real steps of it: seconds, and hours with an interval. Light.

As many processes as will train at once here run a few steps of the sweep's own first trial each, on batches of its own
data, from its own base (one that is made here is made for a few steps: speed does not depend on what it has learnt),
and measure a rung once. Each process lets the first third of its steps pass: they pay for caches and for the others'
start. All run on one thread, also the making of a base, which a sweep gives more where it may.

    step      Student's 95 % interval of the mean over all timed steps
    low       the steps that are likely (`sweeps.budget`), each at the lower end of that interval
    high      every step, none stopped early, each at the upper end
    estimate  the likely steps at the mean

Rungs, finals, reference and base are added at what they took here, scaled by the rows, prompts and steps that they will
have. What is not known stays out: other work on the machine, a cluster's start, the judge of an endpoint.
"""

import math
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from simpo.errors import ConfigError
from sweeps.budget import BudgetPlan, measurements, plan_budget
from sweeps.spec import SweepSpec

STEPS = 16
"""Optimiser steps of each process, of which the first third is not counted: these took up to three times as long."""
METHOD = (
    "low: the likely steps at the lower end of the step's 95 % interval; high: every step at its upper end; "
    "estimate: the likely steps at the mean"
)

Span = tuple[float, float, float]
"""estimate, low, high."""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What was measured; seconds."""

    step_s: tuple[float, ...]
    """Every timed step."""
    rung_s: float
    """One measurement on the rungs, with as many pairs and prompts as the sweep has, and a checkpoint."""
    answer_s: float
    """One generated answer; 0 where the sweep generates none."""
    pair_s: float
    """One held-out pair, scored."""
    preparing_s: float
    """Base and reference at their full size, as far as they are made."""
    report_pairs: int
    """Held-out pairs of the final report."""
    processes: int
    """That ran at once."""


def calibrate(spec: SweepSpec, *, steps: int = STEPS) -> Timings:
    """Run the processes, one after another through preparing and then all at once. Their files go away at the end.

    Raises what preparing raises (DataError, ModelError, ConfigError: the user's to mend), and ConfigError where one
    process cannot stand for a group that divides the weights.
    """
    if spec.train.sharding != "none":
        raise ConfigError("one process cannot time weights that a group divides: plan without --calibrate", "train")
    at_once = max(1, min(spec.parallel.trials, len(os.sched_getaffinity(0))))
    with (
        tempfile.TemporaryDirectory(prefix="calibration-") as place,
        ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool,
    ):
        sample = pool.submit(_prepared, spec.model_dump(mode="json"), place, steps).result()
        timed = [job.result() for job in [pool.submit(_timed, place, n, at_once) for n in range(at_once)]]
    rung = [each["save_s"] + sample["rungs"] * each["pair_s"] + sample["prompts"] * each["answer_s"] for each in timed]
    return Timings(
        step_s=tuple(seconds for each in timed for seconds in each["steps"]),
        rung_s=max(rung),
        answer_s=max(each["answer_s"] for each in timed),
        pair_s=max(each["pair_s"] for each in timed),
        preparing_s=sample["base_s"] + sample["reference_s"],
        report_pairs=sample["report"],
        processes=at_once,
    )


def hours_of(spec: SweepSpec, timings: Timings, step: Span) -> dict[str, Any]:
    """By kind, wall_clock and accelerator: estimate, low, high, in hours. step: seconds of one."""
    plan = plan_budget(spec)
    workers = spec.parallel.workers_per_trial
    likely, most = (count * timings.rung_s for count in measurements(spec))
    training = [
        plan.likely_steps * step[0] / workers + likely,
        plan.likely_steps * step[1] / workers + likely,
        plan.most_steps * step[2] / workers + most,
    ]
    rest = timings.preparing_s + _finals_s(spec, plan, timings)
    names = ("estimate", "low", "high")
    at_once = min(spec.parallel.trials, plan.trials)
    return {
        "wall_clock": {name: (seconds / at_once + rest) / 3600 for name, seconds in zip(names, training, strict=True)},
        "accelerator": {name: seconds * workers / 3600 for name, seconds in zip(names, training, strict=True)},
    }


def planned(spec: SweepSpec, timings: Timings | None) -> dict[str, Any]:
    """The whole plan as JSON values: counts, and with timings hours and which limit will end the search."""
    plan = plan_budget(spec)
    told: dict[str, Any] = {"name": spec.name, "method": spec.method, "plan": plan.as_dict(), "hours": None}
    if timings is None:
        return {**told, "notes": []}
    step = step_span(timings.step_s)
    hours = hours_of(spec, timings, step)
    calibration = {
        "step_seconds": dict(zip(("estimate", "low", "high"), step, strict=True)) | {"n": len(timings.step_s)},
        **{key: value for key, value in vars(timings).items() if key != "step_s"},
        "method": METHOD,
    }
    return {**told, "hours": hours, "calibration": calibration, "notes": _notes(spec, hours)}


def step_span(step_s: Sequence[float]) -> Span:
    """Mean and Student's interval of the steps' seconds, the lower end not below 0."""
    from simpo.evaluation.intervals import mean_interval  # noqa: PLC0415  # lazy: scipy, which a bare plan need not load

    found = mean_interval(step_s)
    return found.estimate, max(0.0, found.low), found.high


def _prepared(values: dict[str, Any], place: str, steps: int) -> dict[str, Any]:
    from sweeps.calibration_work import prepare_sample  # noqa: PLC0415  # lazy: torch belongs into the other process

    return prepare_sample(values, place, steps)


def _timed(place: str, number: int, processes: int) -> dict[str, Any]:
    from sweeps.calibration_work import time_trial  # noqa: PLC0415  # lazy: torch belongs into the other process

    return time_trial(place, number, processes)


def _finals_s(spec: SweepSpec, plan: BudgetPlan, timings: Timings) -> float:
    """Finalists and mixtures on the rungs, base and winner on the report. In one process."""
    finals = spec.finals
    finalists = min(finals.candidates, plan.trials)
    mixtures = ("soup" in finals.extra) + len(finals.scales) * ("scale" in finals.extra)
    samplings = 2 if spec.objective.metric == "win_rate" else int(finals.contested)
    met = (finalists + mixtures) * finals.seeds * samplings * timings.rung_s if finalists > 1 or mixtures else 0.0
    return met + 2 * (finals.prompts * timings.answer_s + timings.report_pairs * timings.pair_s)


def _notes(spec: SweepSpec, hours: dict[str, Any]) -> list[str]:
    """Limits that the estimate reaches."""
    limits = {
        "wall_clock": math.inf if spec.budget.wall_clock_s is None else spec.budget.wall_clock_s / 3600,
        "accelerator": math.inf if spec.budget.accelerator_hours is None else spec.budget.accelerator_hours,
    }
    fields = {"wall_clock": "budget.wall_clock_s", "accelerator": "budget.accelerator_hours"}
    notes = []
    for kind, limit in limits.items():
        if hours[kind]["high"] > limit:
            how = "ends the search before its last trial" if hours[kind]["low"] > limit else "may end the search early"
            notes.append(f"{fields[kind]} ({limit:.3g} h) {how}: it takes {span(hours[kind])}")
    if spec.parallel.workers_per_trial > 1:
        notes.append("one process stood for a group of workers: what they tell each other is not in the figures")
    return notes


def span(hours: dict[str, float]) -> str:
    """`1.2 h (0.9 to 3.1)`, or minutes where they say more."""
    scale, unit = (1.0, "h") if hours["estimate"] >= 1.0 else (60.0, "min")
    return f"{hours['estimate'] * scale:.3g} {unit} ({hours['low'] * scale:.3g} to {hours['high'] * scale:.3g})"
