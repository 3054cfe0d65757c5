"""`python -m sweeps` that stands still where a test wants it to: what the test is about lasts until the test has acted.

    python -m tests.sweeps.held journal WHAT COUNT GATE ARGUMENTS ...
    python -m tests.sweeps.held trials NODES ARGUMENTS ...

journal: whoever appends the COUNT-th record like WHAT, and any later one, waits then for the file GATE. WHAT is a
regular expression that is looked for in "RUN TYPE": the name of the run directory and the type of the record.
trials: the processes of trials are suspended as they start, until that has come to pass on so many nodes.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sweeps.__main__ import main
from sweeps.run_dir import Attempt, Record, RunDir

Heard = Callable[[RunDir, Record], None]


def journal(what: str, count: int, gate: Path) -> Heard:
    """The thread that appends waits, and the search with it; the heart beats on."""
    seen = 0

    def heard(run: RunDir, record: Record) -> None:
        nonlocal seen
        if re.search(what, f"{run.root.name} {record['type']}"):
            seen += 1
            while seen >= count and not gate.exists():
                time.sleep(0.02)

    return heard


def trials(nodes: int) -> Heard:
    """A trial goes on from its start when its journal has it: a suspended one holds its node's only core."""
    seen: set[str] = set()

    def heard(run: RunDir, record: Record) -> None:
        if record["type"] == "trial.started" and len(seen) < nodes:
            os.kill(record["data"]["pid"], signal.SIGSTOP)
            seen.add(record["data"]["node"])

    return heard


def hold(heard: Heard) -> None:
    """Let every attempt of this process be heard so, before anybody else hears it."""
    claim = RunDir.claim

    def claimed(run: RunDir, number: int) -> Attempt:
        attempt = claim(run, number)
        attempt.listeners.append(lambda record: heard(run, record))
        return attempt

    RunDir.claim = claimed  # type: ignore[method-assign]


if __name__ == "__main__":
    if sys.argv[1] == "journal":
        hold(journal(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
        main(sys.argv[5:])
    else:
        hold(trials(int(sys.argv[2])))
        main(sys.argv[3:])
