"""A whole comparison on a real Ray: three methods in the same warm processes; killed, and still the same."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from simpo.packing import PackedPlan
from sweeps.comparison import run_comparison
from sweeps.comparison_attempt import run_comparison_attempt
from sweeps.comparison_hash import comparison_hash
from sweeps.comparison_spec import ComparisonSpec, parse_comparison
from sweeps.prepare import prepare, read_inputs
from sweeps.prepared import load_facts
from sweeps.run_dir import Record, RunDir, read_journal, read_result
from sweeps.stratum import in_stratum
from tests.house import REPO
from tests.sweeps.drivers import held, leftovers
from tests.sweeps.tiny import tiny_base

pytestmark = pytest.mark.ray

METHODS = ("simpo", "kto", "sft")
"""One that needs nothing, one that needs reference log-probabilities also of mismatched pairs, one without rejected."""
Result = dict[str, Any]


def _spec(base: Path) -> ComparisonSpec:
    return parse_comparison(
        {
            "name": "tiny",
            "methods": list(METHODS),
            "base_model": str(base),
            "dataset": {"train": "practice", "limit": 200},
            "learning_rate": {"type": "log_float", "low": 1e-4, "high": 1e-1},
            "objective": "accuracy",
            "constraints": {"repetition": "<=0.9"},
            "sampler": {"type": "tpe", "startup_trials": 3},
            "scheduler": {"type": "asha", "rungs": [0.34, 0.67], "reduction_factor": 2},
            "budget": {"trials": 8, "steps": 12},
            "train": {"batch_pairs": 8, "token_budget": 1024},
            "tokens": {"max_length": 256},
            "evaluation": {"rung_prompts": 8, "max_new_tokens": 8},
            "finals": {"candidates": 2, "prompts": 16},
        }
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def undisturbed(
    base: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: str
) -> tuple[Path, Result, list[tuple[str, Record]]]:
    root, told = tmp_path_factory.mktemp("comparison"), list[tuple[str, Record]]()
    RunDir(root).write_spec(_spec(base).model_dump(mode="json"))
    result = run_comparison(root, listener=lambda name, record: told.append((name, record)))
    return root, result, told


def test_every_method_has_its_sweep_curve_and_row(undisturbed: tuple[Path, Result, Any]) -> None:
    root, result, told = undisturbed
    assert {row["name"] for row in result["leaderboard"]} == set(METHODS)
    for name in METHODS:
        run = RunDir(root / "sweeps" / name)
        assert run.attempts(), "an ordinary sweep"
        assert result["curves"][name]["random_trials"] == 4
        cutoffs = {
            record["data"]["number"]: record["data"]["cutoffs"]
            for who, record in told
            if who == name and record["type"] == "trial.created"
        }
        assert all(not cutoffs[number] for number in range(8) if in_stratum(number, 0.5))
    assert len(result["verdicts"]) == 3
    assert result["unequal"] == []
    references = {row["name"]: row["reference"]["misses"] + row["reference"]["hits"] for row in result["leaderboard"]}
    assert references["kto"] > 0
    assert references["simpo"] == references["sft"] == 0
    assert not (root / "engine").exists()


def test_all_methods_were_trained_in_the_same_processes(undisturbed: tuple[Path, Result, Any]) -> None:
    pids = {name: set[int]() for name in METHODS}
    for name, record in undisturbed[2]:
        if record["type"] in ("trial.completed", "trial.pruned"):
            pids[name].add(record["data"]["pid"])
    assert all(pids.values())
    # Two at a time. A slow one of them may come too late for a whole method.
    assert len(set[int]().union(*pids.values())) <= 2, "a method has paid for processes of its own"


@pytest.mark.parametrize("name", METHODS)
def test_a_sweep_alone_would_have_prepared_the_same(
    name: str, undisturbed: tuple[Path, Result, Any], base: Path, tmp_path: Path
) -> None:
    root, sweep = undisturbed[0], _spec(base).sweeps()[name]
    given = root / "sweeps" / name / "prepared"
    alone = prepare(sweep, read_inputs(sweep, tmp_path), tmp_path, lambda share, message: None)
    shared = load_facts(given)
    assert shared is not None
    assert (shared.spec_hash, shared.pairs, shared.base) == (alone.spec_hash, alone.pairs, alone.base)
    for plan in (PackedPlan.load(given / "plan.safetensors"), PackedPlan.load(tmp_path / "plan.safetensors")):
        assert plan.num_steps == 12
    for name_of_file in sorted(path.name for path in tmp_path.glob("*.*") if path.name != "prepared.json"):
        assert (given / name_of_file).read_bytes() == (tmp_path / name_of_file).read_bytes(), name_of_file


def test_methods_see_the_same_pairs_in_the_same_order(undisturbed: tuple[Path, Result, Any]) -> None:
    plans = [PackedPlan.load(undisturbed[0] / "sweeps" / name / "prepared" / "plan.safetensors") for name in METHODS]
    for plan in plans[1:]:
        assert np.array_equal(plan.order_SB, plans[0].order_SB)


def test_a_killed_comparison_goes_on_and_concludes_the_same(
    undisturbed: tuple[Path, Result, Any], base: Path, tmp_path: Path
) -> None:
    spec, root = tmp_path / "spec.json", tmp_path / "out"
    spec.write_text(_spec(base).model_dump_json())
    second = RunDir(root / "sweeps" / METHODS[1])
    temporary = tempfile.mkdtemp(prefix="cm", dir="/tmp")  # short, for Ray's sockets; a killed Ray leaves it
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"TMPDIR": temporary}
    module = held(f"^{METHODS[1]} trial.completed$", 1, Path(temporary, "gate"))  # it is killed there
    command = [sys.executable, "-m", *module, "compare", str(spec), "--out", str(root), "--quiet"]
    with subprocess.Popen(command, cwd=REPO, env=environment) as driver:
        try:
            _wait_for_an_end(second, driver)
            family = psutil.Process(driver.pid).children(recursive=True)
        finally:
            driver.send_signal(signal.SIGKILL)
    leftovers(family)
    shutil.rmtree(temporary, ignore_errors=True)

    published = run_comparison_attempt(root, number=1)  # as the service has it run
    attempt, result = RunDir(root).attempt(1), published["comparison"]
    assert read_result(attempt) == published and published["spec_hash"] == comparison_hash(RunDir(root).read_spec())
    told = read_journal(attempt)
    assert (told[0]["type"], told[-1]["type"]) == ("job.started", "job.finished")
    assert {record["data"]["method"] for record in told if "method" in record["data"]} == set(METHODS[1:]), (
        "a finished method was run again"
    )
    created = [record for record in read_journal(second.attempt(2)) if record["type"] == "trial.created"]
    assert len(created) < 8
    expected = undisturbed[1]
    assert result["curves"] == expected["curves"]
    assert result["verdicts"] == expected["verdicts"]
    for row, other in zip(result["leaderboard"], expected["leaderboard"], strict=True):
        for key in ("name", "rank", "figure", "accuracy", "tied_with", "trials", "steps"):
            assert row[key] == other[key]
        assert row["best"]["params"] == other["best"]["params"]


def _wait_for_an_end(run: RunDir, driver: "subprocess.Popen[bytes]", timeout_s: float = 300.0) -> None:
    """Until a trial of this sweep is complete."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and driver.poll() is None:
        if any(record["type"] == "trial.completed" for record in read_journal(run.attempt(1))):
            return
        time.sleep(0.1)
    raise AssertionError(f"no trial of {run.root} was completed within {timeout_s} s (driver: {driver.poll()})")
