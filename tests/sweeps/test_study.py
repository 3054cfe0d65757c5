"""The search is a pure function of spec and results: any timing, any restart, the same trials."""

import math
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from sweeps.spec import SweepSpec, parse_spec
from sweeps.study import Ask, Outcome, Replay, Study

pytestmark = pytest.mark.quick

Facts = dict[int, tuple[dict[str, Any], Outcome]]


def _spec(**changes: Any) -> SweepSpec:
    body = {"name": "x", "sampler": {"type": "tpe", "startup_trials": 3}, "parallel": {"trials": 3}}
    return parse_spec(body | {"budget": {"trials": 14, "steps": 100}} | changes)


def _train(ask: Ask) -> Outcome:
    """A toy whose optimum, collapse and NaN lie at known learning rates; the rungs obey the cut-offs as trials do."""
    rate = math.log10(float(ask.params["learning_rate"]))
    if rate > -2.65:
        return Outcome(state="FAILED", step=7, reason="loss is not finite")
    rungs = {}
    for step in (25, 50):
        rungs[step] = 1 - abs(rate + 3.8) * 0.3 + step / 1000
        if rate > -2.9:
            return Outcome(state="INFEASIBLE", step=step, value=rungs[step], rungs=rungs, constraints={"eos_rate": 0.4})
        if step in ask.cutoffs and rungs[step] < ask.cutoffs[step]:
            return Outcome(state="PRUNED", step=step, value=rungs[step], rungs=rungs, constraints={"eos_rate": -0.1})
    return Outcome(state="COMPLETE", step=100, value=rungs[50] + 0.05, rungs=rungs, constraints={"eos_rate": -0.1})


def _run(study: Study, choose: Any, parallel: int = 3) -> Facts:
    """Up to `parallel` trials at once; `choose(n)` picks which of n ends next."""
    live: list[Ask] = []
    while not study.finished:
        while len(live) < parallel and (ask := study.ask()) is not None:
            live.append(ask)
        if live:
            ended = live.pop(choose(len(live)))
            study.complete(ended.number, _train(ended))
    study.close()
    return _facts(study)


def _facts(study: Study) -> Facts:
    return {number: (ask.params | ask.cutoffs, study.outcomes[number]) for number, ask in study.asks.items()}


def _undisturbed(**changes: Any) -> Facts:
    return _run(Study(_spec(**changes)), lambda n: 0)


@settings(max_examples=12)
@given(st.data())
def test_any_order_of_completion_gives_the_same_search(data: st.DataObject) -> None:
    facts = _run(Study(_spec()), lambda n: data.draw(st.integers(0, n - 1)), parallel=data.draw(st.integers(1, 6)))
    assert facts == _undisturbed()


@settings(max_examples=12)
@given(st.data())
def test_a_search_resumed_from_any_prefix_equals_the_undisturbed_one(data: st.DataObject) -> None:
    whole = _undisturbed()
    known = data.draw(st.integers(0, len(whole)))
    # Completion order is not ask order: any of the known trials may have been still running.
    running = data.draw(st.sets(st.integers(0, known - 1), max_size=3)) if known else set()
    replay = {
        number: Replay(
            params={k: v for k, v in whole[number][0].items() if isinstance(k, str)},
            outcome=None if number in running else Outcome.from_dict(whole[number][1].as_dict()),
        )
        for number in range(known)
    }
    assert _run(Study(_spec(), replay), lambda n: data.draw(st.integers(0, n - 1))) == whole


def test_optuna_is_told_the_truth() -> None:
    study = Study(_spec(budget={"trials": 30, "steps": 100}))
    _run(study, lambda n: n - 1)
    states = {"COMPLETE": TrialState.COMPLETE, "PRUNED": TrialState.PRUNED, "FAILED": TrialState.FAIL}
    seen = set()
    for trial in study.optuna.trials:
        outcome = study.outcomes[trial.number]
        seen.add(outcome.state)
        assert trial.state == states.get(outcome.state, TrialState.COMPLETE)
        assert trial.intermediate_values == outcome.rungs
        assert trial.value == outcome.value, "a pruned trial keeps its last value"
        assert trial.constraints == outcome.constraints
        assert trial.user_attrs["trial_id"] == study.asks[trial.number].trial_id
        if outcome.state == "FAILED":
            assert trial.user_attrs["reason"] == "loss is not finite"
    assert seen == {"COMPLETE", "PRUNED", "FAILED", "INFEASIBLE"}, "the toy no longer shows every ending"


def test_the_window_closes_and_opens() -> None:
    study = Study(_spec())
    asks = [study.ask() for _ in range(6)]
    assert all(asks)
    assert study.ask() is None
    study.complete(3, Outcome(state="FAILED", reason="x"))
    assert study.ask() is None, "trial 3 waits for trial 0"
    study.complete(0, Outcome(state="FAILED", reason="x"))
    later = study.ask()
    assert later is not None
    assert later.number == 6
    assert study.ask() is None
    assert [trial.state for trial in study.optuna.trials[:4]] == [TrialState.FAIL] + [TrialState.RUNNING] * 3


def test_close_leaves_nothing_running() -> None:
    study = Study(_spec())
    for _ in range(4):
        study.ask()
    study.complete(2, Outcome(state="COMPLETE", step=100, value=0.5))
    study.close()
    assert [trial.state for trial in study.optuna.trials] == [TrialState.FAIL] * 2 + [
        TrialState.COMPLETE,
        TrialState.FAIL,
    ]
    assert study.outcomes[0].reason == "the search was stopped"
    assert study.best() == 2


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(state="COMPLETE", value=float("nan")),
        Outcome(state="COMPLETE", value=None),
        Outcome(state="PRUNED", value=0.1, rungs={25: float("inf")}),
        Outcome(state="INFEASIBLE", value=0.1, constraints={"eos_rate": float("nan")}),
    ],
)
def test_a_value_that_is_no_number_fails_the_trial(outcome: Outcome) -> None:
    study = Study(_spec())
    study.ask()
    study.complete(0, outcome)
    study.close()
    assert study.outcomes[0].state == "FAILED"
    assert "not finite" in study.outcomes[0].reason
    assert study.optuna.trials[0].state == TrialState.FAIL


def test_the_first_end_of_a_trial_counts() -> None:
    study = Study(_spec())
    study.ask()
    study.complete(0, Outcome(state="COMPLETE", value=0.5))
    study.complete(0, Outcome(state="COMPLETE", value=0.9))
    assert study.outcomes[0].value == 0.5
    with pytest.raises(KeyError, match="never asked"):
        study.complete(9, Outcome(state="FAILED"))


def test_cutoffs_let_the_best_third_go_on() -> None:
    study = Study(_spec(parallel={"trials": 1}, scheduler={"type": "asha", "rungs": [0.25], "reduction_factor": 3}))
    values = [0.1, 0.4, 0.2, 0.3, None, 0.9, 0.5]
    for number, value in enumerate(values):
        ask = study.ask()
        assert ask is not None
        if value is None:
            outcome = Outcome(state="INFEASIBLE", step=25, value=9.0, rungs={25: 9.0}, constraints={"repetition": 1.0})
        else:
            outcome = Outcome(state="COMPLETE", step=100, value=value, rungs={25: value})
        if number < 4:
            assert ask.cutoffs == {}, "fewer than three values cut nobody"
        study.complete(number, outcome)
    ask = study.ask()
    assert ask is not None
    # Told by now: trials 0 to 5, of which the infeasible one sets no bar.
    assert ask.cutoffs == {25: pytest.approx(sorted([0.1, 0.4, 0.2, 0.3, 0.9])[2] * (1 / 3) + 0.4 * (2 / 3))}


def test_minimising_turns_the_cutoffs_and_the_ranking() -> None:
    spec = _spec(parallel={"trials": 1}, objective={"metric": "margin", "goal": "minimize"})
    study = Study(spec)
    for number, value in enumerate([0.3, 0.1, 0.2, 0.4]):
        study.ask()
        study.complete(number, Outcome(state="COMPLETE", step=100, value=value, rungs={30: value, 25: value}))
    ask = study.ask()
    assert ask is not None
    assert ask.cutoffs[25] == pytest.approx(0.1 + (0.2 - 0.1) * 2 / 3)
    assert study.ranked() == [1, 2, 0, 3]


def test_presets_come_first_and_stay_inside_the_space() -> None:
    study = Study(_spec(presets="paper", space={"beta": {"type": "float", "low": 1, "high": 5}}))
    points = [ask.params for ask in (study.ask() for _ in range(6)) if ask]
    assert [point["gamma_beta_ratio"] for point in points] == [0.8, 0.1, 0.5, 0.55, 0.3, 0.5]
    assert [point["beta"] for point in points[:4]] == [2.0, 2.5, 2.0, 2.5]
    assert all(2e-5 <= float(point["learning_rate"]) <= 3e-3 for point in points), "a 7B rate left the space"
    assert all(1 <= float(point["beta"]) <= 5 for point in points), "10 lies outside the space"


def test_constants_stay_and_seeds_differ() -> None:
    same = Study(_spec(space={"beta": 3.0, "learning_rate": 1e-4, "gamma_beta_ratio": 0.5}))
    ask = same.ask()
    assert ask is not None
    assert ask.params == {"beta": 3.0, "learning_rate": 1e-4, "gamma_beta_ratio": 0.5}
    points = {
        seed: [a.params for a in (study.ask() for _ in range(3)) if a]
        for seed in (0, 1)
        for study in [Study(_spec(seed=seed))]
    }
    assert points[0] != points[1]
    assert len({str(point) for point in points[0]}) == 3, "each ask has its own seed"


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_samplers_search_every_kind_of_axis(sampler: str) -> None:
    space = {
        "label_smoothing": {"type": "categorical", "choices": [0.0, 0.1]},
        "sft_weight": {"type": "int", "low": 0, "high": 3},
    }
    facts = _run(Study(_spec(sampler=sampler, space=space)), lambda n: 0)
    points = [params for params, _ in facts.values()]
    assert {point["label_smoothing"] for point in points} == {0.0, 0.1}
    assert all(point["sft_weight"] in range(4) for point in points)


def test_the_estimator_learns() -> None:
    """More of the later trials than of the first lie near the toy's optimum."""
    study = Study(_spec(budget={"trials": 40, "steps": 100}, scheduler="none", parallel={"trials": 1}))
    facts = _run(study, lambda n: 0, parallel=1)
    rates = [abs(math.log10(params["learning_rate"]) + 3.8) for params, _ in facts.values()]
    assert sorted(rates[-15:])[7] < sorted(rates[:15])[7]
    assert study.optuna.best_trial.number == study.best()
    assert isinstance(study.optuna.sampler, optuna.samplers.TPESampler)
