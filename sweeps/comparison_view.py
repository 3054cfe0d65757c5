"""A comparison in the terminal: one line a method while it runs, the table and the verdicts when it is over."""

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.board import ENDINGS, Board
from sweeps.board_view import plain_lines, point, short, trial_table
from sweeps.comparison_report import cells, head
from sweeps.run_dir import Record, RunDir, read_journal, read_result
from sweeps.spec import SweepSpec

_TOLD = {*ENDINGS, "job.started", "job.finished", "job.failed", "job.stopped"}
"""Records that are worth a line in a log."""


class ComparisonScreen:
    """Shows the boards of all methods while records come in; in a log, one line a record that matters."""

    def __init__(
        self, sweeps: Mapping[str, SweepSpec], console: Console, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.boards = {name: Board.of(sweep.model_dump(mode="json")) for name, sweep in sweeps.items()}
        self._console = console
        self._clock = clock
        self._started = clock()
        self._preparing = ""
        self._current: str | None = None
        self._lock = threading.RLock()  # records come from Tune's thread, the live table draws in its own
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=2)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def preparing(self, share: float, message: str) -> None:
        """How far the data and the base are."""
        said = message.partition(":")[0]
        with self._lock:
            told, self._preparing = said != self._preparing, said
        if told and not self._console.is_terminal:
            self._print(f"preparing: {message}")

    def take(self, name: str, record: Record) -> None:
        """One record of a method's sweep."""
        kind, message, data = record["type"], record["message"], record["data"]
        with self._lock:
            self._current, self._preparing = name, ""
            self.boards[name].apply(kind, message, data)
            if self._console.is_terminal or kind not in _TOLD:
                return
            for line in plain_lines(self.boards[name], kind, message, data):
                self._print(f"{name}: {line}")

    def _print(self, line: str) -> None:
        text = f"[{self._clock() - self._started:6.1f} s] {line}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> RenderableType:
        with self._lock:
            parts: list[RenderableType] = [boards_table(self.boards)]
            if self._preparing:
                parts.append(Text(f"preparing: {self._preparing}", style="cyan"))
            if self._current is not None:
                rows = max(3, self._console.height - len(self.boards) - 8)
                parts.append(trial_table(self.boards[self._current], rows=rows))
            return Group(*parts)


def boards_table(boards: Mapping[str, Board]) -> Table:
    """One row a method: phase, progress, trials, best so far."""
    listed = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("method", "phase", "", "trials", "best", "at"):
        listed.add_column(title, no_wrap=True)
    for name, board in boards.items():
        listed.add_row(
            name,
            Text(board.phase, style="green" if board.phase == "done" else "cyan"),
            ProgressBar(total=1.0, completed=board.overall, width=20),
            f"{board.finished}/{board.total}",
            short(board.best_value),
            point(board.best.params) if board.best else "",
        )
    return listed


def read_boards(runs: Mapping[str, RunDir], sweeps: Mapping[str, SweepSpec]) -> dict[str, Board]:
    """The boards of a comparison that is not followed, from its journals."""
    boards = {name: Board.of(sweep.model_dump(mode="json")) for name, sweep in sweeps.items()}
    for name, run in runs.items():
        for attempt in run.attempts():
            for record in read_journal(attempt):
                boards[name].apply(record["type"], record["message"], record["data"])
            if read_result(attempt) is not None:
                boards[name].phase = "done"
    return boards


def comparison_view(result: Mapping[str, Any]) -> Group:
    """The table of a finished comparison, its verdicts below."""
    listed = Table(box=None, padding=(0, 1), header_style="dim")
    for title in head(result):
        listed.add_column(title)
    for row in cells(result):
        listed.add_row(*row)
    decided = [verdict["text"] for verdict in result["verdicts"] if verdict["above"]]
    undecided = [verdict["text"] for verdict in result["verdicts"] if not verdict["above"]]
    lines = [
        *decided,
        *(undecided if len(undecided) <= 6 else [f"undecided: {len(undecided)} of {len(result['verdicts'])} pairs"]),
    ]
    lines += [f"not the same budget: {text}" for text in result["unequal"]]
    return Group(listed, Text(), *(Text(line) for line in lines))
