"""A search is a function of its edits too: disturbed, killed anywhere and resumed, it asks the same questions."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpo.errors import ConfigError
from sweeps.budget import WallClock
from sweeps.control import AddPoint, Change, ChangeSpace, CloneTrial, Extend, parse_edit, write_edit
from sweeps.desk import Desk
from sweeps.ledger import Ledger
from sweeps.outcome import Ask, Outcome, Replay
from sweeps.run_dir import RunDir
from sweeps.spec import SweepSpec
from sweeps.study import Study
from sweeps.trial import Update
from tests.sweeps.toy_search import asks_of, search_spec, searched, trained

EDITS: Sequence[dict[str, Any]] = (
    {"action": "clone_trial", "trial_id": "trl_0001", "params": {"gamma_beta_ratio": 0.45}},
    {"action": "space", "axes": {"gamma_beta_ratio": {"type": "float", "low": 0.2, "high": 0.7}}},
    {"action": "extend", "trials": 9},
    {"action": "add_point", "params": {"gamma_beta_ratio": 1.7, "learning_rate": 1e-4}},  # outside of the space
    {"action": "extend", "total_steps": 900, "trials": 11},
    {"action": "space", "axes": {"learning_rate": 2e-4}},
)


def _spec(**changes: Any) -> SweepSpec:
    budget = {"trials": 7, "steps": 100, "total_steps": 520}
    body = {"sampler": {"type": "tpe", "startup_trials": 3, "candidates": 4}, "space": {"beta": 2.0}}
    return search_spec(**body, scheduler={"type": "asha", "reduction_factor": 2}, budget=budget, **changes)


def _disturbed(spec: SweepSpec, seed: int, places: Sequence[int]) -> tuple[Study, list[Change]]:
    """A search whose edits arrive after so many ends each; those that it refuses are left out."""
    study, order, live, changes = Study(spec), random.Random(seed), list[Ask](), list[Change]()
    waiting = sorted(zip(places, range(len(EDITS)), strict=True))
    while not study.finished or live:
        while waiting and waiting[0][0] <= len(study.outcomes):
            edit = parse_edit(EDITS[waiting.pop(0)[1]])
            assert isinstance(edit, Extend | ChangeSpace | CloneTrial | AddPoint)
            try:
                changes.append(study.admit(len(changes) + 1, edit))
            except ConfigError:
                continue
            study.apply(changes[-1])
        while len(live) < 3 and (ask := study.ask()) is not None:
            live.append(ask)
        if live:
            ended = live.pop(order.randrange(len(live)))
            study.complete(ended.number, trained(ended))
    study.close()
    return study, changes


@pytest.mark.quick
@settings(max_examples=5)
@given(st.data())
def test_a_disturbed_search_is_the_same_after_any_death(data: st.DataObject) -> None:
    spec = _spec()
    places = data.draw(st.lists(st.integers(0, 7), min_size=len(EDITS), max_size=len(EDITS)))
    whole, changes = _disturbed(spec, data.draw(st.integers(0, 9)), places)
    told = [Change.from_dict(change.as_dict()) for change in changes]
    assert told == changes, "as the journal holds them"
    known = data.draw(st.integers(0, len(whole.asks)))
    running = data.draw(st.sets(st.integers(0, known - 1), max_size=3)) if known else set()
    replay = {
        number: Replay(params=whole.asks[number].params, outcome=None if number in running else whole.outcomes[number])
        for number in range(known)
    }
    again = searched(Study(spec, replay, changes=told), shuffle=known, parallel=data.draw(st.integers(1, 4)))
    assert asks_of(again) == asks_of(whole)
    assert again.outcomes == whole.outcomes


@pytest.mark.quick
def test_the_edits_of_the_property_do_something() -> None:
    whole, changes = _disturbed(_spec(), 0, [3, 3, 3, 4, 4, 5])
    assert len(changes) == len(EDITS)
    assert len(whole.asks) > 7
    by_hand = {ask.number: ask.params for ask in asks_of(whole) if ask.edit is not None}
    assert [point["gamma_beta_ratio"] for point in by_hand.values()] == [0.45, 1.7]
    last = asks_of(whole)[-1].params
    assert last["learning_rate"] == 2e-4
    assert 0.2 <= float(last["gamma_beta_ratio"]) <= 0.7


@pytest.mark.parametrize("seed", range(4))
def test_drivers_that_die_between_edits_leave_the_same_search(tmp_path: Path, seed: int) -> None:
    """Through the books: each edit is answered by one of the drivers; a successor of the last one asks the same."""
    run, spec, chance = RunDir(tmp_path), _spec(), random.Random(seed)
    driver = _Driver(run, spec)
    for edit in EDITS:
        for _ in range(chance.randint(0, 2)):
            driver.turn()
        write_edit(run, parse_edit(edit))
        if chance.random() < 0.5:
            driver = _Driver(run, spec)
        driver.desk.heed()
    while driver.turn():
        pass
    successor = _Driver(run, spec)
    while successor.turn():
        pass
    assert asks_of(successor.ledger.study) == asks_of(driver.ledger.study)
    assert not successor.turned, "everything was known"


class _Driver:
    """Books and desk of one attempt, with two trials at once."""

    def __init__(self, run: RunDir, spec: SweepSpec) -> None:
        attempt, clock = run.claim_next(), WallClock(None)
        self.desk = Desk(attempt, clock, lambda: None)
        self.ledger = Ledger(attempt, spec, run.root / "made", clock)
        self._searching = self.desk.searching(self.ledger)
        self._searching.__enter__()  # and never left: a driver that dies
        self.turned = 0
        self._live: list[int] = []

    def turn(self) -> bool:
        """Start what may start, end one; False at the end."""
        while len(self._live) < 2 and (told := self.ledger.next()) is not None:
            self._live.append(self.ledger.number_of(told.trial_id))
        if not self._live:
            return False
        self.turned += 1
        number = self._live.pop(0)
        outcome: Outcome = trained(self.ledger.study.asks[number])
        self.ledger.end(number, Update(kind="end", step=outcome.step, outcome=outcome))
        return True
