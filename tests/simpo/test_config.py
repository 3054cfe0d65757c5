"""Configuration refuses by name what it cannot honour."""

import dataclasses
import inspect
import pickle
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from simpo import errors
from simpo.config import OptimConfig, TokenPolicy, TrainConfig
from simpo.methods import DPO, METHODS, SimPO, hyperparameters, method_from_dict, method_to_dict
from simpo.objectives import OBJECTIVES

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("build", "field", "words"),
    [
        (lambda: SimPO(beta=-1.0), "beta", "greater than 0"),
        (lambda: SimPO(beta=float("nan")), "beta", "finite"),
        (lambda: SimPO(gamma=1.0, gamma_beta_ratio=0.5), "gamma", "not both"),
        (lambda: SimPO(gamma=-1.0), "gamma", "negative"),
        (lambda: SimPO(label_smoothing=0.6), "label_smoothing", "[0, 0.5]"),
        (lambda: SimPO(loss_type="hinge", label_smoothing=0.1), "label_smoothing", "hinge"),
        (lambda: DPO(beta=0), "beta", "greater than 0"),
        (lambda: OptimConfig(learning_rate=0.0), "learning_rate", "greater than 0"),
        (lambda: OptimConfig(learning_rate=1e-6, warmup_fraction=0.9), "decay_fraction", "exceed 1"),
        (lambda: TrainConfig(steps=0), "steps", "at least 1"),
        (lambda: TrainConfig(steps=1, batch_pairs=True), "batch_pairs", "whole number"),
        (lambda: TokenPolicy(max_length=2), "max_length", "at least 8"),
        (lambda: TokenPolicy(truncation="middle"), "truncation", "drop, reference, trl"),
        (lambda: TokenPolicy(truncation="reference"), "max_prompt_length", "is required"),
        (lambda: TokenPolicy(truncation="reference", max_prompt_length=1024), "max_prompt_length", "below max_length"),
        (lambda: TokenPolicy(truncation="reference", max_prompt_length=1), "max_prompt_length", "at least 2"),
        (lambda: TokenPolicy(truncation="trl", max_prompt_length=512), "max_prompt_length", "leave it out"),
        (lambda: TokenPolicy(system="maybe"), "system", "keep, empty"),
        (lambda: TokenPolicy(count_assistant_header="no"), "count_assistant_header", "true or false"),
        (lambda: TokenPolicy(chat_template=" "), "chat_template", "Jinja"),
        (lambda: method_from_dict({"name": "simp0"}), "method.name", "rdpo, rrhf, sft, simpo"),
        (lambda: method_from_dict({"name": "dpo", "gamma": 1.0}), "method.gamma", "no hyperparameter"),
    ],
)
def test_a_bad_value_is_refused_with_its_field_and_the_remedy(build: Any, field: str, words: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        build()
    assert caught.value.field == field
    assert words in str(caught.value)


def test_gamma_is_an_alias_of_the_ratio() -> None:
    assert SimPO(beta=2.5, gamma=1.375) == SimPO(beta=2.5, gamma_beta_ratio=0.55)
    assert SimPO(beta=2.0).margin == 1.0


def test_methods_round_trip_as_plain_values() -> None:
    for method in (SimPO(beta=10.0, gamma=3.0), *(cls() for cls in METHODS.values())):
        assert method_from_dict(method_to_dict(method)) == method


def test_an_unknown_key_is_refused_when_nested_in_a_pydantic_model() -> None:
    with pytest.raises(ValidationError, match="bta"):
        TypeAdapter(SimPO).validate_python({"bta": 2.0})


def test_every_method_has_a_search_space_over_its_own_fields_and_presets_inside_it() -> None:
    assert set(OBJECTIVES) == set(METHODS)
    for name, cls in METHODS.items():
        assert OBJECTIVES[name].config is cls
        assert OBJECTIVES[name].needs_reference == cls.needs_reference
        assert set(cls.space) <= {"learning_rate", *hyperparameters(cls)}
        for preset in cls.presets:
            for key, value in preset.items():
                assert cls.space[key]["low"] <= value <= cls.space[key]["high"], (name, key, value)


def test_configs_are_frozen_keyword_only_and_every_field_has_prose() -> None:
    for cls in (*METHODS.values(), OptimConfig, TrainConfig, TokenPolicy):
        assert all(field.kw_only for field in dataclasses.fields(cls))
        with pytest.raises(dataclasses.FrozenInstanceError):
            object.__new__(cls).seed = 1
        source = inspect.getsource(cls)
        assert source.count('    """') >= len(dataclasses.fields(cls)) + 1


def test_errors_survive_pickling() -> None:
    for error in (
        errors.ConfigError("must be positive", "beta"),
        errors.DataError("not JSON", "x.jsonl", 3),
        errors.NonFiniteStep(7, "the loss"),
        errors.CheckpointError("damaged"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.__dict__ == error.__dict__
