"""Whole sweeps on a real Ray that search in other ways: a population, and a front taught by an earlier sweep."""

from pathlib import Path

import pytest

from simpo.checkpoint import read_manifest
from sweeps.driver import run_attempt
from sweeps.run_dir import RunDir, read_journal
from tests.sweeps.tiny import tiny_base, tiny_spec

pytestmark = pytest.mark.ray


def test_a_population_trains_in_generations(tmp_path: Path, ray_cluster: str) -> None:
    spec = tiny_spec(
        tiny_base(tmp_path / "base"),
        sampler="random",
        scheduler={"type": "pbt", "population": 2, "generations": 2},
        budget={"trials": 4, "steps": 12},
    )
    run = RunDir(tmp_path / "run")
    run.write_spec(spec.model_dump(mode="json"))
    result = run_attempt(run)
    assert result["trials"] == {"COMPLETE": 2, "PRUNED": 2, "FAILED": 0, "INFEASIBLE": 0}
    assert [(row["from"], row["to"]) for row in result["lineage"]] == [(0, 6), (6, 12)]
    assert read_manifest(run.root / result["best"]["checkpoint"])["step"] == 12
    steps = [
        record["data"]["step"]
        for record in read_journal(run.attempt(1))
        if record["type"] == "trial.progress" and record["data"]["number"] >= 2
    ]
    assert min(steps) == 7, "heirs go on where their parents ended"
    assert not list(run.root.glob("attempts/1/trials/*/rung-*"))


def test_a_front_and_an_earlier_sweep(tmp_path: Path, ray_cluster: str) -> None:
    several = {
        "objective": ["accuracy", "margin"],
        "scheduler": "none",
        "budget": {"trials": 3, "steps": 6},
        "parallel": {"trials": 1},
    }
    base = tiny_base(tmp_path / "base")
    for name, warm in (("swp-1", []), ("swp-2", ["swp-1"])):
        run = RunDir(tmp_path / name)
        run.write_spec(tiny_spec(base, warm_start=warm, **several).model_dump(mode="json"))
        result = run_attempt(run)
    front = result["pareto"]
    assert front[0]["trial_id"] == result["best"]["trial_id"] == result["leaderboard"][0]["trial_id"]
    assert all(point["values"].keys() == {"accuracy", "margin"} for point in front)
    assert result["warm_start"] == {"sources": ["swp-1"], "trials": 3}
