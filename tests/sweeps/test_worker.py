"""Two gloo workers through Ray Train give the losses of one process, whole or with the weights divided."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from simpo.checkpoint import read_manifest
from sweeps.budget import WallClock
from sweeps.control import Pause, Resume, write_edit
from sweeps.driver import run_attempt
from sweeps.ledger import Ledger
from sweeps.ray_session import ray_session
from sweeps.run_dir import Record, RunDir, read_journal, read_result
from sweeps.spec import parse_spec
from sweeps.trial import Update, train_trial, workbench
from tests.house import REPO
from tests.sweeps.drivers import wait_until
from tests.sweeps.tiny import tiny_base, tiny_spec

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_workers_give_the_losses_of_one(tmp_path: Path, sharding: str) -> None:
    """Also: a sweep of worker groups ends by itself and gives every placement group back, and all workers of a trial
    hold and go on together."""
    spec = tiny_spec(
        tiny_base(tmp_path / "base"),
        budget={"trials": 1, "steps": 6},
        parallel={"trials": 1, "workers_per_trial": 2},
        # Small micro-batches, so that both workers have some of every step.
        train={"batch_pairs": 8, "token_budget": 128, "sharding": sharding},
        scheduler={"type": "asha", "rungs": [0.5]},
        finals={"candidates": 1, "prompts": 4},
    )
    run = RunDir(tmp_path / "run")
    run.write_spec(spec.model_dump(mode="json"))
    # A Ray of its own: in the common one others may have left too few cores, and a group would wait for ever.
    with tempfile.TemporaryDirectory(prefix="wk", dir="/tmp", ignore_cleanup_errors=True) as short:
        environment = {**os.environ, "TMPDIR": short}
        command = [sys.executable, "-c", _ATTEMPT, str(run.root)]
        done = subprocess.run(
            command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
    assert done.returncode == 0, done.stderr[-2000:]
    records = read_journal(run.attempt(1))
    assert [record["data"]["action"] for record in records if record["type"] == "control.applied"] == [
        "pause",
        "resume",
    ]
    losses = [record["data"]["loss"] for record in records if record["type"] == "trial.progress"]
    alone, end = _alone(run)
    assert losses == pytest.approx(alone, abs=1e-6)
    result = read_result(run.attempt(1))
    assert result is not None
    assert end.outcome is not None
    assert result["best"]["value"] == end.outcome.value
    assert end.checkpoint is not None
    files = [set(read_manifest(where)["files"]) for where in (run.root / result["best"]["checkpoint"], end.checkpoint)]
    assert files[0] == files[1]


_ATTEMPT = """
import sys
from tests.sweeps.test_worker import attempt
attempt(sys.argv[1])
"""


def attempt(root: str) -> None:
    """In a process of its own: a Ray, an attempt that is interfered with, and then no placement group on that Ray."""
    from ray.util import placement_group_table  # noqa: PLC0415  # lazy: only this process needs it

    def held() -> set[str]:
        return {name for name, group in placement_group_table().items() if group["state"] != "REMOVED"}

    run = RunDir(root)
    with ray_session(None, parse_spec(run.read_spec()).parallel):
        run_attempt(run, listeners=[_interfere(run)])
        wait_until(lambda: not held())  # a worker group that keeps its resources is never removed


def _interfere(run: RunDir) -> Callable[[Record], None]:
    """Pause the sweep while its trial stands still after its start, and let it go on after a while."""
    pids: list[int] = []

    def heard(record: Record) -> None:
        if record["type"] == "trial.started":
            pids.append(record["data"]["pid"])
            os.kill(pids[0], signal.SIGSTOP)  # of the first worker: its trial cannot end before the edit is answered
            write_edit(run, Pause())
        elif record["data"].get("action") == "pause":
            threading.Thread(target=_go_on, args=[run, pids[0]]).start()

    return heard


def _go_on(run: RunDir, pid: int) -> None:
    """Once all workers are told to hold, wake the one that stands still; then resume."""
    try:
        wait_until(lambda: _holding(run.attempt(1).signals))
    finally:
        os.kill(pid, signal.SIGCONT)
    time.sleep(5.0)
    write_edit(run, Resume())


def _holding(signals: Path) -> bool:
    return signals.exists() and bool(json.loads(signals.read_text())["hold"])


def _alone(run: RunDir) -> tuple[list[float], Update]:
    """The same trial in this process, without any group."""
    spec = parse_spec(run.read_spec())
    directory = run.root / "alone"
    ledger = Ledger(RunDir(directory).claim(1), spec, run.attempt(1).prepared, WallClock(None))
    RunDir(directory).write_spec(run.read_spec())
    assignment = ledger.next()
    assert assignment is not None
    updates = list(train_trial(workbench(assignment), assignment))
    return [update.metrics["loss"] for update in updates if update.kind == "progress"], updates[-1]
