"""What a person sees in a terminal of a sweep that is not followed: how far it came, or its leaderboard."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sweeps.board import Board, reference_line
from sweeps.board_view import point, trial_table
from sweeps.report_search import correlation, ending, standing
from sweeps.run_dir import RunDir, read_journal
from sweeps.spec import SweepSpec


def result_view(result: Mapping[str, Any]) -> Group:
    """The leaderboard of a result, and what was found out about the winner."""
    metric = result["objective"]["metric"]
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("rank", "trial", "state", metric, "95 %", "step", "point"):
        table.add_column(name, justify="right" if name in ("rank", metric, "step") else "left")
    for row in result["leaderboard"]:
        interval = "" if row["low"] is None else f"{row['low']:.3f}..{row['high']:.3f}"
        tied = " tied" if row["tied_with_best"] and row["rank"] > 1 else ""
        winner = " *" if row["trial_id"] == result["best"]["trial_id"] else ""
        cells = (str(row["rank"]), f"{row['number']}{winner}", row["state"] + tied, _figure(row["value"]), interval)
        table.add_row(*cells, str(row["step"]), point(row["params"]))
    facts = Table.grid(padding=(0, 2))
    made = f"{result['best']['candidate']}, from " if "candidate" in result["best"] else ""
    facts.add_row("winner", f"{made}{result['best']['trial_id']}: {point(result['best']['params'])}")
    facts.add_row("checkpoint", str(result["best"]["checkpoint"]))
    if result["win_rate"] is not None:
        facts.add_row("win rate over base", estimate(result["win_rate"]))
    if judge := result.get("judge"):
        facts.add_row("judge", f"{judge['judge']['model']}: {'; '.join([judge['state'], *judge['reasons']])}")
    for row in result["leaderboard"]:
        if judged := row.get("judged"):
            ties = f", tied with {', '.join(judged['tied_with'])}" if judged["tied_with"] else ""
            facts.add_row(f"{judged['name']} over base", estimate(judged) + ties)
    if budget := result.get("budget"):
        facts.add_row("ended because", ending(budget))
    for row in (result.get("finals") or {}).get("rows") or ():
        facts.add_row(f"final of {row['name']}", standing(row))
    for row in result.get("rungs") or ():
        facts.add_row(f"order at step {row['step']}", correlation(row))
    for row in result.get("pareto") or ():
        values = ", ".join(f"{name} {value:.4f}" for name, value in row["values"].items())
        facts.add_row("on the front", f"{row['trial_id']}: {values}")
    for who, accuracy in result["accuracy"].items():
        facts.add_row(f"accuracy of {who}", estimate(accuracy))
    facts.add_row("reference", reference_line(result.get("reference") or {}).partition(": ")[2])
    facts.add_row("seconds", ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in result["seconds"].items()))
    facts.add_row("peak memory", f"{result['peak_memory_bytes'] / 2**30:.2f} GiB")
    return Group(table, Text(), facts)


def attempts_view(run_dir: RunDir, spec: SweepSpec) -> Group:
    """How far a sweep without a result has come, read from its journals."""
    board = Board.of(spec.model_dump(mode="json"))
    lines: list[Text] = []
    for attempt in run_dir.attempts():
        records = read_journal(attempt)
        for record in records:
            board.apply(record["type"], record["message"], record["data"])
        lines.append(
            Text(f"attempt {attempt.number}: {records[-1]['message'] if records else 'claimed, nothing written'}")
        )
    return Group(*(lines or [Text("not started")]), Text(f"{board.where} {board.overall:.0%}"), trial_table(board))


def estimate(values: Mapping[str, Any]) -> str:
    """An estimate with its interval."""
    return f"{values['estimate']:.3f} [{values['low']:.3f}, {values['high']:.3f}] (n={values['n']})"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
