"""What a search says of itself (`sweeps.search_facts`), as tables for people. Light."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FACTS = ("budget", "finals", "rungs", "pareto", "lineage", "warm_start", "edits")
"""Keys of result.json that are told; each is there where the search has it."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A titled table."""

    title: str
    note: str
    head: list[str]
    rows: list[list[Any]]


def panels(facts: Mapping[str, Any]) -> list[Panel]:
    """Those that the facts of a result have something for."""
    made = [_finals(facts.get("finals") or {})]
    made += [_rungs(facts.get("rungs") or ()), _pareto(facts.get("pareto") or ()), _lineage(facts.get("lineage") or ())]
    learnt = facts.get("warm_start")
    if learnt:
        note = f"The sampler had learnt from {learnt['trials']} trials of earlier sweeps."
        made.append(Panel(title="Warm start", note=note, head=["sweep"], rows=[[name] for name in learnt["sources"]]))
    made.append(_edits(facts.get("edits") or ()))
    made.append(_budget(facts.get("budget") or {}))
    return [panel for panel in made if panel.rows]


def correlation(row: Mapping[str, Any]) -> str:
    """`0.83 (0.31 to 0.97, n = 8)`, or why there is none."""
    if row["rho"] is None:
        return f"unknown (n = {row['n']}: too few trials that nothing could stop, or all equal)"
    return f"{row['rho']:.2f} ({row['low']:.2f} to {row['high']:.2f}, n = {row['n']})"


def ending(budget: Mapping[str, Any]) -> str:
    """Which limit has ended the search, in words."""
    return _ENDINGS.get(str(budget.get("ended_by")), str(budget.get("ended_by")))


_ENDINGS = {
    "trials": "all trials of the budget were asked",
    "total_steps": "no further trial fitted into the optimiser steps (budget.total_steps)",
    "wall_clock_s": "the time was up (budget.wall_clock_s)",
    "accelerator_hours": "the accelerator-hours were spent (budget.accelerator_hours)",
    "population": "nobody was left to go on from",
}


def _budget(budget: Mapping[str, Any]) -> Panel:
    spent, allowed = budget.get("spent") or {}, budget.get("allowed") or {}
    return Panel(
        title="Budget",
        note=f"The search ended because {ending(budget)}. A dash: no limit, or nothing of the kind.",
        head=["", "spent", "allowed"],
        rows=[[key.replace("_", " "), value, allowed.get(key)] for key, value in spent.items()],
    )


def standing(row: Mapping[str, Any]) -> str:
    """`0.742 (0.701 to 0.783, n = 200); seeds 0.73, 0.75; tied with soup`."""
    seeds = ", ".join(f"{value:.4g}" for value in row["by_seed"])
    ties = f"; tied with {', '.join(row['tied_with'])}" if row["tied_with"] else ""
    faults = f"; {'; '.join(row['faults'])}" if row["faults"] else ""
    interval = f"{row['estimate']:.4g} ({row['low']:.4g} to {row['high']:.4g}, n = {row['n']})"
    return f"{interval}; seeds {seeds}{ties}{faults}"


def _finals(finals: Mapping[str, Any]) -> Panel:
    seeds, metric = finals.get("seeds"), str(finals.get("metric")).replace("_", " ")
    return Panel(
        title="Finals",
        note=f"Candidates on the rungs' data over {seeds} training seeds, best first; the first one won. Tied: the "
        "95 % interval of the difference, paired by seed and item, holds 0. A soup is the average of the finalists' "
        "weights, scale-s lies on the line from the base through the best finalist. The winner's weights are of the "
        "first seed.",
        head=["candidate", metric, "95 %", "by seed", "tied with", "stands behind, for"],
        rows=[
            [
                row["name"],
                row["estimate"],
                f"{row['low']:.4g} to {row['high']:.4g}",
                ", ".join(f"{value:.4g}" for value in row["by_seed"]),
                ", ".join(row["tied_with"]) or "nobody",
                "; ".join(row["faults"]),
            ]
            for row in finals.get("rows") or ()
        ],
    )


def _rungs(rows: Sequence[Mapping[str, Any]]) -> Panel:
    return Panel(
        title="Rungs",
        note="How well the order at a rung foretells the final one: Spearman's rank correlation, 95 % interval, over "
        "complete trials that no cut-off could have stopped. Raise scheduler.control_group for more of them.",
        head=["step", "rank correlation with the end", "of the control group"],
        rows=[[row["step"], correlation(row), row["control"]] for row in rows],
    )


def _pareto(rows: Sequence[Mapping[str, Any]]) -> Panel:
    metrics, params = _keys(rows, "values"), _keys(rows, "params")
    return Panel(
        title="Pareto front",
        note="No other trial is better in one objective without being worse in another.",
        head=["#", *metrics, *params],
        rows=[
            [row["number"], *(row["values"].get(m) for m in metrics), *(row["params"].get(p) for p in params)]
            for row in rows
        ],
    )


def _lineage(rows: Sequence[Mapping[str, Any]]) -> Panel:
    params = _keys(rows, "params")
    return Panel(
        title="Lineage of the best",
        note="Population-based training: each stretch of steps went on from the checkpoint of the one above.",
        head=["#", "from step", "to step", *params],
        rows=[[row["number"], row["from"], row["to"], *(row["params"].get(key) for key in params)] for row in rows],
    )


def _edits(rows: Sequence[Mapping[str, Any]]) -> Panel:
    return Panel(
        title="Edits",
        note="What people changed while the sweep ran (python -m sweeps control), and what was refused.",
        head=["#", "at", "after trials", "", "what"],
        rows=[[row["seq"], row["at"], row["after"], row["state"], row["message"]] for row in rows],
    )


def _keys(rows: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row[part]))
