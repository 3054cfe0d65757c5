"""The end of an attempt that was told to end: by a signal, a successor's claim, or an edit that cancels."""

import _thread
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from simpo.errors import SimPOError, StorageError
from sweeps.run_dir import Attempt, Level

log = logging.getLogger(__name__)

_ECHO_S = 1.0  # a signal that comes so soon after Stopped was raised says nothing new: who handles it is at work


class Stopped(BaseException):
    """The attempt was told to end. Not an Exception: Tune must not take it for a failed trial."""


class Stop:
    """Turns a signal, a successor's claim or a person's cancel into Stopped in the main thread."""

    def __init__(self, *, at_once: bool = True) -> None:
        """at_once=False: signals raise nothing before `heed` is called."""
        self.reason: str | None = None
        self._heeded_from = -math.inf if at_once else math.inf  # monotonic; signals before it raise nothing

    def install(self) -> None:
        """Handle SIGTERM and SIGINT; only a main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)

    def superseded(self) -> None:
        """Called from the pulse's thread."""
        self.reason = "a newer attempt has taken over"
        _thread.interrupt_main(signal.SIGTERM)

    def cancelled(self) -> None:
        """Called from the thread that reads edits."""
        self.reason = self.reason or "cancelled"
        _thread.interrupt_main(signal.SIGTERM)

    def heed(self) -> None:
        """From now on signals raise Stopped; one that has come already does so here."""
        self._heeded_from = -math.inf
        self.check()

    def check(self) -> None:
        """Raise Stopped if it is time: a handler's exception can get lost in a library's callback."""
        if self.reason is not None:
            self._raise(self.reason)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """No signal interrupts what is done here; one that comes is in `reason`."""
        self._heeded_from = math.inf
        try:
            yield
        finally:
            self._heeded_from = time.monotonic() + _ECHO_S

    def _on_signal(self, number: int, frame: object) -> None:
        self.reason = self.reason or f"stopped by {signal.Signals(number).name}"
        if time.monotonic() >= self._heeded_from:
            self._raise(self.reason)

    def _raise(self, reason: str) -> NoReturn:
        # The reason is known before the signal that tells of it comes: `check` may have been faster.
        self._heeded_from = time.monotonic() + _ECHO_S
        raise Stopped(reason)


@contextmanager
def stoppable(*, at_once: bool = True) -> Iterator[Stop]:
    """Handle SIGTERM and SIGINT for the length of the context; the handlers before it come back.

    at_once=False: one raises Stopped only within `ending_told`, which alone can tell of it.
    """
    stop = Stop(at_once=at_once)
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
    stop.install()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ending_told(attempt: Attempt, stop: Stop) -> Iterator[None]:
    """The journal hears why the attempt ended early; the exception goes on.

    USER_ERROR: a SimPOError, but none that passes (a full disk, a Ray that does not answer): the same spec may go well
    in the next attempt.
    """
    try:
        stop.heed()
        yield
    except Stopped as stopped:
        with stop.undisturbed():
            _close(attempt, "job.stopped", str(stopped), {"reason": str(stopped)}, "warn")
        raise
    except SimPOError as error:
        with stop.undisturbed():
            _note_failure(attempt, "SYSTEM_ERROR" if error.passes else "USER_ERROR", error)
        raise
    except Exception as error:
        reason = stop.reason
        with stop.undisturbed():
            if reason is None:
                _note_failure(attempt, "SYSTEM_ERROR", error)
                raise
            # A library has put its own exception in the place of Stopped.
            _close(attempt, "job.stopped", reason, {"reason": reason}, "warn")
        raise Stopped(reason) from error


def _note_failure(attempt: Attempt, kind: str, error: Exception) -> None:
    message = str(error) or type(error).__name__
    log.error("attempt %d failed", attempt.number, exc_info=not isinstance(error, SimPOError))
    data = {"class": kind, "code": type(error).__name__, "message": message}
    _close(attempt, "job.failed", message, data, "error")


def _close(attempt: Attempt, kind: str, message: str, data: dict[str, str], level: Level) -> None:
    try:
        attempt.last_word(kind, message, data, level=level)
    except StorageError as full:
        log.error("the journal of attempt %d cannot say %r: %s", attempt.number, message, full)
