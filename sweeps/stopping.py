"""The end of an attempt that was told to end: by a signal, a successor's claim, or an edit that cancels."""

import _thread
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from simpo.errors import SimPOError, StorageError
from sweeps.run_dir import Attempt, Level

log = logging.getLogger(__name__)


class Stopped(BaseException):
    """The attempt was told to end. Not an Exception: Tune must not take it for a failed trial."""


class Stop:
    """Turns a signal, a successor's claim or a person's cancel into Stopped in the main thread."""

    def __init__(self) -> None:
        self.reason: str | None = None

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

    def check(self) -> None:
        """Raise Stopped if it is time: a handler's exception can get lost in a library's callback."""
        if self.reason is not None:
            raise Stopped(self.reason)

    def _on_signal(self, number: int, frame: object) -> None:
        self.reason = self.reason or f"stopped by {signal.Signals(number).name}"
        raise Stopped(self.reason)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Handle SIGTERM and SIGINT for the length of the context; the handlers before it come back."""
    stop = Stop()
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
        yield
    except Stopped as stopped:
        _close(attempt, "job.stopped", str(stopped), {"reason": str(stopped)}, "warn")
        raise
    except SimPOError as error:
        _note_failure(attempt, "SYSTEM_ERROR" if error.passes else "USER_ERROR", error)
        raise
    except Exception as error:
        if stop.reason is not None:  # a library has put its own exception in the place of Stopped
            _close(attempt, "job.stopped", stop.reason, {"reason": stop.reason}, "warn")
            raise Stopped(stop.reason) from error
        _note_failure(attempt, "SYSTEM_ERROR", error)
        raise


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
