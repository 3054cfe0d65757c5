"""One whole sweep on a real Ray, and how it ends when it is told to. What kills it is in `faults`."""

import signal
from pathlib import Path

import pytest

from simpo.checkpoint import read_manifest
from sweeps.driver import run_attempt
from sweeps.effort_spec import Budget, Parallel
from sweeps.gates import FIGURES
from sweeps.ray_session import RayUnavailable, Room, room_for
from sweeps.run_dir import Record, RunDir, read_heartbeat, read_journal, read_result
from sweeps.spec import SweepSpec, parse_spec
from sweeps.stopping import Stopped
from tests.sweeps.drivers import Driver, wait_for

pytestmark = pytest.mark.ray


def test_a_sweep_leaves_everything_the_contract_names(undisturbed: Path) -> None:
    run = RunDir(undisturbed)
    attempt = run.attempt(1)
    result, records = read_result(attempt), read_journal(attempt)
    assert result is not None
    assert result["state"] == "SUCCEEDED"
    assert sum(result["trials"].values()) == 6
    assert result["trials"]["COMPLETE"] >= 2
    assert result["trials"]["PRUNED"] >= 1, "the tiny space no longer shows a stopped trial"
    assert result["win_rate"]["n"] == 16
    evidence = result["evidence"]
    assert (evidence["source"], evidence["reference"], evidence["prompts"]) == ("finals", "base", 16)
    assert set(evidence["figures"]) == set(FIGURES), "everything that a gate may name"
    assert evidence["figures"]["win_rate"]["estimate"] == result["win_rate"]["estimate"]
    assert result["accuracy"]["winner"]["n"] == result["accuracy"]["base"]["n"] == result["pairs"]["report"]
    assert set(result["seconds"]) == {"preparing", "searching", "finals"}
    assert set(result["reference"].values()) == {0}, "what SimPO saves is shown"
    assert result["peak_memory_bytes"] > 10**8
    assert [row["rank"] for row in result["leaderboard"]] == list(range(1, 7))

    checkpoint = run.root / result["best"]["checkpoint"]
    manifest = read_manifest(checkpoint)
    assert manifest["trial_id"] == result["best"]["trial_id"]
    assert manifest["method"]["beta"] == result["best"]["params"]["beta"]
    assert manifest["tokens"]["max_length"] == 256

    kinds = [record["type"] for record in records]
    assert kinds[0] == "job.started"
    assert kinds[-1] == "job.finished"
    assert {"trial.created", "trial.progress", "trial.rung", "best.updated", "eval.completed"} <= set(kinds)
    assert kinds.count("reference.ready") == 1
    assert kinds.count("trial.created") == 6
    phases = [record["data"]["phase"] for record in records if record["type"] == "job.phase"]
    assert sorted(set(phases), key=phases.index) == ["preparing", "searching", "finals", "done"]
    beat = read_heartbeat(attempt)
    assert beat is not None
    assert beat["counts"]["COMPLETE"] == result["trials"]["COMPLETE"]


def test_weak_trials_leave_no_weights_behind(undisturbed: Path) -> None:
    result = read_result(RunDir(undisturbed).attempt(1))
    assert result is not None
    kept = {row["trial_id"] for row in result["leaderboard"] if row["checkpoint"]}
    on_disk = {path.parent.parent.name for path in undisturbed.glob("attempts/1/trials/*/*/manifest.json")}
    assert on_disk == kept
    assert 1 <= len(kept) <= 3
    assert not list(undisturbed.glob("attempts/1/trials/*/rung-*"))


def test_trials_share_warm_processes(undisturbed: Path) -> None:
    records = read_journal(RunDir(undisturbed).attempt(1))
    ends = [record for record in records if record["type"] in ("trial.completed", "trial.pruned")]
    # Two at a time; a busy machine may lose one that was idle for too long.
    assert len({record["data"]["pid"] for record in ends}) <= len(ends) // 2, "each trial paid for its own imports"


@pytest.mark.parametrize(("number", "moment"), [(signal.SIGTERM, "trial.created"), (signal.SIGINT, "job.phase")])
def test_a_signal_ends_the_attempt_with_a_word(
    number: signal.Signals, moment: str, spec: SweepSpec, tmp_path: Path
) -> None:
    body = tmp_path / "spec.json"
    body.write_text(spec.model_copy(update={"budget": Budget(trials=400, steps=12)}).model_dump_json())
    run = RunDir(tmp_path / "run")
    with Driver(body, run) as driver:
        wait_for(run, moment, 1)
        driver.send_signal(number)
        assert driver.wait(timeout=240) == 130
    last = read_journal(run.attempt(1))[-1]
    assert (last["type"], last["data"]["reason"]) == ("job.stopped", f"stopped by {number.name}")
    assert read_result(run.attempt(1)) is None


def test_an_orphan_stops_at_the_higher_claim(tmp_path: Path, ray_cluster: str) -> None:
    """While it makes the practice base, which would take a minute."""
    run = RunDir(tmp_path)
    run.write_spec(parse_spec({"name": "orphan"}).model_dump(mode="json"))

    def usurp(record: Record) -> None:
        if "making the base model" in record["message"] and run.highest() == 1:
            run.claim(2)

    with pytest.raises(Stopped, match="newer attempt"):
        run_attempt(run, listeners=[usurp])
    assert read_journal(run.attempt(1))[-1]["type"] == "job.stopped"
    assert not (run.attempt(2).path / "journal").exists(), "an orphan writes under its own number alone"


def test_a_cluster_that_cannot_hold_one_trial_is_refused(ray_cluster: str) -> None:
    assert room_for(Parallel(trials=8, workers_per_trial=2)) == Room(trials=2, workers=2, gpus=0.0, lends=False)
    with pytest.raises(RayUnavailable, match="needs 5 CPUs, the Ray cluster has 4"):
        room_for(Parallel(trials=1, workers_per_trial=5))
    with pytest.raises(RayUnavailable, match=r"needs 0\.5 GPUs, the Ray cluster has 0: lower"):
        room_for(Parallel(gpus_per_worker=0.5))
