"""What a comparison found, as comparison.json: methods ranked by their finals, tuning curves, verdicts. Pure functions.

Two questions, two sets of data. Which model is best? The leaderboard: each method's winner, measured on data that chose
nobody. Which method is better for a given effort? The verdicts: tuning curves of the random trials alone, whose scores
no search has driven (`sweeps.tuning_curve`).
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeps.comparison_spec import ComparisonSpec
from sweeps.hours import HOURS_REASON
from sweeps.recorded import Recorded, recorded_trials
from sweeps.run_dir import RunDir, last_result
from sweeps.signals import REASONS
from sweeps.spec import SweepSpec
from sweeps.stratum import in_stratum
from sweeps.tuning_curve import BAND_LEVEL, Curve, first_separation, horizon, tuning_curve

Json = dict[str, Any]

SCALES: Mapping[str, tuple[float, float]] = {"accuracy": (0.0, 1.0), "win_rate": (0.0, 1.0)}
"""Ends of what an objective can be; any other has none."""
CUT_SHORT = (REASONS["late"], HOURS_REASON)
"""How a trial says that time, or hours of processes, have stopped it."""


@dataclass(frozen=True, kw_only=True)
class MethodStory:
    """One method's sweep, over."""

    sweep: SweepSpec
    """What it was asked."""
    result: Json | None
    """Its result.json; None: no trial was fit to win."""
    trials: Mapping[int, Recorded] = field(default_factory=dict)
    """All that its journals know of its trials, by number."""
    failure: str | None = None
    """Why there is no result."""


def read_method(run: RunDir, sweep: SweepSpec, failure: str | None = None) -> MethodStory:
    """From a run directory; of several attempts the newest result counts."""
    trials = recorded_trials(run, below=run.highest() + 1)
    return MethodStory(sweep=sweep, result=last_result(run), trials=trials, failure=failure)


def comparison_result(spec: ComparisonSpec, methods: Mapping[str, MethodStory], seconds: Mapping[str, float]) -> Json:
    """comparison.json."""
    curves = {name: curve for name, story in methods.items() if (curve := curve_of(story)) is not None}
    rows = leaderboard(methods)
    order = [row["name"] for row in rows]
    return {
        "name": spec.name,
        "state": "SUCCEEDED",
        "objective": spec.objective.model_dump(),
        "budget": spec.budget.model_dump(),
        "random_stratum": spec.drawn,
        "seed": spec.seed,
        "leaderboard": rows,
        "curves": {name: curves[name].as_dict() for name in order if name in curves},
        "verdicts": verdicts({name: curves[name] for name in order if name in curves}),
        "unequal": [reason for name in order for reason in _unequal(spec, name, methods[name])],
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
    }


def curve_of(story: MethodStory) -> Curve | None:
    """The tuning curve of the random stratum; None without a random trial that ended by itself."""
    scores = []
    for number, trial in sorted(story.trials.items()):
        outcome = trial.outcome
        if outcome is None or not in_stratum(number, story.sweep.random_stratum) or outcome.state == "PRUNED":
            continue  # nobody stops them early but a clock, which does not look at the score
        usable = outcome.value if outcome.state == "COMPLETE" else None
        scores.append(-math.inf if usable is None else usable)
    metric = story.sweep.objective.metric
    return tuning_curve(scores, scale=SCALES.get(metric, (-math.inf, math.inf))) if scores else None


def verdicts(curves: Mapping[str, Curve]) -> list[Json]:
    """For every pair: `above` from `from` trials on up to `until`, or None: undecided; and the sentence."""
    return [_verdict(one, other, curves) for one, other in itertools.combinations(curves, 2)]


def _verdict(one: str, other: str, curves: Mapping[str, Curve]) -> Json:
    until = min(curves[one].horizon, curves[other].horizon)
    for above, below in ((one, other), (other, one)):
        first = first_separation(curves[above], curves[below])
        if first is not None:
            text = f"{above} above {below} from budget {first} on (trials; known up to {until})"
            return {"pair": [one, other], "above": above, "from": first, "until": until, "text": text}
    why = "the bands overlap"
    if until == 0:
        drawn = min(len(curves[one].scores), len(curves[other].scores))
        needed = next(count for count in itertools.count(drawn + 1) if horizon(count, BAND_LEVEL))
        why = f"{drawn} random trials bound nothing from above, {needed} would"
    text = f"{one} and {other}: undecided, {why}"
    return {"pair": [one, other], "above": None, "from": None, "until": until, "text": text}


def leaderboard(methods: Mapping[str, MethodStory]) -> list[Json]:
    """One row a method, best first: by win rate over the base where all winners have one, else by accuracy.

    `tied_with`: the difference of the two figures is within its 95 % interval, taken from the intervals of both as if
    they were independent. They are not: all answer the same prompts, so that ties are stated too often, never too
    rarely.
    """
    finished = [story.result for story in methods.values() if story.result is not None]
    judged = bool(finished) and all(result.get("win_rate") for result in finished)
    rows = [_row(name, story, "win_rate" if judged else "accuracy") for name, story in methods.items()]
    rows.sort(key=lambda row: math.inf if row["figure"] is None else -row["figure"]["estimate"])
    for rank, row in enumerate(rows, 1):
        row["rank"] = rank
        row["tied_with"] = [other["name"] for other in rows if other is not row and _tied(row, other)]
    return rows


def _row(name: str, story: MethodStory, ranked_by: str) -> Json:
    result = story.result or {}
    accuracy = (result.get("accuracy") or {}).get("winner")
    ended = [trial.outcome for trial in story.trials.values() if trial.outcome is not None]
    return {
        "rank": 0,
        "name": name,
        "method": story.sweep.method,
        "ranked_by": ranked_by,
        "figure": result.get("win_rate") if ranked_by == "win_rate" else accuracy,
        "win_rate": result.get("win_rate"),
        "accuracy": accuracy,
        "base_accuracy": (result.get("accuracy") or {}).get("base"),
        "probes": (result.get("probes") or {}).get("winner") or {},
        "tied_with": [],
        "best": result.get("best"),
        "failure": story.failure,
        "trials": {state: sum(o.state == state for o in ended) for state in sorted({o.state for o in ended})},
        "steps": sum(outcome.step for outcome in ended),
        "trial_seconds": round(sum(trial.facts.get("seconds") or 0.0 for trial in story.trials.values()), 3),
        "seconds": result.get("seconds") or {},
        "reference": result.get("reference"),
    }


def _tied(one: Json, other: Json) -> bool:
    if one["figure"] is None or other["figure"] is None:
        return False
    apart: float = abs(one["figure"]["estimate"] - other["figure"]["estimate"])
    halves = [(row["figure"]["high"] - row["figure"]["low"]) / 2 for row in (one, other)]
    return apart <= math.hypot(*halves)


def _unequal(spec: ComparisonSpec, name: str, story: MethodStory) -> list[str]:
    """Why this method did not get what the others got."""
    ended = [trial.outcome for trial in story.trials.values() if trial.outcome is not None]
    if spec.budget.rule == "trials" and len(ended) < spec.budget.trials:
        return [f"{name}: {len(ended)} of {spec.budget.trials} trials, for its time ran out"]
    cut = sum(outcome.reason in CUT_SHORT for outcome in ended)
    return [f"{name}: its time ran out during {cut} of its trials"] if cut else []
