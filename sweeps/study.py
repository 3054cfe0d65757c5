"""The search itself: Optuna asked and told so that suggestions depend on seeds and results alone, never on timing.

No Ray in here. Three rules make the search a pure function of (spec, results):

* Trial i is asked exactly when trials 0 .. i - window are told, and no others: results that arrive earlier wait.
* Trials are told in the order of their numbers, and the sampler is made anew for each ask, seeded with (seed, i).
* A trial's cut-offs are computed when it is asked, from the trials told by then, and travel with it.

So a resumed search that is fed the recorded results asks the same questions again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import TrialState

from simpo.methods import METHODS
from sweeps.budget import BudgetPlan, plan_budget
from sweeps.spaces import Choice, FloatRange, IntRange, LogFloatRange, Range, Scalar
from sweeps.spec import Asha, SweepSpec, Tpe
from sweeps.stratum import in_stratum, stratum_size

State = Literal["COMPLETE", "PRUNED", "FAILED", "INFEASIBLE"]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A trial to run."""

    number: int
    """Its place in the search, from 0."""
    trial_id: str
    """The same over all attempts."""
    params: dict[str, Scalar]
    """learning_rate and hyperparameters, constants included."""
    cutoffs: dict[int, float]
    """Step of a rung -> objective value that must be reached to go on."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    state: State
    """COMPLETE: full budget. PRUNED: stopped early. FAILED: no usable value. INFEASIBLE: broke a constraint."""
    step: int = 0
    """Optimiser steps taken."""
    value: float | None = None
    """The last measured objective."""
    rungs: dict[int, float] = field(default_factory=dict)
    """Step -> objective, at every rung reached."""
    constraints: dict[str, float] = field(default_factory=dict)
    """Probe -> violation at the last measurement, at most 0 when the constraint holds."""
    reason: str = ""
    """Why it ended, for people."""

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Outcome":
        """The inverse of `as_dict`; JSON has made the steps text."""
        known = {key: values[key] for key in Outcome.__dataclass_fields__ if key in values}
        return Outcome(**{**known, "rungs": {int(step): value for step, value in known.get("rungs", {}).items()}})


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a predecessor's journal knows of a trial."""

    params: dict[str, Scalar]
    """Its point, as it was suggested."""
    outcome: Outcome | None = None
    """None: it was running when the attempt died."""


class Study:
    """One search. `ask` and `complete` in any interleaving; `close` at the end."""

    def __init__(self, spec: SweepSpec, replay: Mapping[int, Replay] | None = None) -> None:
        self.spec = spec
        self.plan: BudgetPlan = plan_budget(spec)
        self.asks: dict[int, Ask] = {}
        self.outcomes: dict[int, Outcome] = {}
        self._axes: dict[str, optuna.distributions.BaseDistribution] = {}
        self._constants: dict[str, Scalar] = {}
        for key, axis in sorted(spec.space.items()):  # sorted: the order of a YAML file must not move the search
            if isinstance(axis, FloatRange | LogFloatRange | IntRange | Choice):
                self._axes[key] = _distribution(axis)
            else:
                self._constants[key] = axis
        self._presets: Sequence[Mapping[str, Any]] = METHODS[spec.method].presets if spec.presets == "paper" else ()
        self._replay = dict(replay or {})
        self._sign = 1.0 if spec.objective.goal == "maximize" else -1.0
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna = optuna.create_study(direction=spec.objective.goal, pruner=optuna.pruners.NopPruner())
        self._open: dict[int, optuna.trial.Trial] = {}
        self._told = 0
        self._spent = False

    @property
    def exhausted(self) -> bool:
        """Whether every trial of the budget has been asked."""
        return self._spent or len(self.asks) >= self.plan.trials

    @property
    def finished(self) -> bool:
        """Whether every trial of the budget has ended."""
        return self.exhausted and len(self.outcomes) >= len(self.asks)

    def ask(self) -> Ask | None:
        """The next trial to run; None while earlier results are awaited, or when all have been asked.

        Trials whose outcome a predecessor recorded are asked and completed on the way, unseen.
        """
        while not self.exhausted:
            number = len(self.asks)
            if not self._know(max(0, number - self.plan.window + 1)):
                return None
            while not self._affords(number):  # what runs may end early, and leave steps for this trial
                if self._told == number:
                    self._spent = True
                    return None
                if not self._know(self._told + 1):
                    return None
            ask = self._ask(number)
            recorded = self._replay.get(number)
            if recorded is None or recorded.outcome is None:
                return ask
            self.complete(number, recorded.outcome)
        return None

    def complete(self, number: int, outcome: Outcome) -> None:
        """Note a trial's end. A second end of the same trial is ignored: retries and late reports happen."""
        if number not in self.asks:
            raise KeyError(f"trial {number} was never asked")
        self.outcomes.setdefault(number, _honest(outcome))

    def best(self) -> int | None:
        """The number of the best complete trial; of equals the first. None before there is one."""
        ranked = self.ranked()
        return ranked[0] if ranked else None

    def ranked(self) -> list[int]:
        """Numbers of the complete trials, best first, equals in order of number."""
        complete = [number for number, outcome in self.outcomes.items() if outcome.state == "COMPLETE"]
        return sorted(complete, key=lambda number: (-self._sign * _value(self.outcomes[number]), number))

    def close(self) -> None:
        """Tell Optuna the rest; what never ended is told FAIL, so that no trial stays running for ever."""
        for number in range(self._told, len(self.asks)):
            self.outcomes.setdefault(number, Outcome(state="FAILED", reason="the search was stopped"))
            self._tell(number)

    def _know(self, first: int) -> bool:
        """Tell the sampler of the first so many trials; False while one of them runs."""
        if any(earlier not in self.outcomes for earlier in range(first)):
            return False
        while self._told < first:
            self._tell(self._told)
        return True

    def _affords(self, number: int) -> bool:
        """Whether trial `number` fits into the steps of the whole search if it and all that run go to full budget."""
        total = self.spec.budget.total_steps
        taken = sum(self.outcomes[told].step for told in range(self._told))
        return total is None or taken + (number + 1 - self._told) * self.plan.steps <= total

    def _ask(self, number: int) -> Ask:
        seed = int(np.random.SeedSequence([self.spec.seed, number]).generate_state(1)[0])
        random = in_stratum(number, self.spec.random_stratum)
        if isinstance(self.spec.sampler, Tpe) and not random:
            self.optuna.sampler = optuna.samplers.TPESampler(
                n_startup_trials=self.spec.sampler.startup_trials, multivariate=True, constant_liar=True, seed=seed
            )
        else:
            self.optuna.sampler = optuna.samplers.RandomSampler(seed=seed)
        fixed = self._fixed(number)
        if fixed:
            self.optuna.enqueue_trial(fixed)
        trial = self.optuna.ask(self._axes)
        assert trial.number == number  # asked in order, from this study alone
        self._open[number] = trial
        ask = Ask(
            number=number,
            trial_id=f"trl_{number:04d}",
            params={**self._constants, **trial.params},
            cutoffs={} if random else self._cutoffs(),
        )
        self.asks[number] = ask
        return ask

    def _fixed(self, number: int) -> dict[str, Any]:
        if number in self._replay:  # the sampler would say the same; a newer Optuna might not
            return {key: self._replay[number].params[key] for key in self._axes}
        place = number - stratum_size(number, self.spec.random_stratum)
        if place < len(self._presets) and not in_stratum(number, self.spec.random_stratum):
            # A value outside the space is left to the sampler: the authors' learning rates are for 7B models.
            preset = self._presets[place].items()
            return {key: value for key, value in preset if key in self._axes and _lies_in(self._axes[key], value)}
        return {}

    def _cutoffs(self) -> dict[int, float]:
        """ASHA's rule (Li et al. 2018): the best 1/reduction_factor of the values seen at a rung go on.

        Fewer values than the reduction factor cut nobody: one of them would have to go on whatever its worth.
        """
        if not isinstance(self.spec.scheduler, Asha):
            return {}
        factor = self.spec.scheduler.reduction_factor
        cutoffs = {}
        for step in self.plan.rung_steps:
            told = [self.outcomes[number] for number in range(self._told)]
            seen = [self._sign * outcome.rungs[step] for outcome in told if _counts_at(outcome, step)]
            if len(seen) >= factor:
                cutoffs[step] = self._sign * float(np.quantile(seen, 1 - 1 / factor))
        return cutoffs

    def _tell(self, number: int) -> None:
        """In order of number. Constraints go first, intermediate values too: PRUNED keeps its last one."""
        trial, outcome = self._open.pop(number), self.outcomes[number]
        for probe, violation in outcome.constraints.items():
            trial.set_constraint(probe, violation)
        for step, value in sorted(outcome.rungs.items()):
            trial.report(value, step)
        if outcome.reason:
            trial.set_user_attr("reason", outcome.reason)
        trial.set_user_attr("trial_id", self.asks[number].trial_id)
        if outcome.state == "FAILED":
            self.optuna.tell(trial, state=TrialState.FAIL)
        elif outcome.state == "PRUNED":
            self.optuna.tell(trial, state=TrialState.PRUNED)
        else:
            # Infeasible is complete with a violated constraint: the sampler learns where models collapse.
            self.optuna.tell(trial, _value(outcome), state=TrialState.COMPLETE)
        self._told += 1


def _distribution(axis: Range) -> optuna.distributions.BaseDistribution:
    if isinstance(axis, Choice):
        return optuna.distributions.CategoricalDistribution(axis.choices)
    if isinstance(axis, IntRange):
        return optuna.distributions.IntDistribution(axis.low, axis.high)
    return optuna.distributions.FloatDistribution(axis.low, axis.high, log=isinstance(axis, LogFloatRange))


def _lies_in(axis: optuna.distributions.BaseDistribution, value: Any) -> bool:
    try:
        return bool(axis._contains(axis.to_internal_repr(value)))
    except ValueError:  # no such choice
        return False


def _honest(outcome: Outcome) -> Outcome:
    """An outcome that Optuna can be told: what is missing or not finite makes the trial FAILED, with a reason."""
    numbers = [outcome.value, *outcome.rungs.values(), *outcome.constraints.values()]
    if outcome.state == "FAILED":
        return Outcome(state="FAILED", step=outcome.step, reason=outcome.reason)
    if outcome.value is None and outcome.state == "PRUNED":
        return outcome
    if any(number is None or not math.isfinite(number) for number in numbers):
        return Outcome(state="FAILED", step=outcome.step, reason="a measured value is missing or not finite")
    if outcome.state == "INFEASIBLE" and not any(value > 0 for value in outcome.constraints.values()):
        raise ValueError("an infeasible trial must name a violated constraint")
    return outcome


def _value(outcome: Outcome) -> float:
    assert outcome.value is not None  # settled by _honest
    return outcome.value


def _counts_at(outcome: Outcome, step: int) -> bool:
    """Whether a told trial belongs to a rung's comparison: a broken model's value sets no bar."""
    return outcome.state in ("COMPLETE", "PRUNED") and step in outcome.rungs
