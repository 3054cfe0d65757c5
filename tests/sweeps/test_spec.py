import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from simpo.config import OptimConfig, TrainConfig
from sweeps.constraints import parse_constraint, violations
from sweeps.faults import SpecError
from sweeps.spec import Optim, RunSpec, SweepSpec, Train, load_spec, parse_spec, spec_hash

pytestmark = pytest.mark.quick


def _range(low: float, high: float, kind: str = "float") -> dict[str, Any]:
    return {"type": kind, "low": low, "high": high}


ENDPOINT = {"type": "openai", "url": "http://127.0.0.1/v1", "model": "m", "max_requests": 900}

REFUSED = [
    # body, field, words of the remedy
    ({"method": "ppo"}, "method", "use one of"),
    ({"speed": 1}, "speed", "use one of name, base_model"),
    ({"dataset": {"train": "practice", "test": "x"}}, "dataset.test", "use one of train, eval"),
    ({"tokens": {"maxlen": 9}}, "tokens.maxlen", "use one of max_length, truncation"),
    ({"tokens": {"truncation": "middle"}}, "tokens.truncation", "must be 'drop', 'reference' or 'trl', not 'middle'"),
    ({"tokens": {"truncation": "reference"}}, "tokens.max_prompt_length", "is required"),
    ({"tokens": {"max_prompt_length": 256}}, "tokens.max_prompt_length", "leave it out"),
    ({"tokens": {"truncation": "reference", "max_prompt_length": 600}}, "tokens.max_prompt_length", "below max_length"),
    ({"tokens": {"system": "drop"}}, "tokens.system", "must be 'keep' or 'empty'"),
    ({"space": {"beta": -1}}, "space.beta", "greater than 0"),
    ({"space": {"beta": _range(-1, 2)}}, "space.beta.low", "greater than 0"),
    ({"space": {"beta": _range(0, 2, "log_float")}}, "space.beta.low", "greater than 0"),
    ({"space": {"beta": _range(3, 2)}}, "space.beta.high", "greater than low"),
    ({"space": {"beta": _range(1, float("inf"))}}, "space.beta.high", "finite"),
    ({"space": {"beta": {"type": "flat"}}}, "space.beta", "type must be one of float"),
    ({"space": {"beta": {"type": "float", "low": 1}}}, "space.beta.high", "required"),
    ({"space": {"beta": {"type": "categorical", "choices": []}}}, "space.beta.choices", "at least one"),
    ({"space": {"beta": {"type": "categorical", "choices": [1, -1]}}}, "space.beta.choices.1", "greater than 0"),
    ({"space": {"gamma": 1}}, "space.gamma", "use gamma_beta_ratio"),
    ({"space": {"gamma": 1, "gamma_beta_ratio": 0.5}}, "space.gamma", "both given"),
    ({"space": {"zeta": 1}}, "space.zeta", "use one of learning_rate, beta"),
    ({"space": {"learning_rate": 0}}, "space.learning_rate", "greater than 0"),
    ({"method": "dpo", "space": {"gamma_beta_ratio": 1}}, "space.gamma_beta_ratio", "use one of learning_rate, beta"),
    ({"space": {"loss_type": "hinge", "label_smoothing": 0.1}}, "space.label_smoothing", "set it to 0"),
    ({"sampler": {"type": "tpe", "startup": 1}}, "sampler.startup", "use one of type, startup_trials"),
    ({"sampler": "bayes"}, "sampler", "'tpe', 'gp', 'cmaes'"),
    ({"scheduler": {"type": "asha", "rungs": [0.5, 0.25]}}, "scheduler.rungs", "rising"),
    ({"scheduler": {"type": "asha", "rungs": [0.001]}}, "scheduler.rungs", "raise budget.steps"),
    ({"objective": "win_rate", "judge": None}, "objective.metric", "set judge: practice"),
    ({"objective": "loss"}, "objective.metric", "'win_rate', 'accuracy' or 'margin'"),
    ({"judge": "gpt"}, "judge", "must be 'practice'"),
    ({"judge": "practice", "dataset": "a.jsonl"}, "judge", "use dataset: practice"),
    ({"constraints": {"kl": "<=1"}}, "constraints.kl", "use one of length_ratio"),
    ({"constraints": {"eos_rate": "1"}}, "constraints.eos_rate", '">=0.5"'),
    ({"constraints": {"eos_rate": "<=1"}, "judge": None, "evaluation": {"rung_prompts": 0}}, "constraints", "above 0"),
    ({"evaluation": {"rung_prompts": 0}}, "evaluation.rung_prompts", "at least 1 with a judge"),
    ({"budget": {"trials": 0}}, "budget.trials", "greater than or equal to 1"),
    ({"budget": {"trials": "many"}}, "budget.trials", "not 'many'"),
    ({"name": "My Sweep"}, "name", "a-z, 0-9 and -"),
    ({"optim": {"warmup_fraction": 0.9, "decay_fraction": 0.2}}, "optim.decay_fraction", "lower one"),
    ({"train": {"batch_pairs": 1}, "parallel": {"workers_per_trial": 2}}, "train.batch_pairs", "workers_per_trial"),
    ({"parallel": {"gpus_per_worker": 0.5, "workers_per_trial": 2}}, "parallel.gpus_per_worker", "whole number"),
    ({"parallel": {"gpus_per_worker": 1.5}}, "parallel.gpus_per_worker", "whole number"),
    ({"train": {"sharding": "full"}}, "train.sharding", "nobody to share with"),
    ({"train": {"sharding": "zero2"}, "parallel": {"workers_per_trial": 2}}, "train.sharding", "'none' or 'full'"),
    ({"dataset": 3}, "dataset", "mapping"),
    ({"finals": {"seeds": 0}}, "finals.seeds", "greater than or equal to 1"),
    ({"finals": {"extra": ["merge"]}}, "finals.extra.0", "must be 'soup' or 'scale'"),
    ({"finals": {"extra": ["soup", "soup"]}}, "finals.extra", "twice"),
    ({"finals": {"extra": ["soup"], "candidates": 1}}, "finals.extra", "raise finals.candidates"),
    ({"finals": {"scales": [1.0]}}, "finals.scales", "none of them 1"),
    ({"finals": {"seeds": 2}, "judge": ENDPOINT, "objective": "accuracy"}, "finals.seeds", "money"),
    ({"finals": {"extra": ["scale"]}, "evaluation": {"rung_prompts": 1}}, "finals.extra", "rung_prompts to 2"),
    (
        {"finals": {"seeds": 2}, "scheduler": "pbt", "budget": {"trials": 16}, "constraints": {}},
        "finals.seeds",
        "line of descent",
    ),
    (
        {"finals": {"extra": ["soup"]}, "train": {"sharding": "full"}, "parallel": {"workers_per_trial": 2}},
        "finals.extra",
        "sharding: none",
    ),
    ({"learning_rate": 1e-4, "method": {"name": "simpo", "beta": -2}}, "method.beta", "greater than 0"),
    ({"learning_rate": 1e-4, "method": {"name": "simpo", "bet": 2}}, "method.bet", "it has beta"),
    (
        {"learning_rate": 1e-4, "method": {"name": "simpo", "gamma": 1, "gamma_beta_ratio": 1}},
        "method.gamma",
        "not both",
    ),
    ({"method": {"name": "simpo"}}, "learning_rate", "required"),
    ({"learning_rate": 1e-4, "trials": 3}, "trials", "use one of name"),
]


@pytest.mark.parametrize(("body", "field", "words"), REFUSED)
def test_refusals_name_the_field_and_the_remedy(body: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({"name": "x", **body})
    assert caught.value.faults[0][0] == field
    assert words in caught.value.faults[0][1]
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({"name": "X", "budget": {"trials": 0}, "seed": -1}, source="a.yaml")
    assert [field for field, _ in caught.value.faults] == ["name", "seed", "budget.trials"]
    assert str(caught.value).startswith("a.yaml: name: ")


def test_defaults_stand_in_the_spec_and_survive_a_round_trip() -> None:
    spec = parse_spec({"name": "x"})
    assert (spec.judge, spec.objective.metric, spec.dataset.train) == ("practice", "win_rate", "practice")
    assert set(spec.space) == {"learning_rate", "beta", "gamma_beta_ratio"}
    again = parse_spec(json.loads(spec.model_dump_json()))
    assert again == spec
    assert spec_hash(again) == spec_hash(spec) != spec_hash(parse_spec({"name": "x", "seed": 1}))


def test_data_of_ones_own_has_no_judge() -> None:
    spec = parse_spec({"name": "x", "dataset": "a.jsonl", "base_model": "org/model"})
    assert (spec.judge, spec.objective.metric) == (None, "accuracy")
    high = spec.model_dump()["space"]["learning_rate"]["high"]
    assert high == 2e-6, "a model of unknown size gets the paper's rates"


def test_a_run_is_the_one_point_sweep() -> None:
    body = {"name": "x", "learning_rate": 1e-4, "method": {"name": "simpo", "beta": 2, "gamma": 1}, "steps": 9}
    sweep = parse_spec(body)
    assert sweep == RunSpec.model_validate(body).to_sweep()
    assert (sweep.budget.trials, sweep.budget.steps, sweep.scheduler.type) == (1, 9, "none")
    assert sweep.space["gamma_beta_ratio"] == 0.5
    assert parse_spec(RunSpec.model_validate(body).model_dump(mode="json")) == sweep


def test_the_spec_has_all_of_simpos_settings_with_the_same_defaults() -> None:
    for ours, theirs, elsewhere in ((Train, TrainConfig, {"steps", "seed"}), (Optim, OptimConfig, {"learning_rate"})):
        fields = {field.name: field.default for field in dataclasses.fields(theirs) if field.name not in elsewhere}
        assert ours().model_dump() == fields


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", "not valid YAML or JSON"),
        ("- a", "a mapping"),
        ("name: x\nspace: {beta: -1}", "space.beta"),
    ],
)
def test_files_fail_with_their_name(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=words) as caught:
        load_spec(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: cannot read"):
        load_spec(tmp_path / "none.yaml")


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("name: x\nspace: {learning_rate: {type: log_float, low: 2e-5, high: 3e-3}, beta: 1e1}")
    assert load_spec(path).space["beta"] == 10.0


def test_the_schema_refuses_unknown_keys_everywhere() -> None:
    for model in (SweepSpec, RunSpec):
        schema = model.model_json_schema()
        assert schema["additionalProperties"] is False
        assert all(d["additionalProperties"] is False for d in schema["$defs"].values() if d["type"] == "object")


def test_constraints_are_at_most_zero_when_they_hold() -> None:
    assert parse_constraint("empty_rate", "<=0.1")(0.1) == 0
    assert parse_constraint("eos_rate", ">=0.5")(0.4) == pytest.approx(0.1)
    assert violations({"eos_rate": ">=0.5", "repetition": "<=1"}, {"eos_rate": 1.0}) == {
        "eos_rate": -0.5,
        "repetition": 1.0,
    }
