"""A plan in counts, and in hours from a calibration: real processes once, figures by hand otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest

from sweeps.__main__ import main
from sweeps.budget import measurements
from sweeps.calibration import Timings, calibrate, hours_of, planned, span, step_span
from sweeps.spec import SweepSpec, parse_spec
from tests.sweeps.tiny import tiny_base, tiny_spec

quick = pytest.mark.quick

TIMINGS = Timings(
    step_s=(1.0, 2.0, 3.0),
    rung_s=10.0,
    answer_s=0.1,
    pair_s=0.01,
    preparing_s=60.0,
    report_pairs=100,
    processes=2,
)


def _spec(**changes: Any) -> SweepSpec:
    body = {
        "name": "x",
        "objective": "accuracy",
        "scheduler": {"type": "asha", "rungs": [0.25, 0.5], "reduction_factor": 2},
        "budget": {"trials": 8, "steps": 100},
        "finals": {"candidates": 2, "prompts": 50},
        "constraints": {},
    }
    return parse_spec({**body, **changes})


@quick
def test_hours_by_hand() -> None:
    """8 trials: 800 steps at most, 400 likely; 24 measurements at most, 14 likely; two trials at once."""
    spec = _spec()
    assert measurements(spec) == (14.0, 24)
    hours = hours_of(spec, TIMINGS, (2.0, 1.0, 4.0))
    finals = 2 * (50 * 0.1 + 100 * 0.01)
    seconds = [400 * 2.0 + 140, 400 * 1.0 + 140, 800 * 4.0 + 240]
    assert list(hours["accelerator"].values()) == pytest.approx([each / 3600 for each in seconds])
    assert list(hours["wall_clock"].values()) == pytest.approx([(each / 2 + 60 + finals) / 3600 for each in seconds])


@quick
def test_seeds_and_mixtures_are_in_it() -> None:
    more = {"candidates": 2, "prompts": 50, "seeds": 3, "extra": ["soup", "scale"], "scales": [0.5]}
    plain, contested = (hours_of(_spec(**each), TIMINGS, (2.0, 1.0, 4.0)) for each in ({}, {"finals": more}))
    trained = 4 * 100 * 2.0 + 4 * 3 * 10.0
    assert (contested["accelerator"]["estimate"] - plain["accelerator"]["estimate"]) * 3600 == pytest.approx(trained)
    met = (2 + 2) * 3 * 10.0
    wall = (contested["wall_clock"]["estimate"] - plain["wall_clock"]["estimate"]) * 3600
    assert wall == pytest.approx(trained / 2 + met)


@quick
def test_workers_share_a_step_and_are_paid_each() -> None:
    alone = hours_of(_spec(), TIMINGS, (2.0, 1.0, 4.0))
    group = hours_of(_spec(parallel={"workers_per_trial": 4}), TIMINGS, (2.0, 1.0, 4.0))
    assert (group["accelerator"]["estimate"] - alone["accelerator"]["estimate"]) * 3600 == pytest.approx(3 * 140)


@quick
def test_a_limit_that_will_end_it_is_told() -> None:
    told = planned(_spec(budget={"trials": 8, "steps": 100, "accelerator_hours": 0.01}), TIMINGS)
    assert told["notes"] == [
        f"budget.accelerator_hours (0.01 h) ends the search before its last trial: it takes "
        f"{span(told['hours']['accelerator'])}"
    ]
    assert told["calibration"]["step_seconds"]["low"] == step_span((1.0, 2.0, 3.0))[1] == 0.0
    json.dumps(told, allow_nan=False)
    assert planned(_spec(), None)["hours"] is None


@quick
def test_the_command_plans_sweeps_and_comparisons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(["plan", *arguments])
        captured = capsys.readouterr()
        return captured.out if not left.value.code else captured.err

    path = tmp_path / "spec.yaml"
    path.write_text("{name: one, finals: {seeds: 2}}")
    told = json.loads(run(str(path), "--json"))
    assert (told["name"], told["plan"]["trials"], told["plan"]["retrainings"]) == ("one", 16, 2)
    assert "likely steps" in run(str(path))
    path.write_text("{name: two, methods: [simpo, dpo], budget: {trials: 4}}")
    assert set(json.loads(run(str(path), "--json"))["methods"]) == {"simpo", "dpo"}
    assert "plan a method's own" in run(str(path), "--calibrate")
    path.write_text("{name: one, finals: {seeds: 0}}")
    assert "finals.seeds" in run(str(path))


def test_a_calibration_times_the_sweeps_own_steps(tmp_path: Path) -> None:
    spec = tiny_spec(tiny_base(tmp_path / "base"), objective="win_rate")
    timings = calibrate(spec, steps=4)
    assert len(timings.step_s) == 2 * timings.processes
    assert all(seconds > 0 for seconds in (*timings.step_s, timings.rung_s, timings.pair_s, timings.answer_s))
    assert timings.preparing_s == 0.0, "the base is there, and SimPO needs no reference"
    told = planned(spec, timings)
    for hours in told["hours"].values():
        assert 0 < hours["low"] <= hours["estimate"] <= hours["high"]
