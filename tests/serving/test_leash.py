"""The leash of vLLM's server: whatever ends, and however, nothing that it held lives on."""

import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from service.serving.engines import leash
from tests.serving.test_vllm import members

PROGRAM = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE).wait()"


@pytest.fixture
def held() -> subprocess.Popen[bytes]:
    """A program with a child of its own."""
    command = [sys.executable, "-I", "-S", str(leash.__file__), sys.executable, "-c", PROGRAM]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    wait(lambda: len(members(process.pid)) == 4)  # leader, watcher, program, its child
    return process


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_closed_pipe_ends_all_of_them(held: subprocess.Popen[bytes]) -> None:
    assert held.stdin is not None
    held.stdin.close()
    held.wait(60)
    wait(lambda: members(held.pid) == [])


def test_a_leader_that_is_killed_takes_all_with_it(held: subprocess.Popen[bytes]) -> None:
    """As Ray does with the children of a worker that ends, though their pipe were open still."""
    assert held.stdin is not None
    held.kill()
    held.wait(60)
    wait(lambda: members(held.pid) == [])
    held.stdin.close()


def test_a_program_that_ends_ends_the_leash(held: subprocess.Popen[bytes]) -> None:
    assert held.stdin is not None
    (watcher,) = psutil.Process(held.pid).children()
    (program,) = watcher.children()
    program.kill()
    held.wait(60)
    wait(lambda: members(held.pid) == [])
    held.stdin.close()
