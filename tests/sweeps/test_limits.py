"""Accelerator-hours over attempts, and which limit has ended a search. No Ray, and no real time."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sweeps.budget import WallClock
from sweeps.hours import HOURS_REASON, Hours
from sweeps.ledger import Ledger
from sweeps.limits import Watch, budget_facts, ended_by
from sweeps.outcome import Outcome
from sweeps.report_search import panels
from sweeps.run_dir import Record, RunDir, read_heartbeat, read_journal
from sweeps.signals import REASONS
from sweeps.spec import SweepSpec, parse_spec, spec_hash
from sweeps.trial import Update

pytestmark = pytest.mark.quick

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def _record(kind: str, minute: float, number: int = 0, **data: Any) -> Record:
    at = (NOON + timedelta(minutes=minute)).isoformat()
    told = {"trial_id": f"trl_{number:04d}", "number": number, **data}
    return Record(seq=1, attempt=1, at=at, type=kind, level="info", message="", data=told)


def _spec(**budget: Any) -> SweepSpec:
    body = {"name": "x", "objective": "accuracy", "scheduler": "none", "budget": {"trials": 3, "steps": 9, **budget}}
    return parse_spec(body)


def _ledger(root: Path, clock: WallClock | None = None, **budget: Any) -> Ledger:
    return Ledger(RunDir(root).claim_next(), _spec(**budget), root / "prepared", clock or WallClock(None))


def _end(ledger: Ledger, number: int, **changes: Any) -> None:
    outcome = Outcome(**{"state": "COMPLETE", "step": 9, "value": 0.5, **changes})
    ledger.end(number, Update(kind="end", step=outcome.step, outcome=outcome))


def test_slots_are_counted_from_start_to_end_times_their_workers() -> None:
    hours = Hours(2, now=lambda: NOON + timedelta(minutes=90))
    for kind, minute, number in [
        ("trial.created", 0, 0),
        ("trial.created", 10, 1),
        ("trial.pruned", 40, 1),
        ("trial.progress", 45, 0),
        ("trial.completed", 60, 0),
        ("trial.created", 60, 2),
    ]:
        hours.take(_record(kind, minute, number))
    assert hours.spent == pytest.approx(2 * (60 + 30 + 30) / 60), "the last one still runs"
    hours.take(_record("replicate.created", 70, 2, replicate=1))
    hours.take(_record("replicate.completed", 90, 2, replicate=1))
    assert hours.spent == pytest.approx(2 * (60 + 30 + 30 + 20) / 60), "a retraining is not its finalist"
    hours.close(NOON + timedelta(minutes=80))
    assert hours.spent == pytest.approx(2 * (60 + 30 + 20 + 20) / 60)


def test_a_successor_counts_what_its_predecessors_spent(tmp_path: Path) -> None:
    dead = RunDir(tmp_path).claim_next()
    dead.append("trial.created", "", {"trial_id": "trl_0000", "number": 0})
    dead.beat({})
    heir = RunDir(tmp_path).claim_next()
    own = Hours.of(heir, 1)
    beat = read_heartbeat(dead)
    assert beat is not None
    began, last = (datetime.fromisoformat(at) for at in (read_journal(dead)[0]["at"], beat["at"]))
    assert own.spent == pytest.approx((last - began).total_seconds() / 3600)
    assert own.spent == own.spent, "nothing runs any more"
    (dead.path / "heartbeat.json").unlink()
    assert Hours.of(heir, 1).spent == 0.0, "without a sign of life nothing is known"


def test_spent_hours_end_the_search_and_running_trials_hear_of_it(tmp_path: Path) -> None:
    clock = WallClock(None)
    ledger = _ledger(tmp_path, clock)
    moment = [NOON]
    watch = Watch(ledger.attempt, clock, Hours(1, now=lambda: moment[0]), 1.0)
    told: list[float | None] = []
    ledger.next()
    ledger.next()
    began = datetime.fromisoformat(read_journal(ledger.attempt)[0]["at"])
    moment[0] = began
    watch.look(lambda: told.append(clock.deadline))
    assert not told and clock.deadline is None
    moment[0] = began + timedelta(minutes=31)
    watch.look(lambda: told.append(clock.deadline))
    watch.look(lambda: told.append(None))
    assert len(told) == 1 and told[0] is not None, "once"
    assert ledger.next() is None
    _end(ledger, 0)
    _end(ledger, 1, state="PRUNED", step=4, reason=REASONS["late"])
    assert ledger.ended[1].outcome.reason == HOURS_REASON
    assert ended_by(ledger, clock) == "accelerator_hours"
    record = next(record for record in read_journal(ledger.attempt) if record["type"] == "budget.spent")
    assert (record["data"]["limit"], record["data"]["of"]) == ("accelerator_hours", 1.0)
    facts = budget_facts(ledger.spec, ledger, watch.hours.spent, "accelerator_hours", None)
    assert (facts["spent"]["trials"], facts["spent"]["steps"]) == (2, 13)
    assert facts["allowed"] == dict.fromkeys(facts["allowed"]) | {"trials": 3}
    (panel,) = panels({"budget": facts})
    assert "accelerator-hours were spent" in panel.note and panel.rows[0] == ["trials", 2, 3]


def test_each_limit_is_named(tmp_path: Path) -> None:
    whole = _ledger(tmp_path / "trials")
    for number in range(3):
        assert whole.next() is not None
        _end(whole, number)
    assert whole.next() is None and ended_by(whole, whole.clock) == "trials"

    steps = _ledger(tmp_path / "steps", total_steps=18)
    for number in range(2):
        assert steps.next() is not None
        _end(steps, number)
    assert steps.next() is None and ended_by(steps, steps.clock) == "total_steps"

    late = _ledger(tmp_path / "late", WallClock(1e-9))
    assert late.next() is None and ended_by(late, late.clock) == "wall_clock_s"
    cut = _ledger(tmp_path / "cut")
    for number in range(3):
        cut.next()
        _end(cut, number, state="PRUNED", step=4, reason=REASONS["late"])
    assert ended_by(cut, cut.clock) == "wall_clock_s", "all were asked, and cut"


def test_the_field_is_a_later_one() -> None:
    assert spec_hash(_spec(accelerator_hours=2)) != spec_hash(_spec())
