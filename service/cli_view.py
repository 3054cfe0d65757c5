"""How a sweep is watched: a live table on a terminal, plain lines anywhere else (logs, pipes, CI)."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.cli_board import ENDINGS, Board, TrialRow, as_number
from service.client import Event

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


def watch(
    board: Board, events: Iterable[Event], console: Console, *, clock: Callable[[], float] = time.monotonic
) -> Board:
    """Show the events as they come, until they end. Returns the board as it stands then."""
    started = clock()
    if not console.is_terminal:
        told = ("", -1.0)  # phase and progress that a line was spent on
        for event in events:
            board.apply(event)
            if event.type == "job.phase":
                if board.phase == told[0] and board.progress < told[1] + _PHASE_LINE_EVERY - 1e-9:
                    continue
                told = (board.phase, board.progress)
            for line in plain_lines(board, event):
                console.print(f"[{clock() - started:6.1f} s] {line}", markup=False, highlight=False, soft_wrap=True)
        return board
    with Live(
        get_renderable=lambda: draw(board, seconds=clock() - started, height=console.height),
        console=console,
        refresh_per_second=2,
    ):
        for event in events:
            board.apply(event)
    return board


def draw(board: Board, *, seconds: float, height: int) -> RenderableType:
    """Headline with progress bar, table of trials, best so far; at most `height` lines."""
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text(board.name, style="bold"),
        Text(board.phase, style="cyan"),
        ProgressBar(total=1.0, completed=board.overall, width=30),
        Text(f"{board.finished}/{board.total} trials"),
        Text(f"{seconds:.0f} s", style="dim"),
    )
    return Group(head, trial_table(board, rows=max(3, height - 8)), Text.from_markup(_best_line(board)))


def trial_table(board: Board, *, rows: int) -> Table:
    """Trials in order of number. Over `rows`, the oldest finished ones are left out and counted."""
    shown = _choose(board, rows)
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


def plain_lines(board: Board, event: Event) -> list[str]:
    """What an event is worth in a log: none for step-by-step progress, one line for what matters."""
    data = event.data
    row = board.trials.get(str(data.get("trial_id")))
    label = f"trial {row.number}" if row else "trial"
    if event.type == "trial.progress":
        return []
    if event.type == "trial.created" and row:
        return [f"{label}: {point(row.params)}"]
    if event.type == "trial.rung" and row:
        return [f"{label}: step {short(row.step)}, {_metrics(row, board.metric)}"]
    if event.type in ENDINGS and row:
        value = "" if row.value is None else f", {board.metric.replace('_', ' ')} {short(row.value)}"
        return [f"{label}: {row.state}{value} ({board.finished}/{board.total}): {row.why}"]
    if event.type == "best.updated":
        where = f" by trial {board.best.number} ({point(board.best.params)})" if board.best else ""
        return [f"best so far: {board.metric.replace('_', ' ')} {short(board.best_value)}{where}"]
    if event.type == "job.phase":
        share = as_number(data.get("progress"))
        if event.message.startswith(board.phase):
            return [event.message]
        return [f"{board.phase}{f' {share:.0%}' if share else ''}{f': {event.message}' if event.message else ''}"]
    return [event.message or event.type]


def point(params: dict[str, Any]) -> str:
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
