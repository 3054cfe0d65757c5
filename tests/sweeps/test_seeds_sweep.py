"""A sweep whose finalists are trained again under another seed, and whose winner may be a mixture; on a real Ray."""

import json
from pathlib import Path

import pytest

from simpo.checkpoint import read_manifest
from sweeps.driver import run_attempt
from sweeps.run_dir import Record, RunDir, read_journal
from tests.sweeps.tiny import tiny_base, tiny_spec

pytestmark = pytest.mark.ray


class _Killed(Exception):
    """Stands for whatever ends a driver in its finals."""


def test_finalists_meet_over_seeds_and_a_successor_trains_nothing_again(tmp_path: Path, ray_cluster: str) -> None:
    spec = tiny_spec(
        tiny_base(tmp_path / "base"),
        scheduler="none",
        objective="margin",  # its values are all different
        budget={"trials": 3, "steps": 6},
        parallel={"trials": 1},
        finals={"candidates": 2, "prompts": 16, "seeds": 2, "extra": ["soup", "scale"], "scales": [0.5]},
    )
    run = RunDir(tmp_path / "run")
    run.write_spec(spec.model_dump(mode="json"))

    def die_in_the_finals(record: Record) -> None:
        if record["type"] == "eval.completed":
            raise _Killed

    with pytest.raises(_Killed):
        run_attempt(run, listeners=[die_in_the_finals])
    first = read_journal(run.attempt(1))
    assert [record["type"] for record in first].count("replicate.completed") == 2
    pids = {record["data"]["pid"] for record in first if record["type"] == "trial.completed"}
    again = {record["data"]["pid"] for record in first if record["type"] == "replicate.rung"}
    assert again <= pids, "retrainings find the processes warm"

    result = run_attempt(run)
    kinds = [record["type"] for record in read_journal(run.attempt(2))]
    assert not {"replicate.created", "trial.created"} & set(kinds), "what is over is not trained again"
    finals = result["finals"]
    json.dumps(finals, allow_nan=False)
    names = [row["name"] for row in finals["rows"]]
    finalists = [row["trial_id"] for row in result["leaderboard"] if row["finals"]]
    assert set(names) == {*finalists, "soup", "scale-0.5"} and len(finalists) == 2
    assert (finals["seeds"], finals["seeds_wanted"], finals["winner"]) == (2, 2, names[0])
    for row in finals["rows"]:
        assert len(row["by_seed"]) == 2 and row["low"] <= row["estimate"] <= row["high"]
        assert row["n"] == result["pairs"]["rungs"]
    values = {row["trial_id"]: row["value"] for row in result["leaderboard"]}
    for row in finals["rows"]:
        if row["recipe"] is None:
            assert row["by_seed"][0] == pytest.approx(values[row["trial_id"]]), "the search's own seed is the first"
            assert row["by_seed"][1] != row["by_seed"][0]
    assert sum(result["trials"].values()) == 3, "retrainings are no trials of the search"
    manifest = read_manifest(run.root / result["best"]["checkpoint"])
    assert manifest.get("replicate", 0) == 0
    if "recipe" in result["best"]:
        assert manifest["mixture"]["seed"] == 1
    left = {path.parent.name for path in run.root.glob("attempts/*/*/*/*/manifest.json")}
    assert not [name for name in left if "_r" in name], "weights of other seeds go when the winner is known"
