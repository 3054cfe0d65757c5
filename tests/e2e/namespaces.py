"""Machines on this machine: each has an address, a loopback, a /tmp and processes of its own, and no way out.

A machine is a Linux network namespace, joined by a veth pair to a bridge, which lies in a namespace of its own: none of
them has a route to anywhere but the others, and none touches this machine's own network. Its processes have a mount
namespace besides, with a directory of their own as /tmp. They share the rest of the file system, which stands for the
image that all machines were made from.

The namespaces have no names: they are gone with their last process and the last open file of the test, so a run that
was killed leaves none behind, and two runs beside each other never meet.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from service.local_process import kill_all, members, spawn

SUBNET = "192.0.2.{}"
"""TEST-NET-1: documentation's own, routed nowhere."""
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")
_OWN_TMP = """
home="$1"; shift
while [ "$1" != -- ]; do mkdir -p "$home/${1#/tmp/}" && mount --bind "$1" "$home/${1#/tmp/}" || exit 1; shift; done
shift; mount --rbind "$home" /tmp && cd /tmp && exec "$@"
"""
_IMAGE = [str(path) for path in (Path(__file__).parents[2], Path(sys.prefix)) if path.is_relative_to("/tmp")]
"""What of the image would disappear behind the machine's own /tmp: a checkout may lie there."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One of a network's."""

    name: str
    """For logs."""
    address: str
    """IPv4, of `eth0`."""
    mark: str
    """In the environment of each of its processes (`service.local_process`)."""
    home: Path
    """Outside: what the machine sees as /tmp."""
    log: Path
    """Output of all its processes."""
    network: int
    """Open file of its network namespace."""

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """For this thread, and for the threads and processes that it starts meanwhile, the network is the machine's.

        Sockets stay where they were made: a server or a client that was set up in here works outside too.
        """
        with _network_of(self.network):
            yield

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Start a program there; returns its pid."""
        with self.inside():
            return spawn(
                [*_OWN_MOUNTS, "sh", "-c", _OWN_TMP, "sh", str(self.home), *_IMAGE, "--", *command],
                stack_id=self.mark,
                environment={"HOME": "/tmp", "TMPDIR": "/tmp", "SPT_NOENV": "1", **environment},
                directory=Path("/"),
                log=self.log,
            )

    def processes(self) -> list[psutil.Process]:
        """All that run there."""
        return members(self.mark)

    def kill(self) -> None:
        """SIGKILL every process there, by its pid, until there is none: the death of the machine."""
        assert kill_all(self.mark, timeout_s=120) == []


@contextlib.contextmanager
def network(*names: str) -> Iterator[list[Machine]]:
    """So many machines, each of which reaches the others. Skips where namespaces cannot be made."""
    if missing := [tool for tool in ("ip", "unshare", "mount") if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)} in the PATH (Debian: iproute2, util-linux, mount)")
    home = Path(tempfile.mkdtemp(prefix="machines-"))
    run = secrets.token_hex(4)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        try:
            switch = _namespace(stack)
            _run(*_OWN_MOUNTS, "sh", "-c", _OWN_TMP, "sh", str(home), "--", "true")
            with _network_of(switch):
                _run("ip", "link", "add", "br0", "type", "bridge")
                _run("ip", "link", "set", "br0", "up")
            machines = [_machine(stack, home, run, switch, name, host) for host, name in enumerate(names, start=10)]
        except OSError as error:
            pytest.skip(f"needs Linux's namespaces, as root: {error}")
        for machine in machines:
            stack.callback(machine.kill)
        yield machines


def _machine(stack: contextlib.ExitStack, home: Path, run: str, switch: int, name: str, host: int) -> Machine:
    own, port, address = _namespace(stack), f"to{host}", SUBNET.format(host)
    (home / name).mkdir(mode=0o1777)
    with _network_of(switch):
        # The other end is born where it belongs: between two namespaces there is no moment in this machine's own.
        peer = ["peer", "name", "eth0", "netns", f"/proc/{os.getpid()}/fd/{own}"]
        _run("ip", "link", "add", port, "type", "veth", *peer)
        _run("ip", "link", "set", port, "master", "br0", "up")
    with _network_of(own):
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
        _run("ip", "link", "set", "eth0", "up")
    return Machine(
        name=name, address=address, mark=f"{run}-{name}", home=home / name, log=home / f"{name}.log", network=own
    )


def _namespace(stack: contextlib.ExitStack) -> int:
    """An open file of a new network namespace, closed with the stack. Raises OSError."""
    opened: list[int | OSError] = []

    def make() -> None:  # in a thread of its own, whose network becomes another
        try:
            _call("unshare", _NEW_NETWORK)
            opened.append(_of_this_thread())
        except OSError as error:
            opened.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(opened[0], OSError):
        raise opened[0]
    stack.callback(os.close, opened[0])
    return opened[0]


@contextlib.contextmanager
def _network_of(namespace: int) -> Iterator[None]:
    before = _of_this_thread()
    try:
        _enter(namespace)
        yield
    finally:
        _enter(before)
        os.close(before)


def _of_this_thread() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _enter(namespace: int) -> None:
    _call("setns", namespace, _NEW_NETWORK)


def _call(name: str, *arguments: int) -> None:
    """A call of the C library that Python 3.11 does not have. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    function = getattr(libc, name, None)
    if function is None or function(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _run(*command: str) -> None:
    """Raises OSError with its words."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
