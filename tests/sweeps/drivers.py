"""A sweep's driver in a process of its own, which a test may kill.

It starts a Ray of its own, unless a test is about a cluster: one that was frozen or killed may leave the tests' common
Ray with a core less for all that follow (seen with 2.60: no actor and no group holds it).
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from sweeps.run_dir import RunDir, read_journal
from tests.house import REPO


class Driver:
    """`python -m sweeps run` in a process of its own; killed by its pid at the end if it still runs."""

    def __init__(
        self,
        spec: Path,
        run: RunDir | str,
        *more: str,
        environment: Mapping[str, str] | None = None,
        until: tuple[str, int] | None = None,
        suspending: int = 0,
    ) -> None:
        """Describe it.

        Args:
            spec: the sweep.
            run: where to; a name where it is no directory.
            more: options.
            environment: for it alone.
            until: (what, count): so far it goes by itself, then the search waits for `let_go` (`tests.sweeps.held`).
            suspending: trials are suspended at their start until there are some on so many nodes; for the test to wake.
        """
        self._environment = environment or {}
        self._temporary = tempfile.mkdtemp(prefix="dr", dir="/tmp")  # short, for Ray's sockets; a killed Ray leaves it
        self._gate = Path(self._temporary, "gate")
        out = run if isinstance(run, str) else str(run.root)
        module = ["sweeps"]
        if until is not None:
            module = held(*until, self._gate)
        elif suspending:
            module = ["tests.sweeps.held", "trials", str(suspending)]
        self._command = [sys.executable, "-m", *module, "run", str(spec), "--out", out, "--quiet", *more]

    def __enter__(self) -> subprocess.Popen[bytes]:
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        environment |= {"TMPDIR": self._temporary, **self._environment}
        self._process = subprocess.Popen(self._command, cwd=REPO, env=environment)
        return self._process

    def let_go(self) -> None:
        """The search goes on."""
        self._gate.touch()

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)


def held(what: str, count: int, gate: Path) -> list[str]:
    """The module in the place of `sweeps`, with its own arguments: it waits for `gate` where it has come so far."""
    return ["tests.sweeps.held", "journal", what, str(count), str(gate)]


def wait_for(run: RunDir, kind: str, count: int, timeout_s: float = 300.0) -> None:
    """Until the first attempt has written so many records of a kind."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if sum(record["type"] == kind for record in read_journal(run.attempt(1))) >= count:
            return
        time.sleep(0.1)
    raise AssertionError(f"no {count} x {kind} within {timeout_s} s: {read_journal(run.attempt(1))[-1:]}")


def wait_until(true: Callable[[], bool], timeout_s: float = 300.0) -> None:
    """Until it is."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.5)


AGENTS = ("ray::DashboardA", "ray::RuntimeEnv")
"""As far as Linux keeps a process's name."""


def leftovers(family: Sequence[psutil.Process], timeout_s: float = 120.0, but: tuple[str, ...] = AGENTS) -> list[str]:
    """Names of the processes of a killed driver that do not end by themselves; whatever is left is killed.

    Ray's two agents do end, but first they try for a minute to tell the dead GCS why: they are not waited for.
    """
    deadline = time.monotonic() + timeout_s
    while (stubborn := [name for name in map(name_of, family) if name and not name.startswith(but)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.1)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return stubborn


def name_of(process: psutil.Process) -> str:
    """Empty once it has ended."""
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else process.name()
    except psutil.NoSuchProcess:
        return ""
