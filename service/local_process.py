"""Processes of the embedded stack: started in their own session, known by pid *and* start time, ended as a whole.

Every process of one stack carries the stack's id in its environment, children of children included. So all are found
at the end, also those whose parent died and that now belong to init; and a pid that the system gave to somebody else in
the meantime is never touched.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import psutil

MARK = "SIMPO_STACK"
"""Environment variable that holds the stack's id in each of its processes."""

_children: list[subprocess.Popen[bytes]] = []  # of this process; who starts a process must reap it if it ends first
_POLL_S = 0.02
_OWN_PREFIXES = ("RAY_", "SIMPO_")  # of another Ray or another stack: ours sets what it needs


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One process, for ever: pids are used again, pid and start time together are not."""

    pid: int
    """Process id."""
    started: float
    """Unix time of its start, as the system tells it."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """Raises psutil.NoSuchProcess."""
        return cls(pid=pid, started=psutil.Process(pid).create_time())

    @classmethod
    def parse(cls, body: Mapping[str, Any] | None) -> Self | None:
        """From `as_dict`; None for nothing."""
        return cls(pid=int(body["pid"]), started=float(body["started"])) if body else None

    def as_dict(self) -> dict[str, Any]:
        """For stack.json."""
        return {"pid": self.pid, "started": self.started}

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.started) < 0.01
        except psutil.NoSuchProcess:
            return False


def spawn(
    command: Sequence[str],
    *,
    stack_id: str,
    environment: Mapping[str, str],
    directory: Path,
    log: Path,
    fallbacks: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Start a program that outlives us, and return its pid: own session, no terminal, output appended to `log`.

    It inherits our environment, without what belongs to another Ray or another stack; `environment` overrides it, and
    `fallbacks` fill what it lacks. The programs beside our own Python come first in its PATH.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_OWN_PREFIXES)}
    inherited["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)))
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            env={**fallbacks, **inherited, **environment, MARK: stack_id},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _children.append(child)
    return child.pid


def handed_on() -> dict[str, str]:
    """Our environment for a child with another Python: without what belongs to ours, to Ray or to the service."""
    foreign = (*_OWN_PREFIXES, "PYTHON", "VIRTUAL_ENV", "LD_PRELOAD")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | inherited_mark()


def inherited_mark() -> dict[str, str]:
    """The variable that makes a process one of our stack's, for children that inherit nothing else."""
    return {MARK: os.environ[MARK]} if MARK in os.environ else {}


def reap() -> None:
    """Let the system forget those of our children that have ended."""
    _children[:] = [child for child in _children if child.poll() is None]


def members(stack_id: str, command: str = "") -> list[psutil.Process]:
    """Every living process of that stack, or those with `command` in their command line."""
    found = []
    for process in psutil.process_iter():
        # AccessDenied: somebody else's process. NoSuchProcess: it ended while we looked.
        with suppress(psutil.Error):
            if process.environ().get(MARK) != stack_id or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if command in " ".join(process.cmdline()):
                found.append(process)
    return found


def end(processes: Iterable[psutil.Process], *, grace_s: float) -> None:
    """SIGTERM, up to `grace_s` seconds of patience, SIGKILL for the rest."""
    asked = list(processes)
    for process in asked:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _kill(_still_alive(asked, grace_s))


def kill_all(stack_id: str, *, timeout_s: float = 30.0) -> list[psutil.Process]:
    """SIGKILL every process of a stack, also those started while others die. Returns what would not die: nothing."""
    deadline = time.monotonic() + timeout_s
    while (left := members(stack_id)) and time.monotonic() < deadline:
        _kill(left)
    return left


def _kill(processes: Iterable[psutil.Process]) -> None:
    doomed = list(processes)
    for process in doomed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _still_alive(doomed, 5.0)


def _still_alive(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that still run after that time. A zombie does not: who must reap it may be slow (psutil would wait)."""
    deadline = time.monotonic() + timeout_s
    while (left := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    reap()
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def memory_bytes(stack_id: str) -> int:
    """Memory of the stack; pages that processes share are counted once (PSS)."""
    total = 0
    for process in members(stack_id):
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on now. They are held together, so they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def port_is_free(host: str, port: int) -> bool:
    """Whether we could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does: no waiting for old connections
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
