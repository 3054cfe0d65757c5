"""What a person sees of a sweep in a terminal: a live table while it runs, the leaderboard after."""

import io
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.run_dir import Record, RunDir, read_journal
from sweeps.spec import SweepSpec

_ENDINGS = {
    "trial.completed": ("complete", "green"),
    "trial.pruned": ("stopped early", "yellow"),
    "trial.infeasible": ("broke a constraint", "magenta"),
    "trial.failed": ("failed", "red"),
}


class Board:
    """A listener of journal records. On a terminal a live table; elsewhere one line a record that matters."""

    def __init__(self, console: Console, *, steps: int, trials: int, objective: str) -> None:
        self._console = console
        self._steps = steps
        self._trials = trials
        self._objective = objective
        self._rows: dict[int, dict[str, Any]] = {}
        self._phase = "starting"
        self._message = ""
        self._share = 0.0
        self._best: str | None = None
        self._lock = threading.Lock()
        self._live = Live(self, console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> "Board":
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, value, traceback)

    def __call__(self, record: Record) -> None:
        """Take one record."""
        with self._lock:
            self._take(record)
        if self._live is None and record["type"] != "trial.progress" and record["message"]:
            self._console.print(
                Text(f"{record['at'][11:19]}  {record['type']:<16} {record['message']}"), soft_wrap=True
            )

    def __rich__(self) -> Group:
        """The whole picture."""
        with self._lock:
            bar = ProgressBar(total=1.0, completed=self._done(), width=40)
            head = Table.grid(padding=(0, 2))
            head.add_row(Text(self._phase, style="bold"), bar, Text(f"{self._done():.0%}"), Text(self._message))
            return Group(head, self._table())

    def _take(self, record: Record) -> None:
        kind, data = record["type"], record["data"]
        if kind == "job.phase":
            self._phase, self._share, self._message = data["phase"], data["progress"], record["message"]
        elif kind == "best.updated":
            self._best = data["trial_id"]
        elif kind.startswith("trial."):
            number = int(data["number"]) if "number" in data else -1
            row = self._rows.setdefault(number, {"state": "running", "style": "cyan", "params": {}})
            row.update({key: data[key] for key in ("trial_id", "params", "step", "loss", "value") if key in data})
            if kind in _ENDINGS:
                row["state"], row["style"] = _ENDINGS[kind]
                row["reason"] = data.get("reason", "")

    def _done(self) -> float:
        if self._phase != "searching" or not self._trials:
            return self._share
        parts = [1.0 if row["state"] != "running" else row.get("step", 0) / self._steps for row in self._rows.values()]
        return sum(parts) / self._trials

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 1), header_style="dim")
        for name in ("trial", "state", "step", "loss", self._objective, "point"):
            table.add_column(name, justify="right" if name in ("step", "loss", self._objective) else "left")
        for number, row in sorted(self._rows.items()):
            star = " *" if row.get("trial_id") == self._best else ""
            table.add_row(
                f"{number}{star}",
                Text(row["state"], style=row["style"]),
                f"{row.get('step', 0)}/{self._steps}",
                _figure(row.get("loss")),
                _figure(row.get("value")),
                point(row["params"]),
            )
        return table


def point(params: Mapping[str, Any]) -> str:
    """A point of the space in one line."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in params.items()
    )


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
    facts.add_row("winner", f"{result['best']['trial_id']}: {point(result['best']['params'])}")
    facts.add_row("checkpoint", str(result["best"]["checkpoint"]))
    if result["win_rate"] is not None:
        facts.add_row("win rate over base", estimate(result["win_rate"]))
    for who, accuracy in result["accuracy"].items():
        facts.add_row(f"accuracy of {who}", estimate(accuracy))
    facts.add_row("seconds", ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in result["seconds"].items()))
    facts.add_row("peak memory", f"{result['peak_memory_bytes'] / 2**30:.2f} GiB")
    return Group(table, Text(), facts)


def attempts_view(run_dir: RunDir, spec: SweepSpec) -> Group:
    """How far a sweep without a result has come, read from its journals."""
    console = Console(file=io.StringIO(), force_terminal=False)
    board = Board(console, steps=spec.budget.steps, trials=spec.budget.trials, objective=spec.objective.metric)
    lines: list[Text] = []
    for attempt in run_dir.attempts():
        records = read_journal(attempt)
        for record in records:
            board(record)
        lines.append(
            Text(f"attempt {attempt.number}: {records[-1]['message'] if records else 'claimed, nothing written'}")
        )
    return Group(*(lines or [Text("not started")]), board)


def estimate(values: Mapping[str, Any]) -> str:
    """An estimate with its interval."""
    return f"{values['estimate']:.3f} [{values['low']:.3f}, {values['high']:.3f}] (n={values['n']})"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
