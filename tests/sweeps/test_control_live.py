"""A sweep on a real Ray that people interfere with, whose driver is killed, and which a successor ends."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.__main__ import main
from sweeps.control import edits_told
from sweeps.driver import run_attempt
from sweeps.recorded import recorded_trials
from sweeps.run_dir import Record, RunDir, read_journal
from tests.sweeps.drivers import Driver, wait_for
from tests.sweeps.tiny import tiny_base, tiny_spec

pytestmark = pytest.mark.ray

POINT = {"learning_rate": 3e-3, "beta": 2.0, "gamma_beta_ratio": 0.25}
STEPS = 2_000
"""Ten seconds of training: a trial is not over before a person's first edit reaches it, on a quick machine either."""


def _control(capsys: pytest.CaptureFixture[str], run: RunDir, *words: str, status: int = 0) -> dict[str, Any]:
    """The command's answer, as a person's script reads it."""
    capsys.readouterr()
    assert _main("control", str(run.root), *words, "--json") == status, capsys.readouterr()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def _main(*words: str) -> Any:
    """The status that the command leaves with."""
    with pytest.raises(SystemExit) as left:
        main(list(words))
    return left.value.code or 0


def _since(run: RunDir, edit: dict[str, Any]) -> list[Record]:
    """What the first attempt wrote after its answer to an edit."""
    records = read_journal(run.attempt(1))
    place = next(at for at, record in enumerate(records) if record["data"].get("file") == edit["file"])
    return records[place + 1 :]


def test_a_sweep_obeys_its_people_over_a_driver_that_is_killed(
    tmp_path: Path, ray_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.json"
    wanted = tiny_spec(tiny_base(tmp_path / "base"), scheduler="none", budget={"trials": 2, "steps": STEPS})
    spec.write_text(wanted.model_dump_json())
    run = RunDir(tmp_path / "run")
    with Driver(spec, run) as driver:
        wait_for(run, "trial.created", 2)
        paused = _control(capsys, run, "pause")
        assert (paused["state"], paused["after"]) == ("applied", 2)
        time.sleep(2.0)
        seen = [record["type"] for record in _since(run, paused)]
        assert seen.count("trial.progress") <= 4, "a step that was under way, and a report, of each trial at most"
        assert "trial.created" not in seen
        assert _main("show", str(run.root)) == 0
        assert "searching, paused" in capsys.readouterr().out
        assert _control(capsys, run, "stop", "1")["trial_id"] == "trl_0001"
        wait_for(run, "trial.pruned", 1)
        refused = _control(capsys, run, "add", *_set(POINT), status=2)
        assert "extend it first" in refused["message"]
        _control(capsys, run, "extend", "--trials", "4")
        assert _control(capsys, run, "add", *_set(POINT))["trial_id"] == "trl_0002"
        _control(capsys, run, "space", "{gamma_beta_ratio: 0.4}")
        assert not [record for record in _since(run, paused) if record["type"] == "trial.created"]
        _control(capsys, run, "resume")
        wait_for(run, "trial.created", 3)
        driver.kill()
    first = recorded_trials(run, below=2)
    stopped = first[1].outcome
    assert stopped is not None
    assert (stopped.state, stopped.reason) == ("PRUNED", "stopped by hand")
    assert stopped.step < STEPS
    assert first[2].params == POINT

    assert _control(capsys, run, "extend", "--trials", "5", "--no-wait")["state"] == "waiting"
    assert _control(capsys, run, "clone", "2", "--set", "beta=3", "--no-wait")["seq"] == 9
    result = run_attempt(run)
    assert result["attempt"] == 2
    assert result["trials"] == {"COMPLETE": 4, "PRUNED": 1, "FAILED": 0, "INFEASIBLE": 0}
    trials = recorded_trials(run, below=3)
    assert {number: trials[number].params for number in first} == {n: trial.params for n, trial in first.items()}
    later = [trials[number].params for number in (3, 4)]
    assert sorted(point["beta"] for point in later if point["gamma_beta_ratio"] == 0.25) == [3.0]
    assert any(point["gamma_beta_ratio"] == 0.4 for point in later), "the changed space holds in the next attempt"
    told = [(row["seq"], row["action"], row["state"]) for row in edits_told(run)]
    assert told[:3] == [(1, "pause", "applied"), (2, "stop_trial", "applied"), (3, "add_point", "refused")]
    assert [row["seq"] for row in result["edits"]] == list(range(1, 10))
    assert _main("control", str(run.root), "pause") == 2
    assert "has its result" in capsys.readouterr().err


def test_a_sweep_is_cancelled_in_a_pause_and_for_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(tiny_spec(tiny_base(tmp_path / "base"), budget={"trials": 400, "steps": 12}).model_dump_json())
    run = RunDir(tmp_path / "run")
    with Driver(spec, run) as driver:
        wait_for(run, "trial.created", 1)
        _control(capsys, run, "pause")
        assert _control(capsys, run, "cancel")["state"] == "applied"
        assert driver.wait(timeout=300) == 130
    last = read_journal(run.attempt(1))[-1]
    assert (last["type"], last["data"]) == ("job.stopped", {"reason": "cancelled"})
    assert _main("resume", str(run.root), "--quiet") == 2
    assert "was cancelled, which is for good" in capsys.readouterr().err


def _set(point: dict[str, Any]) -> list[str]:
    return [word for key, value in point.items() for word in ("--set", f"{key}={value}")]
