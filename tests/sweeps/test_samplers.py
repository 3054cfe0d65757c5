"""Every sampler and scheduler is honoured, or refused by name; whatever the sampler, timing has no say."""

import itertools
import random
from typing import Any

import optuna
import pytest

from simpo.errors import ConfigError
from sweeps import samplers
from sweeps.budget import plan_budget
from sweeps.faults import SpecError
from sweeps.samplers import check_installed, planned_point
from sweeps.spec import SweepSpec, parse_spec, spec_hash
from sweeps.study import Ask, Outcome, Replay, Study

pytestmark = pytest.mark.quick

LOG_RATE = {"type": "log_float", "low": 1e-5, "high": 1e-3}
CONDITIONAL = {
    "loss_type": {"type": "categorical", "choices": ["sigmoid", "hinge"]},
    "label_smoothing": {"type": "float", "low": 0.0, "high": 0.3, "when": {"loss_type": "sigmoid"}},
}


def _spec(**changes: Any) -> SweepSpec:
    body = {"name": "x", "objective": "accuracy", "constraints": {}, "space": {"learning_rate": LOG_RATE, "beta": 2.0}}
    return parse_spec(body | {"budget": {"trials": 12, "steps": 100}, "scheduler": "none"} | changes)


def _train(ask: Ask) -> Outcome:
    value = -abs(float(ask.params["gamma_beta_ratio"]) - 0.4) - 1e3 * abs(float(ask.params["learning_rate"]) - 3e-4)
    others = {"margin": float(ask.params["gamma_beta_ratio"])}
    return Outcome(state="COMPLETE", step=100, value=value, rungs={25: value, 50: value, 100: value}, others=others)


def _run(spec: SweepSpec, replay: dict[int, Replay] | None = None, shuffle: int | None = None) -> Study:
    study, live = Study(spec, replay), list[Ask]()
    order = None if shuffle is None else random.Random(shuffle)
    while not study.finished:
        while (ask := study.ask()) is not None:
            live.append(ask)
        if live:
            ask = live.pop(0 if order is None else order.randrange(len(live)))
            study.complete(ask.number, _train(ask))
    study.close()
    return study


def _points(study: Study) -> list[dict[str, Any]]:
    return [study.asks[number].params for number in sorted(study.asks)]


SAMPLERS: list[dict[str, Any]] = [
    {"type": "tpe", "startup_trials": 3, "candidates": 64, "sharpness": 3},
    {"type": "gp", "startup_trials": 9},
    {"type": "cmaes", "population": 4},
    {"type": "qmc"},
    {"type": "qmc", "sequence": "halton"},
    {"type": "random"},
    {"type": "grid", "points": 4},
    {"type": "nsga2", "population": 4},
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: "-".join(map(str, sampler.values())))
def test_a_sampler_asks_the_same_in_any_order_and_after_a_restart(sampler: dict[str, Any]) -> None:
    spec = _spec(sampler=sampler)
    first = _run(spec)
    assert len({str(point) for point in _points(first)}) == 12
    assert _points(_run(spec, shuffle=1)) == _points(first)
    replay = {n: Replay(params=first.asks[n].params, outcome=first.outcomes[n]) for n in range(7)}
    assert _points(_run(spec, replay)) == _points(first)
    assert {trial.state for trial in first.optuna.trials} == {optuna.trial.TrialState.COMPLETE}


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"sampler": "cmaes", "space": {"loss_type": CONDITIONAL["loss_type"]}}, "sampler", "loss_type is categorical"),
        ({"sampler": "gp", "space": CONDITIONAL}, "sampler", "label_smoothing has a when"),
        ({"sampler": "cmaes", "constraints": {"repetition": "<=0.3"}}, "sampler", "cannot be told of constraints"),
        ({"sampler": "cmaes", "objective": ["accuracy", "margin"]}, "sampler", "use tpe or nsga2"),
        ({"sampler": "gp", "objective": ["accuracy", "margin"]}, "sampler", "use tpe or nsga2"),
        ({"sampler": "random", "warm_start": ["swp-1"]}, "warm_start", "use tpe or gp"),
        ({"warm_start": [".."]}, "warm_start.0", "pattern"),
        ({"sampler": "grid"}, "sampler.points", "give space.gamma_beta_ratio.step"),
        ({"objective": ["accuracy", "margin"], "scheduler": "asha"}, "scheduler", "compares trials by one number"),
        ({"objective": ["accuracy", "accuracy"]}, "objective", "twice"),
        ({"objective": ["accuracy", "win_rate"], "judge": None}, "objective.metric", "needs a judge"),
        ({"scheduler": {"type": "pbt", "population": 5}}, "budget.trials", "population * generations = 20"),
        ({"scheduler": {"type": "pbt", "generations": 3}, "sampler": "tpe"}, "sampler", "use random or qmc"),
        ({"scheduler": {"type": "pbt", "generations": 3, "axes": ["beta"]}}, "scheduler.axes", "none is a range"),
        ({"scheduler": {"type": "asha", "control_group": 0.9}}, "scheduler.control_group", "less than or equal to 0.5"),
        ({"space": {"beta": {"type": "float", "low": 1, "high": 2, "step": 0.3}}}, "space.beta.step", "whole steps"),
        ({"space": {"beta": {"type": "int", "low": 1, "high": 4, "step": 2}}}, "space.beta.step", "whole steps"),
        ({"space": {"learning_rate": {**LOG_RATE, "when": {"beta": 2.0}}}}, "space.learning_rate.when", "every trial"),
        ({"space": {"beta": {**LOG_RATE, "when": {"zeta": 1}}}}, "space.beta.when", "no other axis"),
        (
            {"space": {**CONDITIONAL, "label_smoothing": {**LOG_RATE, "when": {"loss_type": "exp"}}}},
            "space.label_smoothing.when",
            "never 'exp'",
        ),
        (
            {"space": {**CONDITIONAL, "label_smoothing": {**LOG_RATE, "when": {"learning_rate": 1e-4}}}},
            "space.label_smoothing.when",
            "must be a categorical axis",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(changes: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        _spec(**changes)
    assert caught.value.faults[0][0] == field
    assert words in caught.value.faults[0][1]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed(_spec(sampler="cmaes"))
    monkeypatch.setattr(samplers, "_NEEDS", {"cmaes": ("no_such_package",)})
    with pytest.raises(ConfigError, match="pip install no_such_package"):
        check_installed(_spec(sampler="cmaes"))
    check_installed(_spec())


def test_a_grid_visits_each_point_once_and_ends_with_the_grid() -> None:
    space = {
        "learning_rate": {"type": "log_float", "low": 1e-5, "high": 1e-3},
        "gamma_beta_ratio": {"type": "float", "low": 0.0, "high": 0.6, "step": 0.3},
        "beta": 2.0,
    }
    spec = _spec(sampler={"type": "grid", "points": 3}, space=space)
    assert plan_budget(spec).trials == 9
    points = _points(_run(spec))
    rates = sorted({point["learning_rate"] for point in points})
    assert rates == pytest.approx([1e-5, 1e-4, 1e-3])
    wanted = itertools.product(rates, [0.0, 0.3, 0.6])
    assert {(p["learning_rate"], p["gamma_beta_ratio"]) for p in points} == set(wanted)
    assert _points(_run(_spec(sampler={"type": "grid", "points": 3}, space=space, seed=1))) != points


def test_a_grid_leaves_out_what_a_condition_rules_out() -> None:
    space = {**CONDITIONAL, "learning_rate": 1e-4, "beta": 2.0, "gamma_beta_ratio": 0.5}
    points = _points(_run(_spec(sampler={"type": "grid", "points": 3}, space=space)))
    assert len(points) == 4
    assert sum("label_smoothing" not in point for point in points) == 1


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "nsga2"])
def test_an_axis_with_a_condition_is_there_only_when_it_holds(sampler: str) -> None:
    spec = _spec(sampler=sampler, space=CONDITIONAL, budget={"trials": 24, "steps": 100})
    points = _points(_run(spec))
    assert {point["loss_type"] for point in points} == {"sigmoid", "hinge"}
    for point in points:
        assert ("label_smoothing" in point) == (point["loss_type"] == "sigmoid")
    assert _points(_run(spec, shuffle=3)) == points


def test_a_sequence_is_more_even_than_chance() -> None:
    def largest_hole(sampler: str) -> float:
        spec = _spec(sampler=sampler, budget={"trials": 64, "steps": 100}, seed=3)
        shares = sorted(float(point["gamma_beta_ratio"]) for point in _points(_run(spec)))
        return max(b - a for a, b in itertools.pairwise([0.0, *shares, 1.0]))

    assert largest_hole("qmc") < 2 / 64 + 1e-9 < largest_hole("random")


def test_steps_are_kept_by_every_sampler() -> None:
    space = {
        "gamma_beta_ratio": {"type": "float", "low": 0.0, "high": 1.0, "step": 0.25},
        "sft_weight": {"type": "int", "low": 0, "high": 9, "step": 3},
    }
    for sampler in ("tpe", "qmc", "random", "cmaes"):
        for point in _points(_run(_spec(sampler=sampler, space=space))):
            assert float(point["gamma_beta_ratio"]) * 4 in range(5)
            assert point["sft_weight"] in (0, 3, 6, 9)


def test_what_is_known_beforehand_needs_no_study() -> None:
    assert planned_point(_spec(sampler="tpe"), 3) == {}
    spec = _spec(sampler="qmc")
    assert planned_point(spec, 5) == {k: v for k, v in _points(_run(spec))[5].items() if k != "beta"}


def test_new_fields_at_their_defaults_change_no_hash() -> None:
    """Of a spec as it was stored before they came: what was prepared for it stays good."""
    dumped = _spec().model_dump(mode="json")
    assert dumped["mode"] == "deterministic"
    assert spec_hash(_spec(mode="asynchronous")) != spec_hash(_spec())
    assert spec_hash(_spec(sampler={"type": "tpe", "candidates": 25})) != spec_hash(_spec())
    assert spec_hash(parse_spec({"name": "x"})) == "af0ef50adbdafcb481cbaed384a77ab34063fdae03ae10b8be99a3c5606d8c83"
