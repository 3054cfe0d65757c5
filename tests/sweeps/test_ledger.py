"""The books of an attempt, without Ray: what is written, what is kept, what a successor knows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.budget import WallClock, plan_budget
from sweeps.finals import no_winner
from sweeps.leaderboard import leaderboard
from sweeps.ledger import Ledger, recorded_trials
from sweeps.recorded import begun
from sweeps.run_dir import RunDir, read_journal
from sweeps.spec import SweepSpec, parse_spec
from sweeps.study import Outcome
from sweeps.trial import Assignment, Update

pytestmark = pytest.mark.quick

CURVE = {"loss": 0.5, "margin": 0.1, "accuracy": 0.6, "grad_norm": 1.0, "learning_rate": 1e-3, "tokens": 9.0}


def _spec(**changes: Any) -> SweepSpec:
    return parse_spec({"name": "books", "objective": "accuracy", "budget": {"trials": 8, "steps": 100}} | changes)


def _ledger(root: Path, number: int = 1, clock: WallClock | None = None, **changes: Any) -> Ledger:
    return Ledger(RunDir(root).claim(number), _spec(**changes), root / "prepared", clock or WallClock(None))


def _number(assignment: Assignment | None) -> int:
    assert assignment is not None
    return int(assignment.trial_id[4:])


def _complete(ledger: Ledger, assignment: Assignment | None, value: float, seconds: float = 1.0) -> None:
    assert assignment is not None
    checkpoint = Path(assignment.directory) / "final"
    checkpoint.mkdir(parents=True)
    (Path(assignment.directory) / "rung-000025").mkdir()
    outcome = Outcome(state="COMPLETE", step=100, value=value, rungs={25: value})
    ledger.end(
        _number(assignment),
        Update(
            kind="end",
            step=100,
            metrics={"accuracy": value},
            interval=(value - 0.05, value + 0.05),
            outcome=outcome,
            checkpoint=str(checkpoint),
            seconds=seconds,
        ),
    )


def test_the_journal_tells_a_trials_life(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    told = ledger.next()
    ledger.update(0, Update(kind="progress", step=10, metrics=CURVE))
    ledger.update(0, Update(kind="rung", step=25, metrics={"accuracy": 0.7, "eos_rate": 1.0}))
    _complete(ledger, told, 0.8)
    records = read_journal(ledger.attempt)
    kinds = [record["type"] for record in records]
    assert kinds == ["trial.created", "trial.progress", "trial.rung", "trial.completed", "best.updated"]
    assert records[0]["data"]["params"] == ledger.study.asks[0].params
    assert records[1]["data"]["loss"] == 0.5
    assert records[2]["data"]["value"] == 0.7
    end = records[3]["data"]
    assert (end["trial_id"], end["number"], end["value"], end["state"]) == ("trl_0000", 0, 0.8, "COMPLETE")
    assert end["checkpoint"] == "attempts/1/trials/trl_0000/final"
    assert records[4]["data"]["trial_id"] == "trl_0000"


def test_only_the_best_keep_their_weights(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path, scheduler="none", finals={"candidates": 2})
    for value in (0.1, 0.5, 0.3, 0.9, 0.7):
        _complete(ledger, ledger.next(), value)
    kept = sorted(path.parent.name for path in tmp_path.glob("attempts/1/trials/*/final"))
    assert kept == ["trl_0001", "trl_0003", "trl_0004"]
    assert not list(tmp_path.glob("attempts/1/trials/*/rung-*")), "ended trials need no way back"
    assert [ended.ask.number for ended in ledger.finalists()] == [3, 4]
    assert ledger.ended[0].checkpoint is None


def test_a_trial_whose_process_died_is_failed_with_a_reason(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    ledger.next()
    ledger.end(0, Update(kind="progress", step=10, metrics=CURVE))
    ledger.end(0, None)
    records = [record for record in read_journal(ledger.attempt) if record["type"] == "trial.failed"]
    assert len(records) == 1
    assert records[0]["level"] == "warn"
    assert "process died" in records[0]["data"]["reason"]
    assert ledger.counts() == {"COMPLETE": 0, "PRUNED": 0, "FAILED": 1, "INFEASIBLE": 0, "RUNNING": 0}


def test_a_spent_wall_clock_starts_nothing_more(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path, clock=WallClock(1e-9))
    assert ledger.next() is None
    assert ledger.drained
    slow = _ledger(tmp_path, number=2, clock=WallClock(3600.0)).next()
    assert slow is not None
    assert slow.deadline is not None


def test_the_budget_drains(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path, budget={"trials": 2, "steps": 100})
    told = [ledger.next(), ledger.next()]
    assert not ledger.drained
    assert ledger.next() is None
    assert not ledger.drained, "while the last ones run somebody may extend the budget"
    for assignment in told:
        _complete(ledger, assignment, 0.5)
    assert ledger.study.finished
    assert ledger.next() is None
    assert ledger.drained


def test_a_successor_goes_on_where_the_journal_ends(tmp_path: Path) -> None:
    dead = _ledger(tmp_path)
    told = [dead.next() for _ in range(4)]
    _complete(dead, told[2], 0.6)
    _complete(dead, told[0], 0.9)
    Path(told[1].directory, "rung-000025").mkdir(parents=True)  # type: ignore[union-attr]

    heir = _ledger(tmp_path, number=2)
    first, second = heir.next(), heir.next()
    assert [_number(first), _number(second)] == [1, 3], "finished trials are not run again"
    assert first is not None
    assert first.params == told[1].params  # type: ignore[union-attr]
    assert first.resume == [told[1].directory]  # type: ignore[union-attr]
    assert "attempts/2" in first.directory
    assert heir.counts()["COMPLETE"] == 2
    assert [ended.checkpoint for ended in heir.finalists()] == [
        "attempts/1/trials/trl_0000/final",
        "attempts/1/trials/trl_0002/final",
    ]
    kinds = [record["type"] for record in read_journal(heir.attempt)]
    assert kinds == ["job.resumed"] + ["trial.created"] * 2, "what a predecessor told is not told again"


def test_a_successor_without_time_still_knows_what_was_trained(tmp_path: Path) -> None:
    dead = _ledger(tmp_path, scheduler="none")
    told = [dead.next() for _ in range(4)]
    _complete(dead, told[0], 0.6)
    _complete(dead, told[2], 0.9)
    clock = WallClock(None)
    clock.end("accelerator_hours", "the hours were spent")
    heir = _ledger(tmp_path, number=2, clock=clock, scheduler="none")
    assert heir.next() is None and heir.drained
    assert [ended.ask.number for ended in heir.finalists()] == [2, 0]
    assert (heir.ended[1].outcome.state, heir.ended[1].outcome.reason) == ("PRUNED", "the hours were spent")
    assert 3 not in heir.ended, "nothing behind it was trained"


def test_what_an_orphan_writes_after_it_was_read_is_nobodys(tmp_path: Path) -> None:
    orphan = _ledger(tmp_path)
    told = [orphan.next() for _ in range(2)]
    _complete(orphan, told[0], 0.9)
    heir = _ledger(tmp_path, number=2)
    assert _number(heir.next()) == 1
    _complete(orphan, told[1], 0.7)  # it has not looked for a successor yet
    assert heir.attempt.superseded() is False
    third = _ledger(tmp_path, number=3)
    assert _number(third.next()) == 1, "the orphan's word counts for nothing"
    assert [trial.outcome is None for trial in recorded_trials(RunDir(tmp_path), below=9).values()] == [False, True]


def test_a_directory_that_holds_a_trial_is_worth_keeping(tmp_path: Path) -> None:
    assert not begun(tmp_path)
    ledger = _ledger(tmp_path / "sweeps" / "simpo")
    ledger.attempt.append("job.started", "")
    assert not begun(tmp_path)
    ledger.next()
    assert begun(tmp_path)


def test_weights_that_a_predecessor_dropped_are_not_finalists(tmp_path: Path) -> None:
    dead = _ledger(tmp_path)
    _complete(dead, dead.next(), 0.9)
    for path in tmp_path.glob("attempts/1/trials/*/final"):
        path.rmdir()
    heir = _ledger(tmp_path, number=2)
    heir.next()
    assert heir.finalists() == []
    assert heir.ended[0].outcome.value == 0.9


def test_the_first_end_of_a_trial_counts_over_attempts(tmp_path: Path) -> None:
    for number, value in ((1, 0.4), (2, 0.8)):
        attempt = RunDir(tmp_path).claim(number)
        data = {"trial_id": "trl_0000", "number": 0, "params": {"beta": 2.0}}
        attempt.append("trial.created", "", data)
        end = Outcome(state="COMPLETE", step=9, value=value).as_dict()
        attempt.append(
            "trial.completed", "", {**data, **end, "metrics": {}, "interval": None, "checkpoint": None, "seconds": 1}
        )
    trials = recorded_trials(RunDir(tmp_path), below=3)
    assert trials[0].outcome is not None
    assert trials[0].outcome.value == 0.4
    assert len(trials[0].directories) == 2
    assert recorded_trials(RunDir(tmp_path), below=1) == {}


def test_the_leaderboard_states_ties(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path, scheduler="none")
    endings: list[Callable[[Assignment | None], None]] = [
        lambda told: ledger.end(_number(told), None),
        lambda told: _complete(ledger, told, 0.60),
        lambda told: _complete(ledger, told, 0.90),
        lambda told: _stopped(ledger, told, "PRUNED", 25, 0.95),
        lambda told: _complete(ledger, told, 0.86),
        lambda told: _stopped(ledger, told, "INFEASIBLE", 50, 0.99),
        lambda told: _stopped(ledger, told, "PRUNED", 50, 0.30),
    ]
    for end in endings:
        end(ledger.next())
    rows = leaderboard(list(ledger.ended.values()), ledger.spec.objective)
    assert [row["number"] for row in rows] == [2, 4, 1, 6, 3, 5, 0]
    assert [row["rank"] for row in rows] == list(range(1, 8))
    assert [row["tied_with_best"] for row in rows] == [True, True, False, False, False, False, False]
    assert (rows[0]["low"], rows[0]["high"]) == pytest.approx((0.85, 0.95))
    assert rows[-1]["state"] == "FAILED"
    assert {row["judged"] for row in rows} == {None}
    standing = {"estimate": 0.6, "judged": 80, "tied_with": []}
    judged = leaderboard(list(ledger.ended.values()), ledger.spec.objective, {rows[1]["trial_id"]: standing})
    assert [row["judged"] for row in judged[:3]] == [None, standing, None]


def _stopped(ledger: Ledger, told: Assignment | None, state: Any, step: int, value: float) -> None:
    broken = {"eos_rate": 0.2} if state == "INFEASIBLE" else {}
    outcome = Outcome(state=state, step=step, value=value, constraints=broken, reason="why")
    ledger.end(_number(told), Update(kind="end", step=step, metrics={"accuracy": value}, outcome=outcome))


def test_a_plan_counts_before_anything_runs() -> None:
    plan = plan_budget(_spec(scheduler={"type": "asha", "rungs": [0.25, 0.5], "reduction_factor": 2}))
    assert (plan.rung_steps, plan.window, plan.most_steps) == ((25, 50), 4, 800)
    assert plan.likely_steps == 8 * (25 + 25 / 2 + 50 / 4)
    assert plan_budget(_spec(scheduler="none")).likely_steps == 800


def test_a_search_without_a_winner_says_how_its_trials_ended(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    for state, step, value in (("INFEASIBLE", 25, 0.9), ("PRUNED", 25, 0.1)):
        _stopped(ledger, ledger.next(), state, step, value)
    message = str(no_winner(ledger.ended.values()))
    assert "(1 INFEASIBLE, 1 PRUNED; e.g. trial 0: why)" in message
    assert "Lower the learning rates" in message
    assert "none was started" in str(no_winner([]))
