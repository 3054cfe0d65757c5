"""The driver's pulse: a thread that beats the heart, weighs the process tree, looks for a successor and for edits."""

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from sweeps.run_dir import Attempt, RunDirError

log = logging.getLogger(__name__)

WEIGH_EVERY = 3
"""Beats between two looks at the memory: reading the shares of every process costs tens of milliseconds."""


class Pulse:
    """`with Pulse(attempt, on_superseded): ...`. Counts and phase are set by the driver, read by the thread."""

    def __init__(self, attempt: Attempt, on_superseded: Callable[[], None]) -> None:
        self.counts: Callable[[], Mapping[str, Any]] = dict
        self.pids: Callable[[], set[int]] = set
        """Processes outside of our own tree that work for us: trials of a cluster on this machine."""
        self.heed: Callable[[], None] = lambda: None
        """Looks for edits of people (`sweeps.desk`)."""
        self.peak_memory_bytes = 0
        self._attempt = attempt
        self._on_superseded = on_superseded
        self._superseded = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        if not self._superseded:
            self._beat()  # the last word on the counts

    def _run(self) -> None:
        beats = 0
        while True:
            if beats % WEIGH_EVERY == 0:
                self.peak_memory_bytes = max(self.peak_memory_bytes, memory_bytes(self.pids()))
            self._beat()
            if self._succeeded():
                self._superseded = True
                self._on_superseded()
                return
            self._heed()
            beats += 1
            if self._stop.wait(self._attempt.run.place.beat_s):
                return

    def _succeeded(self) -> bool:
        """Whether a successor is known of; where nobody can tell, publishing will ask again."""
        with contextlib.suppress(RunDirError):
            return self._attempt.superseded()
        return False

    def _heed(self) -> None:
        try:
            self.heed()
        except RunDirError:  # a full disk: the edit is looked at again
            pass
        except Exception:  # a heart that stops would cost the whole attempt
            log.exception("an edit could not be answered")

    def _beat(self) -> None:
        with contextlib.suppress(RunDirError):  # a full disk: the reader will see that the heart has stopped
            self._attempt.beat({**self.counts(), "peak_memory_bytes": self.peak_memory_bytes})


def memory_bytes(others: set[int]) -> int:
    """Memory of this process, its descendants and `others`; what processes share is counted once (PSS)."""
    own = psutil.Process()
    tree = {process.pid: process for process in (own, *own.children(recursive=True))}
    for pid in others - tree.keys():
        with contextlib.suppress(psutil.Error):
            tree[pid] = psutil.Process(pid)
    total = 0
    for process in tree.values():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            total += process.memory_full_info().pss
    return total
