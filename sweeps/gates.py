"""A gate: named conditions over an evaluation's evidence, and what they say of it. Pure and light.

Each condition bounds one figure, and speaks by the figure's whole interval: PASS when all of it keeps the bound, FAIL
when none of it does, INCONCLUSIVE when the bound lies inside. An evaluation whose controls failed is FAIL, whatever its
figures. The whole: FAIL if anything is FAIL, else INCONCLUSIVE if anything is, else PASS. All conditions must pass, so
the probability of a false PASS is that of a single condition (an intersection-union test; Berger 1982): 2.5 % at 95 %.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from simpo.errors import ConfigError
from sweeps.defaults import PRACTICE
from sweeps.spec import SweepSpec
from sweeps.strict import Strict

State = Literal["PASS", "FAIL", "INCONCLUSIVE"]

FIGURES: Mapping[str, str] = {
    "win_rate": "win rate over the champion (or the base, where nothing is in production)",
    "accuracy_gain": "share of held-out pairs ranked right, above the champion's",
    "capability": "share of the capability set answered right, above the champion's",
    "length_ratio": "tokens of the answers over tokens of the data's chosen answers",
    "repetition": "share of repeated 4-grams",
    "eos_rate": "share of answers that end by themselves",
    "truncation_rate": "share of answers that were cut off",
    "empty_rate": "share of empty answers",
    "chosen_drop": "nats a token by which the data's chosen answers became less likely than under the base",
}
"""What a condition may name (`simpo.evaluation.evidence`), in words."""

BETTER = ("win_rate", "accuracy_gain")
"""A gate needs one of these: the others only say that nothing got worse."""

FROM_ANSWERS = frozenset(FIGURES) - {"accuracy_gain", "chosen_drop"}
"""Figures that more prompts make sharper; the other two rest on the held-out pairs, all of which are scored at once."""

DEFAULT_CONDITIONS: Mapping[str, str] = {
    "win_rate": ">0.5",
    "capability": ">=-0.05",
    "length_ratio": "<=1.5",
    "repetition": "<=0.2",
    "eos_rate": ">=0.8",
    "empty_rate": "<=0.05",
    "chosen_drop": "<=2.0",
}

MOST_PROMPTS = 2000
_RULE = re.compile(r"\s*(<=|>=|<|>)\s*(-?[0-9.eE+-]+)\s*")


class Gate(Strict):
    """`gate:` of a promotion or evaluation. The word default stands for all defaults."""

    conditions: dict[str, str | None] = Field(default_factory=dict)
    """Figure -> rule, e.g. {"win_rate": ">0.52", "length_ratio": "<=1.2"}. What is not named keeps its default; null
    takes a condition out."""
    capability: str | None = "auto"
    """A .jsonl file of prompts with their right answers (`simpo.evaluation.capability`); null for none. auto: the
    practice task's own right answers where the sweep is on it, else none."""
    prompts: Annotated[int, Field(ge=20, le=MOST_PROMPTS)] = 400
    """Prompts answered and judged at first."""
    max_prompts: Annotated[int, Field(ge=20, le=MOST_PROMPTS)] = 1600
    """While the gate is INCONCLUSIVE the prompts are doubled, up to so many; then it holds."""

    @field_validator("conditions")
    @classmethod
    def _known(cls, conditions: dict[str, str | None]) -> dict[str, str | None]:
        for name, rule in conditions.items():
            if name not in FIGURES:
                raise ConfigError(f"unknown figure: use one of {', '.join(FIGURES)}", name)
            if rule is not None:
                parse_rule(name, rule)
        return conditions

    @model_validator(mode="after")
    def _sensible(self) -> "Gate":
        if self.max_prompts < self.prompts:
            raise ConfigError(f"must be at least prompts ({self.prompts})", "max_prompts")
        if not any({**DEFAULT_CONDITIONS, **self.conditions}.get(name) for name in BETTER):
            raise ConfigError("must hold win_rate or accuracy_gain: the others only say that nothing got worse")
        return self


def gate_for(gate: Gate, sweep: SweepSpec) -> Gate:
    """The gate with every condition written out, as it will be applied to checkpoints of this sweep.

    Raises ConfigError: a condition that cannot be measured on this sweep; the message says how to go on.
    """
    capability = gate.capability
    if capability == "auto":
        capability = PRACTICE if sweep.dataset.train == PRACTICE else None
    if capability == PRACTICE and sweep.dataset.train != PRACTICE:
        raise ConfigError("practice checks only the practice task: name a .jsonl file, or null", "capability")
    if capability is None and gate.conditions.get("capability"):
        raise ConfigError("needs a capability set: name its file in gate.capability", "conditions.capability")
    rules: dict[str, str | None] = {**DEFAULT_CONDITIONS, **gate.conditions}
    if capability is None:
        rules.pop("capability", None)
    if rules.get("win_rate") and sweep.judge is None:
        raise ConfigError(
            "cannot be measured, because the sweep has no judge: give it one, or gate on what ranks pairs: "
            '{"win_rate": null, "accuracy_gain": ">0"}',
            "conditions.win_rate",
        )
    # null stays in place: read again, this gate must not take the defaults once more.
    written = {name: rules.get(name) for name in FIGURES}
    if rules.get("capability") is None:
        capability = None
    return gate.model_copy(update={"conditions": written, "capability": capability})


def parse_rule(name: str, rule: str) -> tuple[str, float]:
    """(comparison, bound) of e.g. ">0.5". Raises ConfigError."""
    match = _RULE.fullmatch(rule)
    try:
        bound = float(match[2]) if match else float("nan")
    except ValueError:
        bound = float("nan")
    if match is None or not abs(bound) < float("inf"):
        raise ConfigError(f'must look like ">0.5" or "<=1.2", not {rule!r}', name)
    return match[1], bound


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One condition."""

    name: str
    rule: str
    state: State
    figure: dict[str, Any] | None
    """Estimate, interval and counts; None where it was not measured."""
    message: str
    """One sentence."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a gate says of an evaluation."""

    state: State
    outcomes: tuple[Outcome, ...]
    reasons: tuple[str, ...]
    """Why it is not PASS; empty when it is."""

    @property
    def more_prompts_may_help(self) -> bool:
        """INCONCLUSIVE, and something that is open was measured on answers."""
        open_ones = (o for o in self.outcomes if o.state == "INCONCLUSIVE" and o.figure is not None)
        return self.state == "INCONCLUSIVE" and any(o.name in FROM_ANSWERS for o in open_ones)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        outcomes = [outcome.as_dict() for outcome in self.outcomes]
        return {"state": self.state, "reasons": list(self.reasons), "conditions": outcomes}


def decide(conditions: Mapping[str, str | None], evidence: Mapping[str, Any]) -> Decision:
    """Apply written-out conditions (`gate_for`) to the evidence of an evaluation (`evidence_of`)."""
    figures = evidence.get("figures") or {}
    outcomes = tuple(_outcome(name, rule, figures.get(name)) for name, rule in conditions.items() if rule is not None)
    invalid = [f"the evaluation is INVALID: {reason}" for reason in evidence.get("reasons") or ()]
    if evidence.get("state") != "VALID" and not invalid:
        invalid = ["the evaluation is INVALID"]
    states = {outcome.state for outcome in outcomes}
    state: State = "FAIL" if invalid or "FAIL" in states else "INCONCLUSIVE" if "INCONCLUSIVE" in states else "PASS"
    reasons = [*invalid, *(o.message for o in outcomes if o.state == "FAIL")]
    reasons += [o.message for o in outcomes if o.state == "INCONCLUSIVE"]
    return Decision(state=state, outcomes=outcomes, reasons=tuple(reasons))


def _outcome(name: str, rule: str, figure: Mapping[str, Any] | None) -> Outcome:
    comparison, bound = parse_rule(name, rule)
    if figure is None:
        message = f"{name} was not measured: {FIGURES[name]}"
        return Outcome(name=name, rule=rule, state="INCONCLUSIVE", figure=None, message=message)
    low, high = float(figure["low"]), float(figure["high"])
    keeps = {
        ">": (low > bound, high > bound),
        ">=": (low >= bound, high >= bound),
        "<": (high < bound, low < bound),
        "<=": (high <= bound, low <= bound),
    }
    all_of_it, some_of_it = keeps[comparison]
    state: State = "PASS" if all_of_it else "INCONCLUSIVE" if some_of_it else "FAIL"
    seen = f"{figure['estimate']:.3f} [{low:.3f}, {high:.3f}] (n={figure['n']})"
    words = {"PASS": "keeps", "FAIL": "breaks", "INCONCLUSIVE": "leaves open"}[state]
    return Outcome(
        name=name, rule=rule, state=state, figure=dict(figure), message=f"{name} {seen} {words} {rule}: {FIGURES[name]}"
    )
