"""What a finished search says of itself in result.json: rung order, Pareto front, lineage, what it learnt from.

rungs      for each rung: Spearman's rank correlation of its values with the final ones, over complete trials that no
           cut-off could have stopped (the control group, the random stratum, and whoever was asked before cut-offs)
pareto     with several objectives: the trials that no other beats, best first objective first
lineage    where trials went on from others (halving, pbt): the winner's ancestors, with the hyperparameters of each
           stretch of steps
warm_start what the sampler had learnt from
edits      what people changed while it ran, and what was refused
trained_tokens  unique tokens of the steps that its trials took
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from simpo.packing import PackedPlan
from sweeps.control import edits_told
from sweeps.generations import in_generations
from sweeps.ledger import Ended, Ledger
from sweeps.prepared import load_plan

LEAST = 4
"""Fewest trials of which a correlation is told: its interval needs n - 3 degrees of freedom."""


def search_facts(ledger: Ledger) -> dict[str, Any]:
    """The keys of result.json that apply to this search."""
    spec, facts = ledger.spec, dict[str, Any]()
    steps = ledger.study.plan.rung_steps
    ended = list(ledger.ended.values())
    if steps and spec.scheduler.type != "pbt":
        facts["rungs"] = rung_order(ended, steps)
    if spec.other_objectives:
        facts["pareto"] = pareto_front(ledger)
    if spec.warm_start:
        facts["warm_start"] = {"sources": list(spec.warm_start), "trials": ledger.study.lessons}
    if edits := edits_told(ledger.attempt.run):
        facts["edits"] = edits
    if (ledger.prepared / "plan.safetensors").exists():
        facts["trained_tokens"] = trained_tokens(ended, load_plan(ledger.prepared))
    best = ledger.study.best()
    if in_generations(spec) and best is not None:
        facts["lineage"] = lineage(ledger.ended, best)
    return facts


def trained_tokens(trials: Sequence[Ended], plan: PackedPlan) -> int:
    """Of the steps from each trial's beginning, or from where its parent was, to its end. Without retrainings."""
    tokens = plan.step_tokens()
    return sum(int(tokens[trial.ask.start : trial.outcome.step].sum()) for trial in trials)


def rung_order(trials: Sequence[Ended], steps: Sequence[int]) -> list[dict[str, Any]]:
    """By rung: step, n, control (how many of those belong to the control group), rho, low, high (95 %).

    None for what too few trials, or equal values, leave open.
    """
    unstopped = [trial for trial in trials if _unstopped(trial)]
    rows = []
    for step in steps:
        seen = [trial for trial in unstopped if step in trial.outcome.rungs]
        early = [trial.outcome.rungs[step] for trial in seen]
        final = [float(trial.outcome.value or 0.0) for trial in seen]
        row = {"step": step, "n": len(seen), "control": sum(trial.ask.control for trial in seen)}
        rows.append({**row, **rank_correlation(early, final)})
    return rows


def _unstopped(trial: Ended) -> bool:
    return trial.outcome.state == "COMPLETE" and not trial.ask.cutoffs and trial.ask.parent is None


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> dict[str, float | None]:
    """Spearman's rho, ties by mean ranks, with its 95 % interval: Fisher's z with Bonett and Wright's
    variance (1 + rho^2 / 2) / (n - 3)."""
    nothing: dict[str, float | None] = {"rho": None, "low": None, "high": None}
    if len(first) < LEAST:
        return nothing
    from scipy.stats import rankdata  # noqa: PLC0415  # lazy: half a second before a search begins

    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (first, second)]
    spread = math.sqrt(float((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    if spread == 0:
        return nothing
    rho = max(-1.0, min(1.0, float((ranks[0] * ranks[1]).sum()) / spread))
    z = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, rho)))
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / (len(first) - 3))
    return {"rho": rho, "low": math.tanh(z - half), "high": math.tanh(z + half)}


def pareto_front(ledger: Ledger) -> list[dict[str, Any]]:
    """trial_id, number, params, values by metric."""
    rows = []
    for number in ledger.study.front():
        ended = ledger.ended[number]
        values = {ledger.spec.objective.metric: ended.outcome.value, **ended.outcome.others}
        rows.append({"trial_id": ended.ask.trial_id, "number": number, "params": ended.ask.params, "values": values})
    return rows


def lineage(trials: Mapping[int, Ended], number: int) -> list[dict[str, Any]]:
    """From the first ancestor to trial `number`: trial_id, number, from step, to step, params."""
    rows: list[dict[str, Any]] = []
    follow: int | None = number
    while follow is not None:
        ask = trials[follow].ask
        stretch = {"from": ask.start, "to": trials[follow].outcome.step}
        rows.append({"trial_id": ask.trial_id, "number": follow, **stretch, "params": ask.params})
        follow = ask.parent
    return rows[::-1]
