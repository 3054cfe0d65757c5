"""The end of a process, with nobody cut off: it says that it goes, ends its streams with a hint, then stops listening.

On SIGTERM (or Ctrl-C) /readyz answers 503 at once and open event streams end, each with a hint when to come back. For
SIMPO_DRAIN_S everything else is answered as before; then the server gets the signal: it stops listening, finishes what
is in flight, and ends. A second signal is passed on at once.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


class Drain:
    """Of one process."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: between the signal and the end of listening."""
        self._seconds = seconds
        self.begun = False

    @contextmanager
    def on_signals(self, begin: Callable[[], None]) -> Iterator[None]:
        """Within this, the first SIGTERM or SIGINT calls `begin` on the event loop, and reaches the server later."""
        loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread alone: this is a test, or somebody else's server
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def come(number: int, frame: FrameType | None) -> None:
            if self.begun:
                _pass_on(before[signal.Signals(number)], number, frame)
                return
            self.begun = True
            handler = before[signal.Signals(number)]
            loop.call_soon_threadsafe(begin)
            loop.call_soon_threadsafe(loop.call_later, self._seconds, _pass_on, handler, number, None)

        for number in before:
            signal.signal(number, come)
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) is come:
                    signal.signal(number, handler)


def _pass_on(handler: Any, number: int, frame: FrameType | None) -> None:
    """What would have happened without us."""
    if callable(handler):
        handler(number, frame)
    elif handler != signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
