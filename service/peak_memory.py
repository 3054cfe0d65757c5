"""The most memory that a stack and this process took together, sampled from outside."""

import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil


class PeakMemory:
    """A context that samples `measure` until it is left. `peak_bytes` is the largest sum of that and this process."""

    def __init__(self, measure: Callable[[], int], *, every_s: float = 5.0) -> None:
        """`measure`: memory of everything else, in bytes; pages that processes share counted once."""
        self.peak_bytes = 0
        self._measure = measure
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            with suppress(psutil.Error):  # a process may end while it is read
                here = psutil.Process().memory_full_info().pss
                self.peak_bytes = max(self.peak_bytes, here + self._measure())
            if self._over.wait(self._every_s):
                return
