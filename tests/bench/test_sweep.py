"""The sweep benchmark's own part: its arms do the same work, README shows what was recorded, bars can be missed."""

from pathlib import Path
from typing import Any

import pytest

from sweeps.budget import plan_budget
from sweeps.samplers import planned_point
from sweeps.spec import parse_spec
from tests.bench.readme import in_readme
from tests.bench.sweep import DEFAULT, engine_cost, missed, readme_tables, sweep_table
from tests.bench.sweep_task import POINTS, halving, our_spec

pytestmark = pytest.mark.quick


def test_our_arms_try_every_point_at_the_rungs_of_the_stock_arm(tmp_path: Path) -> None:
    task = DEFAULT
    spec = parse_spec(our_spec(tmp_path, task, scheduler=halving(task)))
    plan = plan_budget(spec)
    assert (plan.points, list(plan.rung_steps), plan.steps) == (len(POINTS), task.rungs, task.steps)
    fifo = parse_spec(our_spec(tmp_path, task, scheduler="none"))
    tried = [planned_point(fifo, number) for number in range(len(POINTS))]
    assert sorted(map(repr, map(sorted, map(dict.items, tried)))) == sorted(repr(sorted(p.items())) for p in POINTS)
    assert [planned_point(spec, number) for number in range(len(POINTS))] == tried


def test_readme_shows_the_recorded_sweep() -> None:
    assert in_readme("sweep") == readme_tables()["sweep"], "run python -m tests.bench.sweep --write"


def _figures(**seconds: float) -> dict[str, Any]:
    def arm(name: str) -> dict[str, Any]:
        accuracy = {"estimate": 0.6, "low": 0.55, "high": 0.65}
        return {
            "seconds": seconds[name],
            "steps": 80,
            "accuracy": accuracy,
            "fixed_s": 0.1,
            "overhead": 0.01,
            "finals_s": 9.0,
        }

    return {"arms": {name: arm(name) for name in ("halving", "fifo", "tune-asha", "tune-fifo")}}


def test_bars_are_held_and_missed() -> None:
    good = _figures(halving=60, fifo=300, **{"tune-asha": 241, "tune-fifo": 901})
    assert missed(good) == []
    assert "The step and the warm processes: 3.0x. Early stopping: 5.0x." in sweep_table(good)
    slow = _figures(halving=61, fifo=300, **{"tune-asha": 241, "tune-fifo": 901})
    assert missed(slow) == ["4.0x tune-asha, bar 4x", "14.8x tune-fifo, bar 15x"]
    worse = _figures(halving=60, fifo=300, **{"tune-asha": 300, "tune-fifo": 901})
    worse["arms"]["halving"]["accuracy"] = {"estimate": 0.5, "low": 0.45, "high": 0.55}
    worse["arms"]["fifo"]["fixed_s"] = 0.5
    assert missed(worse) == [
        "held-out accuracy 0.500 is below tune-asha's",
        "held-out accuracy 0.500 is below tune-fifo's",
        "fixed cost of a trial 0.50 s, bar 0.3 s",
    ]


def test_the_engine_costs_what_lies_between_the_trials() -> None:
    def end(at: str, pid: int, seconds: float) -> dict[str, Any]:
        return {"at": f"2026-01-01T00:00:{at}Z", "data": {"pid": pid, "seconds": seconds}}

    ends = [end("10.000", 1, 10.0), end("12.000", 2, 12.0), end("20.100", 1, 10.0), end("30.300", 1, 10.0)]
    cost = engine_cost(ends)
    assert cost["fixed_s"] == pytest.approx(0.15) and cost["overhead"] == pytest.approx(0.3 / 20.3)
    assert engine_cost(ends[:2]) == {"fixed_s": 0.0, "overhead": 0.0}
