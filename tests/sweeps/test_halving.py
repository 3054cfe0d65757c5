"""Successive halving: who goes on, from where, what it costs, and that timing has no say."""

import dataclasses
import random
from typing import Any

import pytest

from simpo.errors import SimPOError
from sweeps.budget import plan_budget
from sweeps.ledger import Ended
from sweeps.outcome import Ask, Outcome, Replay
from sweeps.search_facts import rung_order
from sweeps.study import Study
from tests.sweeps.toy_search import asks_of, search_spec, searched, trained

pytestmark = pytest.mark.quick

HALVING: dict[str, Any] = {
    "scheduler": {"type": "halving", "rungs": [0.11, 0.33]},
    "space": {},
    "budget": {"trials": 16, "steps": 100},
}


def test_at_each_rung_the_best_third_goes_on_from_its_own_checkpoint() -> None:
    study = searched(Study(search_spec(**HALVING)), shuffle=3)
    asks = asks_of(study)
    assert [ask.until for ask in asks] == [11] * 16 + [33] * 5 + [None]
    assert [ask.start for ask in asks] == [0] * 16 + [11] * 5 + [33]
    assert [ask.peers for ask in asks] == [None] * 16 + [5] * 5 + [1]
    value = {number: outcome.value or 0.0 for number, outcome in study.outcomes.items()}
    for generation, chosen in ((range(16), range(16, 21)), (range(16, 21), range(21, 22))):
        best = sorted(generation, key=lambda number: (-value[number], number))[: len(chosen)]
        assert [asks[number].parent for number in chosen] == best
        assert [asks[number].params for number in chosen] == [asks[number].params for number in best]
    assert [study.outcomes[number].state for number in (15, 20, 21)] == ["PRUNED", "PRUNED", "COMPLETE"]
    assert [asks_of(searched(Study(search_spec(**HALVING)), shuffle=n, parallel=n)) for n in (1, 2)] == [asks, asks]
    plan = plan_budget(search_spec(**HALVING))
    assert (plan.points, plan.trials, plan.most_steps) == (16, 22, 16 * 11 + 5 * 22 + 67)


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
@pytest.mark.parametrize("seed", range(5))
def test_whoever_goes_on_has_beaten_its_bar(goal: str, seed: int) -> None:
    """With many equal values, of which the first goes on; the bar is what was known when the trial began."""
    study = Study(search_spec(**HALVING | {"objective": {"metric": "accuracy", "goal": goal}}))
    sign, rng = study.spec.objective.sign, random.Random(seed)
    bars: dict[int, float | None] = {}
    beaten, running = set[int](), list[Ask]()
    while not study.finished:
        while len(running) < 2 and (ask := study.ask()) is not None:
            bars[ask.number] = study.bar(ask)
            running.append(ask)
        ask = running.pop(rng.randrange(len(running)))
        value, bar = rng.randrange(6) / 10, bars[ask.number]
        if bar is not None and sign * value <= sign * bar:
            beaten.add(ask.number)
        study.complete(ask.number, dataclasses.replace(trained(ask), value=value))
    parents = {ask.parent for ask in study.asks.values() if ask.parent is not None}
    assert len(beaten) >= 4 and not beaten & parents


def test_halving_resumes_as_it_was() -> None:
    whole = searched(Study(search_spec(**HALVING)))
    for known in (1, 15, 16, 17, 20, 21, 22):
        replay = {
            n: Replay(params=whole.asks[n].params, outcome=None if n == known - 1 else whole.outcomes[n])
            for n in range(known)
        }
        assert asks_of(searched(Study(search_spec(**HALVING), replay), shuffle=known)) == asks_of(whole)


def test_halving_loses_nobody_to_a_place_that_stays_empty() -> None:
    """One alone is fit: the next generation is as small as that, and the search still ends."""
    study = Study(search_spec(**HALVING))
    while not study.finished:
        ask = study.ask()
        assert ask is not None
        fit = ask.number == 5 or ask.parent is not None
        study.complete(ask.number, trained(ask) if fit else Outcome(state="FAILED", reason="loss is not finite"))
        if ask.number == 17:
            assert study.ask() is None
    assert [ask.parent for ask in asks_of(study)[16:]] == [5, 16]
    assert study.exhausted and study.best() == 17


def test_the_control_group_of_halving_goes_to_full_budget_at_once() -> None:
    spec = search_spec(**HALVING | {"scheduler": HALVING["scheduler"] | {"control_group": 0.25}})
    study = searched(Study(spec))
    controls = [ask for ask in asks_of(study) if ask.control]
    assert len(controls) == 4 and {ask.until for ask in controls} == {None}
    assert [sum(ask.start == start for ask in asks_of(study)) for start in (11, 33)] == [4, 1]
    assert len(study.asks) <= plan_budget(spec).trials
    ended = [Ended(ask=ask, outcome=study.outcomes[ask.number]) for ask in asks_of(study)]
    assert [row["n"] for row in rung_order(ended, (25, 50))] == [4, 4], "who was chosen says nothing of the order"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"mode": "asynchronous"}, "mode"),
        ({"budget": {"trials": 16, "steps": 100, "total_steps": 900}}, "budget.total_steps"),
        ({"budget": {"trials": 16, "steps": 4}}, "scheduler.rungs"),
    ],
)
def test_what_halving_cannot_do_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(SimPOError, match=field):
        search_spec(**HALVING | changes)
