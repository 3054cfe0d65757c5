"""The stage of `test_machines`: what it shuts out is what makes that test a proof."""

import errno
import socket
import time
from pathlib import Path

import pytest

from tests.e2e.namespaces import Machine, network

pytestmark = pytest.mark.e2e
ELSEWHERE = "198.51.100.1"
"""TEST-NET-2. Without a route nothing is sent there, whoever may answer."""


def test_machines_reach_each_other_and_nothing_else() -> None:
    with network("one", "two") as (one, two), socket.create_server(("127.0.0.1", 0)) as ours:
        with one.inside():
            theirs = socket.create_server((one.address, 0))
        with theirs, two.inside():
            socket.create_connection(theirs.getsockname(), timeout=60).close()
            with pytest.raises(OSError, match="unreachable") as caught:
                socket.create_connection((ELSEWHERE, 80), timeout=60)
            assert caught.value.errno == errno.ENETUNREACH
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(ours.getsockname(), timeout=60)
        socket.create_connection(ours.getsockname(), timeout=60).close()  # back where we were


def test_a_machine_has_its_own_files_and_dies_as_a_whole() -> None:
    with network("one", "two") as (one, two):
        for machine in (one, two):
            machine.start(["sh", "-c", "setsid sleep 600 & echo $$ > /tmp/here; wait"], {})
        deadline = time.monotonic() + 120
        while not all(here(machine) and len(machine.processes()) == 2 for machine in (one, two)):
            assert time.monotonic() < deadline, [machine.processes() for machine in (one, two)]
            time.sleep(0.05)
        assert not Path("/tmp/here").exists()
        assert len({here(machine) for machine in (one, two)}) == 2, "each has a file of its own"
        one.kill()
        assert (one.processes(), len(two.processes())) == ([], 2)
    assert two.processes() == []
    assert not one.home.exists()


def here(machine: Machine) -> str:
    """What its program has written; a shell makes the file before it writes."""
    path = machine.home / "here"
    return path.read_text() if path.exists() else ""
