"""Two gloo workers through Ray Train give the losses of one process, whole or with the weights divided."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from simpo.checkpoint import read_manifest
from sweeps.budget import WallClock
from sweeps.control import Pause, Resume, write_edit
from sweeps.driver import run_attempt
from sweeps.ledger import Ledger
from sweeps.run_dir import Record, RunDir, read_journal, read_result
from sweeps.spec import parse_spec
from sweeps.trial import Update, train_trial, workbench
from tests.sweeps.tiny import tiny_base, tiny_spec

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_workers_give_the_losses_of_one(tmp_path: Path, ray_cluster: str, sharding: str) -> None:
    """Also: a sweep of worker groups ends by itself and gives every placement group back, and all workers of a trial
    hold and go on together."""
    from ray.util import placement_group_table  # noqa: PLC0415  # lazy: only this test needs it

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
    run_attempt(run, listeners=[_interfere(run)])
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
    states = {group["state"] for group in placement_group_table().values()}
    assert states <= {"REMOVED"}, "a worker group kept its resources"


def _interfere(run: RunDir) -> Callable[[Record], None]:
    """Pause the sweep when its trial starts, and let it go on after a while."""

    def heard(record: Record) -> None:
        if record["type"] == "trial.created":
            write_edit(run, Pause())
        elif record["data"].get("action") == "pause":
            threading.Timer(5.0, write_edit, (run, Resume())).start()

    return heard


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
