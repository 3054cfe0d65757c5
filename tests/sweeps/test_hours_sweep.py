"""A successor without accelerator-hours trains nothing and still has a winner, on a real Ray."""

import json
from pathlib import Path

import pytest

from sweeps.driver import run_attempt
from sweeps.prepare import prepare, read_inputs
from sweeps.run_dir import RunDir, read_journal
from sweeps.trial import Assignment, Workbench, train_trial
from tests.sweeps.tiny import tiny_base, tiny_spec

pytestmark = pytest.mark.ray


def test_hours_of_an_earlier_attempt_are_spent(tmp_path: Path, ray_cluster: str) -> None:
    """The journal of the first attempt, written by hand, says that its one trial took two hours of the one allowed."""
    budget = {"trials": 4, "steps": 4, "accelerator_hours": 1.0}
    spec = tiny_spec(tiny_base(tmp_path / "base"), scheduler="none", budget=budget, parallel={"trials": 1})
    run = RunDir(tmp_path / "run")
    run.write_spec(spec.model_dump(mode="json"))
    dead = run.claim(1)
    prepare(spec, read_inputs(spec, dead.prepared), dead.prepared, lambda share, message: None)
    params = {"learning_rate": 1e-3, "beta": 2.0, "gamma_beta_ratio": 0.5}
    told = Assignment(
        trial_id="trl_0000",
        params=params,
        cutoffs={},
        run_dir=str(run.root),
        prepared=str(dead.prepared),
        directory=str(dead.trial_path("trl_0000")),
        resume=[],
        deadline=None,
    )
    last = list(train_trial(Workbench(told.run_dir, told.prepared), told))[-1]
    assert last.outcome is not None and last.checkpoint is not None
    trial = {"trial_id": "trl_0000", "number": 0, "params": params}
    facts = {"metrics": last.metrics, "interval": last.interval, "checkpoint": dead.relative(last.checkpoint)}
    end = {**trial, **facts, "seconds": 7200.0, **last.outcome.as_dict()}
    (dead.path / "journal").mkdir()
    lines = [("trial.created", "10:00:00", {**trial, "cutoffs": {}}), ("trial.completed", "12:00:00", end)]
    records = [
        {"seq": n, "attempt": 1, "at": f"2026-01-01T{at}Z", "type": kind, "level": "info", "message": "", "data": data}
        for n, (kind, at, data) in enumerate(lines, 1)
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (dead.path / "journal" / "00000001.jsonl").write_text(text)

    result = run_attempt(run)
    assert result["best"]["trial_id"] == "trl_0000"
    assert result["best"]["checkpoint"] == "attempts/1/trials/trl_0000/final"
    assert result["budget"]["ended_by"] == "accelerator_hours"
    assert result["budget"]["spent"]["accelerator_hours"] == pytest.approx(2.0)
    assert result["budget"]["allowed"]["accelerator_hours"] == 1.0
    kinds = [record["type"] for record in read_journal(run.attempt(2))]
    assert "trial.created" not in kinds and kinds.count("budget.spent") == 1
