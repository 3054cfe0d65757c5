"""An attempt that is told to end says so, also where it is told twice at the worst moment."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simpo.errors import ConfigError
from sweeps.pulse import Pulse
from sweeps.run_dir import Attempt, RunDir, read_journal
from sweeps.stopping import Stop, Stopped, ending_told, stoppable

pytestmark = pytest.mark.quick


class Interrupted(Attempt):
    """Its last word is interrupted by whatever a test does at that moment."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def append(self, *args: Any, **options: Any) -> None:
        self.meanwhile()
        super().append(*args, **options)


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    claimed = RunDir(tmp_path).claim(1)
    claimed.__class__ = Interrupted
    return claimed


@pytest.fixture
def stop() -> Iterator[Stop]:
    with stoppable() as stop:
        yield stop


def told(attempt: Attempt) -> list[tuple[str, Any]]:
    return [(record["type"], record["data"].get("reason")) for record in read_journal(attempt)]


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_signal_that_tells_of_a_known_reason_does_not_cut_off_the_last_word(attempt: Any, stop: Stop) -> None:
    """The pulse says why, then sends the signal: between the two `check` may have stopped the attempt already."""
    attempt.meanwhile = sigterm
    with pytest.raises(Stopped, match="taken over"), ending_told(attempt, stop):
        stop.reason = "a newer attempt has taken over"
        stop.check()
    assert told(attempt) == [("job.stopped", "a newer attempt has taken over")]


def test_a_second_signal_neither(attempt: Any, stop: Stop) -> None:
    attempt.meanwhile = lambda: (time.sleep(0.01), sigterm())
    with pytest.raises(Stopped, match="SIGTERM"), ending_told(attempt, stop):
        sigterm()
        time.sleep(10)
    assert told(attempt) == [("job.stopped", "stopped by SIGTERM")]


@pytest.mark.parametrize("error", [ConfigError("no such data", "data"), RuntimeError("it broke")])
def test_what_failed_says_so_although_it_is_told_to_end(attempt: Any, stop: Stop, error: Exception) -> None:
    attempt.meanwhile = sigterm
    with pytest.raises(type(error)), ending_told(attempt, stop):
        raise error
    assert [kind for kind, _ in told(attempt)] == ["job.failed"]


def test_an_exception_that_got_lost_is_raised_by_the_next_look_and_by_a_later_signal(
    stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.stopping._ECHO_S", 0.02)
    with pytest.raises(Stopped):
        sigterm()
    with pytest.raises(Stopped):
        stop.check()
    time.sleep(0.05)
    with pytest.raises(Stopped, match="SIGTERM"):
        sigterm()


def test_what_comes_before_anybody_can_tell_of_it_is_told(attempt: Any) -> None:
    """The pulse may be faster than the two lines between its start and the context that has the last word."""
    with pytest.raises(Stopped, match="SIGTERM"), stoppable(at_once=False) as stop:
        sigterm()
        with ending_told(attempt, stop):
            pytest.fail("it was told to end before")
    assert told(attempt) == [("job.stopped", "stopped by SIGTERM")]


def test_the_pulse_of_a_superseded_attempt_stops_it_whole_whoever_is_faster(tmp_path: Path) -> None:
    """Many times over, with a main thread that looks all the time: both orders come up."""
    for number in range(30):
        run = RunDir(tmp_path / str(number))
        run.place.beat_s = 0.001
        attempt = run.claim(1)
        successor = threading.Timer(0.002, run.claim, [2])
        successor.start()
        with (
            pytest.raises(Stopped, match="taken over"),
            stoppable(at_once=False) as stop,
            Pulse(attempt, stop.superseded),
            ending_told(attempt, stop),
        ):
            while True:
                stop.check()
        successor.join()
        assert told(attempt) == [("job.stopped", "a newer attempt has taken over")]
