"""Runs a program for as long as its parent lives: `python -I -S leash.py PROGRAM ARGUMENTS`, with a pipe as stdin.

When the pipe closes, by the parent's wish or by its death of whatever kind, the program is ended with all that it
started. This process leads their process group, so the parent must start it in a session of its own. It only waits:
who looks at the pipe is a child of its own, because Ray, when a worker ends, kills those whom the worker started, and
nobody further down. Standard library alone: both cost 10 MB each.
"""

import os
import select
import signal
import subprocess
import sys

_GRACE_S = 10.0
_LOOK_S = 0.5


def main() -> None:
    """Until the program ends, or the pipe."""
    leader = os.getpid()
    if watcher := os.fork():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is told to the group: the watcher's grace is waited for
        os.waitpid(watcher, 0)
        return
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    while program.poll() is None:
        readable, _, _ = select.select([0], [], [], _LOOK_S)
        if (readable and not os.read(0, 4096)) or os.getppid() != leader:
            break
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    try:
        program.wait(_GRACE_S)
    finally:
        os.killpg(0, signal.SIGKILL)  # whoever is left, and this process


if __name__ == "__main__":
    main()
