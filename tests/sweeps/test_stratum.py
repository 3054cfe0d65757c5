"""The random stratum of a search, and a search limited by its steps."""

import math
from typing import Any

import numpy as np
import optuna
import pytest

from simpo.errors import ConfigError
from sweeps.budget import plan_budget
from sweeps.spec import SweepSpec, parse_spec
from sweeps.stratum import in_stratum, stratum_size
from sweeps.study import Ask, Outcome, Study

pytestmark = pytest.mark.quick


def _spec(**changes: Any) -> SweepSpec:
    body = {"name": "x", "sampler": {"type": "tpe", "startup_trials": 2}, "presets": "paper"}
    return parse_spec(body | {"budget": {"trials": 12, "steps": 100}, "random_stratum": 0.5} | changes)


def _searched(spec: SweepSpec, value: float = 0.5, *, parallel: int = 1) -> Study:
    """A whole search whose trials obey their cut-offs; the values fall, so that the search stops what it may."""
    study, live = Study(spec), list[Ask]()
    while not study.finished:
        while len(live) < parallel and (ask := study.ask()) is not None:
            live.append(ask)
        if live:
            ask = live.pop()
            worth = value - ask.number / 100
            rungs = {25: worth, 50: worth}
            stopped = [step for step, least in ask.cutoffs.items() if worth < least]
            if stopped:
                outcome = Outcome(state="PRUNED", step=stopped[0], value=worth, rungs={stopped[0]: worth})
            else:
                outcome = Outcome(state="COMPLETE", step=100, value=worth, rungs=rungs)
            study.complete(ask.number, outcome)
    study.close()
    return study


@pytest.mark.parametrize(("trials", "count"), [(12, 6), (16, 1), (7, 7), (10, 3), (999, 333)])
def test_the_stratum_is_spread_evenly_and_has_its_size(trials: int, count: int) -> None:
    share = count / trials
    drawn = [number for number in range(trials) if in_stratum(number, share)]
    assert len(drawn) == stratum_size(trials, share) == count
    gaps = np.diff([-1, *drawn])
    assert gaps.max() - gaps.min() <= 1
    assert not any(in_stratum(number, 0.0) for number in range(50))


def test_random_trials_are_independent_of_sampler_results_and_presets_and_are_never_stopped() -> None:
    one, other = _searched(_spec()), _searched(_spec(sampler="random", presets="none", scheduler="none"), value=0.9)
    drawn = [number for number in range(12) if in_stratum(number, 0.5)]
    for number in drawn:
        assert one.asks[number].params == other.asks[number].params
        assert one.asks[number].cutoffs == {}
        assert one.outcomes[number].state == "COMPLETE"
    rest = [number for number in range(12) if number not in drawn]
    assert any(one.outcomes[number].state == "PRUNED" for number in rest)
    # The authors' points go to the others, in order: beta is inside the space, their learning rate is not.
    assert [one.asks[number].params["beta"] for number in rest] == [2.0, 2.5, 2.0, 2.5, 10.0, 10.0]


def test_random_trials_fill_the_space() -> None:
    study = Study(_spec(random_stratum=1.0, budget={"trials": 200, "steps": 100}))
    while (ask := study.ask()) is not None:
        study.complete(ask.number, Outcome(state="COMPLETE", step=100, value=0.5))
    rates = np.log([float(ask.params["learning_rate"]) for ask in study.asks.values()])
    low, high = math.log(2e-5), math.log(3e-3)
    heights = np.histogram(rates, bins=4, range=(low, high))[0]
    assert heights.sum() == 200
    assert heights.min() > 30
    assert isinstance(study.optuna.sampler, optuna.samplers.RandomSampler)


@pytest.mark.parametrize("parallel", [1, 2])
def test_steps_that_stopped_trials_leave_go_to_further_trials(parallel: int) -> None:
    budget = {"trials": 100, "steps": 100, "total_steps": 900}
    study = _searched(_spec(budget=budget, random_stratum=0.0, presets="none"), parallel=parallel)
    taken = sum(outcome.step for outcome in study.outcomes.values())
    assert 800 < taken <= 900, "the next trial would not have fitted"
    assert len(study.asks) > 9
    assert study.finished
    assert study.asks == _searched(_spec(budget=budget, random_stratum=0.0, presets="none"), parallel=2).asks


def test_the_plan_counts_random_trials_at_full_length_and_ends_with_the_steps() -> None:
    plain, half = plan_budget(_spec(random_stratum=0.0)), plan_budget(_spec())
    assert half.likely_steps == 6 * 100 + plain.likely_steps // 2
    limited = plan_budget(_spec(budget={"trials": 100, "steps": 100, "total_steps": 900}))
    assert (limited.most_steps, limited.likely_steps) == (900, 900)


def test_fewer_steps_than_one_trial_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"budget.total_steps: must be at least budget.steps"):
        _spec(budget={"trials": 2, "steps": 100, "total_steps": 99})
