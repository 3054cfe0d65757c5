"""Signals around work that must be cleaned up, and the memory that is watched meanwhile."""

import os
import signal
import threading

import pytest

from service.interrupts import shielded, terminable
from service.peak_memory import PeakMemory

pytestmark = pytest.mark.quick


def test_sigterm_ends_the_work_like_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal comes first")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_cleaning_up_is_not_interrupted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with shielded():
        os.kill(os.getpid(), number)
        cleaned = True
    assert cleaned and signal.getsignal(number) is before


def test_other_threads_have_no_signals() -> None:
    done = []

    def work() -> None:
        with terminable(), shielded():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


def test_the_peak_stays_when_the_memory_goes() -> None:
    sizes = [1 << 40, 0, 0]
    sampled = threading.Event()

    def measure() -> int:
        if len(sizes) == 1:
            sampled.set()
            return 0
        return sizes.pop(0)

    with PeakMemory(measure, every_s=0.01) as memory:
        assert sampled.wait(30)
    assert 1 << 40 < memory.peak_bytes < 1 << 41
