"""Which finalists are trained again, in which order, and what a successor takes over. No Ray."""

from pathlib import Path
from typing import Any

import pytest

from sweeps.budget import WallClock, plan_budget
from sweeps.ledger import Ended, Ledger
from sweeps.outcome import Ask, Outcome
from sweeps.retrainings import Retrainings, weights_of
from sweeps.run_dir import RunDir, read_journal
from sweeps.spec import SweepSpec, parse_spec
from sweeps.trial import Assignment, Update

pytestmark = pytest.mark.quick


def _spec(**changes: Any) -> SweepSpec:
    finals = {"candidates": 2, "seeds": 3}
    return parse_spec({"name": "x", "objective": "accuracy", "budget": {"trials": 4, "steps": 9}, "finals": finals})


def _finalists() -> list[Ended]:
    complete = Outcome(state="COMPLETE", step=9, value=0.5)
    return [
        Ended(
            ask=Ask(number=n, trial_id=f"trl_{n:04d}", params={"beta": float(n)}, cutoffs={}),
            outcome=complete,
            checkpoint=f"{n}",
        )
        for n in (7, 2)
    ]


def _books(root: Path, number: int = 1, clock: WallClock | None = None) -> Retrainings:
    ledger = Ledger(RunDir(root).claim(number), _spec(), root / "prepared", clock or WallClock(None))
    return Retrainings(ledger, _finalists())


def _end(books: Retrainings, told: Assignment, state: Any = "COMPLETE") -> None:
    checkpoint = Path(told.directory) / "final"
    outcome = Outcome(state=state, step=9, value=0.6, constraints={"eos_rate": 0.1} if state == "INFEASIBLE" else {})
    checkpoint.mkdir(parents=True)
    last = Update(kind="end", step=9, outcome=outcome, checkpoint=str(checkpoint), seconds=1.5)
    books.end(books.number_of(told.trial_id), last)


def _next(books: Retrainings) -> Assignment:
    told = books.next()
    assert told is not None
    return told


def test_seed_by_seed_and_the_best_finalist_first(tmp_path: Path) -> None:
    books = _books(tmp_path)
    told = [_next(books) for _ in range(4)]
    assert [(each.trial_id, each.replicate) for each in told] == [
        ("trl_0007_r1", 1),
        ("trl_0002_r1", 1),
        ("trl_0007_r2", 2),
        ("trl_0002_r2", 2),
    ]
    assert told[0].params == {"beta": 7.0} and not told[0].cutoffs and told[0].until is None
    assert len({each.directory for each in told}) == 4
    assert books.drained and books.next() is None
    books.update(1, Update(kind="progress", step=1))
    books.update(1, Update(kind="rung", step=3, metrics={"accuracy": 0.55}))
    for each in told[:3]:
        _end(books, each)
    books.end(3, None)
    of_seven, of_two = (books.of(finalist) for finalist in _finalists())
    assert [each.checkpoint for each in of_seven] == [f"attempts/1/trials/trl_0007_r{r}/final" for r in (1, 2)]
    assert [each.outcome.state for each in of_two] == ["COMPLETE", "FAILED"]
    records = read_journal(RunDir(tmp_path).attempt(1))
    assert [record["type"] for record in records] == [
        *["replicate.created"] * 4,
        "replicate.rung",
        *["replicate.completed"] * 3,
        "replicate.failed",
    ]
    where = {key: records[4]["data"][key] for key in ("trial_id", "number", "replicate", "step", "value")}
    assert where == {"trial_id": "trl_0002", "number": 2, "replicate": 1, "step": 3, "value": 0.55}
    assert len(list(weights_of(RunDir(tmp_path), _finalists()))) == 3


def test_a_successor_trains_only_what_is_missing(tmp_path: Path) -> None:
    dead = _books(tmp_path)
    told = [_next(dead) for _ in range(3)]
    _end(dead, told[0])
    _end(dead, told[1], "INFEASIBLE")
    heir = _books(tmp_path, number=2)
    rest = [_next(heir) for _ in range(2)]
    assert [each.trial_id for each in rest] == ["trl_0007_r2", "trl_0002_r2"] and heir.drained
    assert rest[0].resume == [told[2].directory] and "attempts/2" in rest[0].directory
    assert [each.outcome.state for each in heir.of(_finalists()[1])] == ["INFEASIBLE"]
    (tmp_path / "attempts/1/trials/trl_0007_r1/final").rmdir()
    assert _next(_books(tmp_path, number=3)).trial_id == "trl_0007_r1", "its weights are gone"


def test_a_spent_clock_starts_none(tmp_path: Path) -> None:
    books = _books(tmp_path, clock=WallClock(1e-9))
    assert books.next() is None and books.drained


def test_the_plan_counts_them_apart() -> None:
    plan = plan_budget(_spec())
    assert (plan.trials, plan.retrainings, plan.most_steps) == (4, 4, 8 * 9)
