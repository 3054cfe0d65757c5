"""Gates: what an interval says of a bound, what the whole says, and gates that are refused by name."""

from typing import Any

import pytest
from pydantic import ValidationError

from simpo.errors import ConfigError
from sweeps.faults import faults_of
from sweeps.gates import DEFAULT_CONDITIONS, FIGURES, Gate, decide, gate_for
from sweeps.spec import SweepSpec

pytestmark = pytest.mark.quick

JUDGED = SweepSpec.model_validate({"name": "a"})
UNJUDGED = SweepSpec.model_validate({"name": "a", "dataset": "/data/x.jsonl"})


def figure(low: float, high: float, n: int = 100) -> dict[str, Any]:
    return {"estimate": (low + high) / 2, "low": low, "high": high, "n": n, "missing": 0}


def evidence(state: str = "VALID", reasons: tuple[str, ...] = (), **figures: Any) -> dict[str, Any]:
    return {"state": state, "reasons": list(reasons), "figures": figures}


@pytest.mark.parametrize(
    ("rule", "low", "high", "state"),
    [
        (">0.5", 0.51, 0.6, "PASS"),
        (">0.5", 0.5, 0.6, "INCONCLUSIVE"),
        (">=0.5", 0.5, 0.6, "PASS"),
        (">0.5", 0.4, 0.5, "FAIL"),
        (">=0.5", 0.4, 0.5, "INCONCLUSIVE"),
        ("<=1.5", 1.0, 1.5, "PASS"),
        ("<1.5", 1.0, 1.5, "INCONCLUSIVE"),
        ("<=1.5", 1.6, 2.0, "FAIL"),
        (" >= -0.05 ", -0.04, 0.1, "PASS"),
    ],
)
def test_an_interval_passes_fails_or_leaves_open(rule: str, low: float, high: float, state: str) -> None:
    decision = decide({"win_rate": rule, "empty_rate": None}, evidence(win_rate=figure(low, high)))
    assert decision.state == state
    (outcome,) = decision.outcomes
    assert outcome.state == state and rule in outcome.message and f"{low:.3f}" in outcome.message
    assert decision.reasons == (() if state == "PASS" else (outcome.message,))


def test_the_whole_is_the_worst_of_its_parts() -> None:
    rules = {"win_rate": ">0.5", "length_ratio": "<=1.5"}
    good, bad, open_ = figure(0.6, 0.7), figure(2.0, 3.0), figure(1.4, 1.6)
    assert decide(rules, evidence(win_rate=good, length_ratio=figure(0.9, 1.0))).state == "PASS"
    assert decide(rules, evidence(win_rate=good, length_ratio=open_)).state == "INCONCLUSIVE"
    worst = decide(rules, evidence(win_rate=figure(0.4, 0.6), length_ratio=bad))
    assert worst.state == "FAIL" and worst.reasons[0].startswith("length_ratio")
    assert worst.as_dict()["conditions"][0]["state"] == "INCONCLUSIVE"


def test_an_invalid_evaluation_fails_whatever_its_figures() -> None:
    told = evidence("INVALID", ("control padded: expected ...",), win_rate=figure(0.9, 0.95))
    decision = decide({"win_rate": ">0.5"}, told)
    assert decision.state == "FAIL" and decision.outcomes[0].state == "PASS"
    assert decision.reasons == ("the evaluation is INVALID: control padded: expected ...",)
    assert decide({"win_rate": ">0.5"}, {"figures": {"win_rate": figure(0.9, 0.95)}}).state == "FAIL", "says nothing"


def test_what_was_not_measured_is_open_and_more_prompts_do_not_help() -> None:
    missing = decide({"win_rate": ">0.5", "capability": ">=0"}, evidence(win_rate=figure(0.6, 0.7)))
    assert missing.state == "INCONCLUSIVE" and not missing.more_prompts_may_help
    assert "capability was not measured" in missing.reasons[0]
    assert decide({"win_rate": ">0.5"}, evidence(win_rate=figure(0.4, 0.7))).more_prompts_may_help
    assert not decide({"chosen_drop": "<=1"}, evidence(chosen_drop=figure(0.9, 1.1))).more_prompts_may_help


def test_a_written_out_gate_says_everything_and_stays_as_it_is() -> None:
    gate = gate_for(Gate(conditions={"repetition": None, "length_ratio": "<=1.2"}), JUDGED)
    assert gate.capability == "practice" and set(gate.conditions) == set(FIGURES)
    kept = {name: rule for name, rule in gate.conditions.items() if rule}
    assert kept == {k: v for k, v in DEFAULT_CONDITIONS.items() if k != "repetition"} | {"length_ratio": "<=1.2"}
    assert gate_for(Gate.model_validate(gate.model_dump()), JUDGED) == gate
    unjudged = gate_for(Gate(conditions={"win_rate": None, "accuracy_gain": ">0"}), UNJUDGED)
    assert unjudged.capability is None and unjudged.conditions["capability"] is None


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"conditions": {"winrate": ">0.5"}}, "conditions.winrate", "unknown figure"),
        ({"conditions": {"win_rate": "0.5"}}, "conditions.win_rate", "must look like"),
        ({"conditions": {"win_rate": ">nan"}}, "conditions.win_rate", "must look like"),
        ({"conditions": {"win_rate": None}}, "", "win_rate or accuracy_gain"),
        ({"prompts": 800, "max_prompts": 400}, "max_prompts", "at least prompts"),
        ({"max_prompt": 1}, "max_prompt", "unknown key"),
        ({"prompts": 5}, "prompts", "greater than or equal to 20"),
    ],
)
def test_a_gate_is_refused_by_name(body: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Gate.model_validate(body)
    ((where, message),) = faults_of(caught.value)
    assert where == field and words in message


@pytest.mark.parametrize(
    ("gate", "sweep", "field"),
    [
        (Gate(), UNJUDGED, "conditions.win_rate"),
        (Gate(capability="practice"), UNJUDGED, "capability"),
        (Gate(capability=None, conditions={"capability": ">=0"}), JUDGED, "conditions.capability"),
    ],
)
def test_a_gate_that_cannot_be_measured_is_refused(gate: Gate, sweep: SweepSpec, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        gate_for(gate, sweep)
    assert caught.value.field == field
