"""A finished sweep as two files: report.json for programs, report.html for people.

Read from the run directory alone, by anybody, while it runs or after: no Ray, no service, no torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.report_page import page
from sweeps.report_search import FACTS
from sweeps.run_dir import RunDir, read_journal, read_result

Json = dict[str, Any]

_ENDINGS = {
    "trial.completed": "COMPLETE",
    "trial.pruned": "PRUNED",
    "trial.failed": "FAILED",
    "trial.infeasible": "INFEASIBLE",
}


@dataclass(kw_only=True)
class TrialStory:
    """One trial, from its journal records."""

    trial_id: str
    """Stable over attempts."""
    number: int
    """Order of suggestion, from 0."""
    params: Json = field(default_factory=dict)
    """Its point of the space."""
    state: str = "RUNNING"
    """RUNNING, COMPLETE, PRUNED, FAILED, INFEASIBLE."""
    value: float | None = None
    """The objective at its last rung; None when it never reached one."""
    reason: str = ""
    """Why it ended."""
    seconds: float | None = None
    """Time it took."""
    metrics: Json = field(default_factory=dict)
    """Newest rung metrics."""
    curve: dict[int, Json] = field(default_factory=dict)
    """Optimiser step -> {loss, margin, accuracy} on the training batches."""
    standing: Json = field(default_factory=dict)
    """Its row of the leaderboard: rank, interval of the value, whether it is tied with the best."""


@dataclass(frozen=True, kw_only=True)
class SweepStory:
    """All that a report needs."""

    spec: Json
    """The sweep's spec as it ran."""
    result: Json | None
    """result.json of the newest attempt that has one."""
    trials: tuple[TrialStory, ...]
    """In order of number."""


def read_story(run_dir: Path) -> SweepStory:
    """Everything from the run directory; later attempts overrule earlier ones. Raises RunDirError without a spec."""
    run = RunDir(run_dir)
    trials: dict[str, TrialStory] = {}
    result: Json | None = None
    for attempt in run.attempts():
        for record in read_journal(attempt):
            _apply(trials, record)
        result = read_result(attempt) or result
    for row in (result or {}).get("leaderboard") or ():
        if row.get("trial_id") in trials:
            trials[row["trial_id"]].standing = dict(row)
    in_order = sorted(trials.values(), key=lambda trial: trial.number)
    return SweepStory(spec=run.read_spec(), result=result, trials=tuple(in_order))


def report_json(
    story: SweepStory,
    *,
    seconds: Mapping[str, float] | None = None,
    peak_memory_bytes: int | None = None,
    versions: Mapping[str, str] | None = None,
    answers: Sequence[Mapping[str, str]] = (),
) -> Json:
    """The facts of a finished sweep. `seconds` adds phases that the sweep itself cannot see (installation, serving).

    `answers`: {prompt, base, winner} of deployed models. Raises ValueError when the sweep has no result yet.
    """
    result = story.result
    if result is None:
        raise ValueError("this sweep has no result.json: it is still running, or it failed")
    best = dict(result.get("best") or {})
    objective = dict(story.spec.get("objective") or {})
    judge = result.get("judge")
    no_judge = None if result.get("win_rate") else "no judge: the objective is " + str(objective.get("metric"))
    if judge and judge["state"] == "INVALID":
        no_judge = "the evaluation is INVALID: " + judge["reasons"][0]
    return {
        "name": story.spec.get("name"),
        "trials": result.get("trials") or _counts(story.trials),
        "best": {
            "method": best.get("method") or result.get("method"),
            "hyperparameters": best.get("params") or {},
            "trial_id": best.get("trial_id"),
            "number": next((t.number for t in story.trials if t.trial_id == best.get("trial_id")), None),
            "value": best.get("value"),
            "step": best.get("step"),
            **{key: best[key] for key in ("candidate", "recipe") if key in best},
        },
        "objective": objective,
        "win_rate": result.get("win_rate"),
        "win_rate_reason": no_judge,
        "judge": judge,
        **{key: result[key] for key in FACTS if key in result},
        "accuracy": result.get("accuracy"),
        "probes": result.get("probes"),
        "dropped_rows": result.get("dropped_rows") or {},
        "truncated_rows": result.get("truncated_rows") or {},
        "reference": result.get("reference") or {},
        "seconds": _in_order({**(result.get("seconds") or {}), **(seconds or {})}),
        "peak_memory_bytes": max(peak_memory_bytes or 0, int(result.get("peak_memory_bytes") or 0)),
        "seed": story.spec.get("seed"),
        "spec_hash": result.get("spec_hash"),
        "versions": dict(versions or {}),
        "answers": [dict(answer) for answer in answers],
    }


def write_report(story: SweepStory, facts: Json, directory: Path) -> tuple[Path, Path]:
    """Write report.html and report.json into `directory`, each by rename; returns their paths in this order."""
    directory.mkdir(parents=True, exist_ok=True)
    html, data = directory / "report.html", directory / "report.json"
    _replace(html, page(story.spec, facts, [trial_facts(trial) for trial in story.trials]))
    _replace(data, json.dumps(facts, indent=2, sort_keys=False) + "\n")
    return html, data


def trial_facts(trial: TrialStory) -> Json:
    """A trial as the page wants it: plain values, curve as lists in order of step."""
    steps = sorted(trial.curve)
    return {
        "trial_id": trial.trial_id,
        "number": trial.number,
        "params": trial.params,
        "state": trial.state,
        "value": trial.value,
        "reason": trial.reason,
        "seconds": trial.seconds,
        "metrics": trial.metrics,
        "rank": trial.standing.get("rank"),
        "low": trial.standing.get("low"),
        "high": trial.standing.get("high"),
        "tied": bool(trial.standing.get("tied_with_best")),
        "step": trial.standing.get("step") or (steps[-1] if steps else None),
        "curve": {"step": steps, **{key: [trial.curve[step].get(key) for step in steps] for key in ("loss", "margin")}},
    }


def _apply(trials: dict[str, TrialStory], record: Mapping[str, Any]) -> None:
    data, kind = record.get("data") or {}, str(record.get("type"))
    trial_id = data.get("trial_id")
    if not kind.startswith("trial.") or trial_id is None:
        return
    number = data.get("number")
    fresh = TrialStory(trial_id=str(trial_id), number=len(trials) if number is None else int(number))
    trial = trials.setdefault(str(trial_id), fresh)
    trial.params.update(data.get("params") or {})
    if kind == "trial.progress":
        trial.curve[int(data.get("step", 0))] = dict(data)
    elif kind == "trial.rung":
        trial.metrics.update(data.get("metrics") or {})
    elif kind in _ENDINGS:
        trial.state = _ENDINGS[kind]
        trial.value = data.get("value")
        complete = kind == "trial.completed"
        trial.reason = str(data.get("reason") or ("full budget" if complete else record.get("message")) or "")
        trial.seconds = data.get("seconds")
        trial.metrics.update(data.get("metrics") or {})


def _counts(trials: Sequence[TrialStory]) -> dict[str, int]:
    states = [trial.state for trial in trials]
    return {state: states.count(state) for state in dict.fromkeys(states)}


def _in_order(seconds: Json) -> Json:
    """By the course of the work; what is not known stands before the total."""
    course = ["starting", "submitting", "preparing", "searching", "finals", "deploying", "answering"]
    rest = [key for key in seconds if key not in (*course, "total")]
    return {key: seconds[key] for key in (*course, *rest, "total") if key in seconds}


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
