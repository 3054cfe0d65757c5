"""A comparison's spec: one ordinary sweep a method, the same but for what is the method's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from sweeps.comparison_command import plan
from sweeps.comparison_spec import PAPER, ComparisonSpec, load_comparison, parse_comparison
from sweeps.faults import SpecError
from sweeps.spec import parse_spec
from sweeps.stratum import in_stratum

pytestmark = pytest.mark.quick


def _spec(**body: Any) -> ComparisonSpec:
    return parse_comparison({"name": "x", **body})


def test_all_methods_get_the_same_but_their_space() -> None:
    spec = _spec()
    sweeps = spec.sweeps()
    assert tuple(sweeps) == PAPER
    own = {"name", "method", "space"}
    bodies = [{k: v for k, v in sweep.model_dump().items() if k not in own} for sweep in sweeps.values()]
    assert all(body == bodies[0] for body in bodies)
    assert set(sweeps["simpo"].space) == {"learning_rate", "beta", "gamma_beta_ratio"}
    assert set(sweeps["sft"].space) == {"learning_rate"}
    assert sweeps["dpo"].objective.metric == "win_rate"
    assert _spec(dataset="org/set").sweeps()["dpo"].objective.metric == "accuracy", "no judge there"
    assert "10 methods, 16 trials each, 120 steps a trial, 8 of the trials random" in plan(spec)


def test_what_is_stored_is_the_same_comparison_and_each_sweep_an_ordinary_one() -> None:
    spec = _spec(methods=["dpo", {"method": "simpo", "space": {"beta": 2.0}}], random_stratum=5)
    assert parse_comparison(json.loads(spec.model_dump_json())) == spec
    for sweep in spec.sweeps().values():
        assert parse_spec(json.loads(sweep.model_dump_json())) == sweep


@pytest.mark.parametrize(("stratum", "drawn"), [(0.5, 8), (0.3, 4), (5, 5), (1, 1), (1.0, 16), (16, 16)])
def test_the_stratum_is_a_share_or_a_count(stratum: float, drawn: int) -> None:
    spec = _spec(random_stratum=stratum)
    sweep = spec.sweeps()["simpo"]
    assert spec.drawn == sum(in_stratum(number, sweep.random_stratum) for number in range(16)) == drawn


def test_axes_and_learning_rates_can_be_set_for_one_or_all() -> None:
    rate = {"type": "log_float", "low": 1e-5, "high": 1e-3}
    contenders = [
        {"method": "simpo", "label": "simpo-no-margin", "space": {"gamma_beta_ratio": 0.0}},
        {"method": "simpo", "space": {"learning_rate": 1e-4}},
    ]
    sweeps = _spec(methods=contenders, learning_rate=rate).sweeps()
    assert sweeps["simpo-no-margin"].space["gamma_beta_ratio"] == 0.0
    assert sweeps["simpo-no-margin"].space["learning_rate"].low == 1e-5  # type: ignore[union-attr]
    assert sweeps["simpo"].space["learning_rate"] == 1e-4
    assert sweeps["simpo-no-margin"].name == "x-simpo-no-margin"


def test_equal_steps_are_given_to_every_sweep() -> None:
    spec = _spec(budget={"rule": "steps", "trials": 60, "steps": 40, "total_steps": 900})
    assert {sweep.budget.total_steps for sweep in spec.sweeps().values()} == {900}
    assert "900 steps each" in plan(spec)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"methods": ["dpo"]}, "methods: .*at least 2"),
        ({"methods": ["dpo", "dpo"]}, "methods: dpo stands twice: give one of them a label"),
        ({"methods": ["dpo", "ppo"]}, "methods.1.method: unknown method 'ppo'"),
        (
            {"methods": ["dpo", {"method": "simpo", "space": {"beta": -1}}]},
            "methods.1.space.beta: must be greater than 0",
        ),
        (
            {"methods": ["dpo", {"method": "simpo", "label": "My own"}]},
            "methods.1.label: as x-My own it must be 1 to 63",
        ),
        ({"budget": {"rule": "steps"}}, "budget.total_steps: is what the rule steps divides"),
        ({"budget": {"total_steps": 900}}, "budget.total_steps: is what the rule steps divides"),
        ({"random_stratum": 0}, "random_stratum: leaves no random trial"),
        ({"random_stratum": 20}, "random_stratum: is more than the 16 trials"),
        ({"budget": {"steps": 2}}, "scheduler.rungs: fall on steps"),
        ({"scheduler": "pbt"}, "pbt"),
        ({"sampler": {"type": "grid", "points": 3}}, "random_stratum: grid lays down every trial's point"),
        ({"objective": {"metric": "accuracy", "goal": "minimize"}}, "objective: .*goal is maximize"),
        ({"trials": 3}, "trials: unknown key"),
        (["dpo"], "a comparison is a mapping"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(body: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse_comparison({"name": "x", **body} if isinstance(body, dict) else body)


def test_a_file_is_read_and_its_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "c.yaml"
    file.write_text("name: x\nmethods: [dpo, simpo]\ndataset: mine.jsonl\nlearning_rate: 2e-5\n")
    spec = load_comparison(file)
    assert spec.dataset.train == str(tmp_path / "mine.jsonl")
    assert spec.learning_rate == 2e-5
    file.write_text("name: [x")
    with pytest.raises(SpecError, match=r"c.yaml: not valid YAML"):
        load_comparison(file)
    with pytest.raises(SpecError, match="check the path"):
        load_comparison(tmp_path / "absent.yaml")
