"""How a sweep is watched: a live table on a terminal, plain lines anywhere else (logs, pipes, CI). Light."""

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.board import ENDINGS, Board, TrialRow, as_number, reference_line

_PHASE_LINE_EVERY = 0.2  # share of a phase that is worth a line in a log
_TITLES = {"learning_rate": "lr", "gamma_beta_ratio": "gamma/beta"}
_STYLES = {
    "RUNNING": "cyan",
    "COMPLETE": "green",
    "SUCCEEDED": "green",
    "PRUNED": "yellow",
    "FAILED": "red",
    "INFEASIBLE": "magenta",
}


class Screen:
    """Shows a board while records come in: a live table on a terminal, one line a record that matters elsewhere."""

    def __init__(self, board: Board, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.board = board
        self._console = console
        self._clock = clock
        self._started = clock()
        self._told = ("", -1.0)  # phase and progress that a line was spent on
        self._lock = threading.Lock()  # records may come from any thread, and a live table draws in its own
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=2)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def take(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        """One record: its type, its sentence, its facts."""
        with self._lock:
            self.board.apply(kind, message, data)
            if self._console.is_terminal or (kind == "job.phase" and not self._worth_a_line()):
                return
            for line in plain_lines(self.board, kind, message, data):
                text = f"[{self._clock() - self._started:6.1f} s] {line}"
                self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _worth_a_line(self) -> bool:
        phase, progress = self.board.phase, self.board.progress
        # The last digit of a sum of fractions must not decide.
        if phase == self._told[0] and progress < self._told[1] + _PHASE_LINE_EVERY - 1e-9:
            return False
        self._told = (phase, progress)
        return True

    def _draw(self) -> RenderableType:
        with self._lock:
            return draw(self.board, seconds=self._clock() - self._started, height=self._console.height)


def draw(board: Board, *, seconds: float, height: int) -> RenderableType:
    """Headline with progress bar, table of trials, best so far; at most `height` lines."""
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text(board.name, style="bold"),
        Text(board.where, style="yellow" if board.paused else "cyan"),
        ProgressBar(total=1.0, completed=board.overall, width=30),
        Text(f"{board.finished}/{board.total} trials"),
        Text(f"{seconds:.0f} s", style="dim"),
    )
    cost = [] if board.reference is None else [Text(reference_line(board.reference), style="dim")]
    table = trial_table(board, rows=max(3, height - 8 - len(cost)))
    return Group(head, *cost, table, Text.from_markup(_best_line(board)))


def trial_table(board: Board, *, rows: int | None = None) -> Table:
    """Trials in order of number. Over `rows`, the oldest finished ones are left out and counted."""
    shown = _choose(board, len(board.trials) if rows is None else rows)
    hidden = len(board.trials) - len(shown)
    table = Table(
        caption=f"and {hidden} finished earlier" if hidden else None, box=SIMPLE_HEAD, pad_edge=False, expand=True
    )
    params = list(dict.fromkeys(key for row in board.trials.values() for key in row.params))
    table.add_column("#", justify="right")
    table.add_column("state", no_wrap=True)
    for name in params:
        table.add_column(_TITLES.get(name, name), justify="right", no_wrap=True)
    for title in ("step", "loss", board.metric.replace("_", " ")):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("why it ended", overflow="ellipsis", no_wrap=True, ratio=1)
    for row in shown:
        leads = row.trial_id == board.best_id
        table.add_row(
            str(row.number),
            Text(row.state, style=_STYLES.get(row.state, "")),
            *(short(row.params.get(name)) for name in params),
            short(row.step),
            short(row.metrics.get("loss")),
            short(row.value if row.value is not None else row.metrics.get(board.metric)),
            Text(row.why),
            style="bold" if leads else "",
        )
    return table


def plain_lines(board: Board, kind: str, message: str, data: Mapping[str, Any]) -> list[str]:
    """What a record is worth in a log: none for step-by-step progress, one line for what matters."""
    row = board.trials.get(str(data.get("trial_id")))
    label = f"trial {row.number}" if row else "trial"
    if kind == "trial.progress":
        return []
    if kind == "trial.created" and row:
        return [f"{label}: {point(row.params)}"]
    if kind == "trial.rung" and row:
        return [f"{label}: step {short(row.step)}, {_metrics(row, board.metric)}"]
    if kind in ENDINGS and row:
        value = "" if row.value is None else f", {board.metric.replace('_', ' ')} {short(row.value)}"
        return [f"{label}: {row.state}{value} ({board.finished}/{board.total}): {row.why}"]
    if kind == "best.updated":
        where = f" by trial {board.best.number} ({point(board.best.params)})" if board.best else ""
        return [f"best so far: {board.metric.replace('_', ' ')} {short(board.best_value)}{where}"]
    if kind == "job.phase":
        share = as_number(data.get("progress"))
        if message.startswith(board.phase):
            return [message]
        return [f"{board.phase}{f' {share:.0%}' if share else ''}{f': {message}' if message else ''}"]
    return [message or kind]


def point(params: Mapping[str, Any]) -> str:
    """A point of the space in one line: `beta 2.31, gamma/beta 0.42, lr 1.2e-04`."""
    return ", ".join(f"{_TITLES.get(key, key)} {short(value)}" for key, value in params.items())


def short(value: Any) -> str:
    """A value for a narrow column."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return (
        f"{value:.1e}"
        if value and not 1e-3 <= abs(value) < 1e5
        else f"{value:.4g}"
        if abs(value) >= 1
        else f"{value:.3f}"
    )


def _choose(board: Board, rows: int) -> list[TrialRow]:
    by_number = sorted(board.trials.values(), key=lambda row: row.number)
    if len(by_number) <= rows:
        return by_number
    ranked = sorted(by_number, key=lambda row: (row.over, row.trial_id != board.best_id, -row.number))
    return sorted(ranked[:rows], key=lambda row: row.number)


def _best_line(board: Board) -> str:
    if board.best is None:
        return "[dim]no trial has finished a rung yet[/dim]"
    value = f"{board.metric.replace('_', ' ')} {short(board.best_value)}"
    where = f"trial {board.best.number} ({escape(point(board.best.params))})"
    return f"best so far: [bold green]{value}[/bold green] by {where}"


def _metrics(row: TrialRow, metric: str) -> str:
    names = dict.fromkeys((metric, "accuracy", "length_ratio", "empty_rate"))
    return ", ".join(f"{name.replace('_', ' ')} {short(row.metrics[name])}" for name in names if name in row.metrics)
