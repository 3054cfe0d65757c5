"""The newest checkpoint is damaged between two attempts: found by its hash, named, and passed over for an older one."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from sweeps.driver import run_attempt
from sweeps.run_dir import Record, RunDir, read_journal
from sweeps.stopping import Stopped
from tests.sweeps.faults.invariants import check

pytestmark = pytest.mark.ray


def _flip_a_bit(rung: Path) -> None:
    weights = bytearray((rung / "optimizer.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (rung / "optimizer.safetensors").write_bytes(weights)


def _lose_the_manifest(rung: Path) -> None:
    (rung / "manifest.json").unlink()


def _plant_a_pickle(rung: Path) -> None:
    # Protocol 0 of `os.mkdir("<rung>/unpickled")`: whoever unpickles it leaves a trace.
    (rung / "model.pt").write_bytes(f"cos\nmkdir\n(S'{rung.parent / 'unpickled'}'\ntR.".encode())


def test_a_damaged_checkpoint_is_named_and_passed_over(run: RunDir, undisturbed: Path) -> None:
    """Trial 0 has an older rung to go on from; both of trial 1's are damaged, so it begins again."""
    _interrupt(run)
    trials = Path("attempts/1/trials")
    _flip_a_bit(run.root / trials / "trl_0000/rung-000008")
    _plant_a_pickle(run.root / trials / "trl_0001/rung-000008")
    _lose_the_manifest(run.root / trials / "trl_0001/rung-000004")
    run_attempt(run)
    check(run.root, like=undisturbed)
    records = read_journal(run.attempt(2))
    told = [record["data"] for record in records if record["type"] == "checkpoint.damaged"]
    assert sorted((data["path"], data["instead"]) for data in told) == [
        ("attempts/1/trials/trl_0000/rung-000008", "attempts/1/trials/trl_0000/rung-000004"),
        ("attempts/1/trials/trl_0001/rung-000004", None),
        ("attempts/1/trials/trl_0001/rung-000008", None),
    ]
    reasons = {data["path"].removeprefix(f"{trials}/"): data["reason"] for data in told}
    assert "optimizer.safetensors is missing or differs from its hash" in reasons["trl_0000/rung-000008"]
    assert "does not know: model.pt" in reasons["trl_0001/rung-000008"]
    assert "has no manifest" in reasons["trl_0001/rung-000004"]
    starts = {r["data"]["number"]: r["data"]["step"] for r in reversed(records) if r["type"] == "trial.started"}
    assert (starts[0], starts[1]) == (4, 0)
    assert not list(run.root.rglob("unpickled")), "somebody has opened the pickle"


def _interrupt(run: RunDir) -> None:
    """Stop it while the trials 0 and 1 are both at step 10: each has its rungs of step 4 and 8."""
    pids: dict[int, int] = {}
    held: set[int] = set()

    def hold(record: Record) -> None:
        data = record["data"]
        if record["type"] == "trial.started":
            pids[data["number"]] = data["pid"]
        elif record["type"] == "trial.progress" and data["step"] == 10:
            held.add(data["number"])
            os.kill(pids[data["number"]], signal.SIGSTOP)
            if held == {0, 1}:
                os.kill(os.getpid(), signal.SIGTERM)

    try:
        with pytest.raises(Stopped, match="SIGTERM"):
            run_attempt(run, listeners=[hold])
    finally:
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):  # Ray has killed it, or does so just now
                os.kill(pid, signal.SIGCONT)
