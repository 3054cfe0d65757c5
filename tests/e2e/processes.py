"""Watching from outside what a command starts, so that a test can say that nothing of it is left."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from service.local_process import MARK


@dataclass(frozen=True)
class Seen:
    """One process that was seen: pids are used again, pid and start time together are not."""

    pid: int
    started: float
    name: str

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.started) < 0.01
        return False


class Watcher:
    """Remembers every process of the stack in `home` for as long as the context lasts."""

    def __init__(self, home: Path) -> None:
        self.seen: set[Seen] = set()
        self._state = home / "stack.json"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def left(self, patience_s: float = 120.0) -> list[Seen]:
        """Those that still run; a moment is granted to the dying."""
        deadline = time.monotonic() + patience_s
        while (alive := [process for process in self.seen if process.alive]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return alive

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            with suppress(OSError, ValueError, KeyError):
                self.seen |= stack_processes(json.loads(self._state.read_text(encoding="utf-8"))["id"])


def stack_processes(stack_id: str) -> set[Seen]:
    """Every process that carries the stack's mark in its environment."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == stack_id:
                found.add(Seen(process.pid, process.create_time(), process.name()))
    return found


def simpo(*args: str) -> list[str]:
    """The command line of `simpo` in this interpreter.

    As from a person's terminal: a shell that runs the suite in the background has its children ignore Ctrl-C.
    """
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    return [sys.executable, "-c", f"{heed}; from service.cli import main; main()", *args]


def run(args: Sequence[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """A command to its end; raises with all of its output when it takes too long."""
    return subprocess.run(args, capture_output=True, text=True, timeout=timeout_s, check=False)
