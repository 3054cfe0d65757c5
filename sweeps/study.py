"""The search itself: Optuna asked and told so that suggestions depend on seeds and results alone, never on timing.

No Ray in here. Three rules make the search a pure function of (spec, results), in the mode `deterministic`:

* Trial i is asked exactly when trials 0 .. i - window are told, and no others: results that arrive earlier wait.
* Trials are told in the order of their numbers, and the sampler is made anew for each ask, seeded with (seed, i).
* A trial's cut-offs are computed when it is asked, from the trials told by then, and travel with it.

So a resumed search that is fed the recorded results asks the same questions again. In the mode `asynchronous` nobody
waits: an ask knows what has been completed by then, in the order of completion. Where trials go on from others'
checkpoints (halving, pbt), a generation waits for the whole of the one before.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from statistics import fmean, median
from typing import Any

import numpy as np
import optuna

from simpo.errors import ConfigError
from simpo.methods import METHODS
from sweeps.budget import BudgetPlan, plan_budget
from sweeps.control import AddPoint, Change, ChangeSpace, CloneTrial, Extend, trial_id
from sweeps.edited import edited_spec, most_trials, point_by_hand
from sweeps.generations import Heir, bar, heirs, in_generations
from sweeps.outcome import Ask as Ask
from sweeps.outcome import Lesson as Lesson
from sweeps.outcome import Outcome as Outcome
from sweeps.outcome import Replay as Replay
from sweeps.outcome import State as State
from sweeps.outcome import honest
from sweeps.pareto import fronts
from sweeps.sampled import Sampled, value_of, values_of
from sweeps.samplers import lies_in, optuna_sampler, planned_point, seed_of
from sweeps.search_spec import Asha, Halving, Median, Pbt
from sweeps.spec import SweepSpec
from sweeps.stratum import in_stratum, stratum_size


class Study:
    """One search. `ask` and `complete` in any interleaving; `close` at the end."""

    def __init__(
        self,
        spec: SweepSpec,
        replay: Mapping[int, Replay] | None = None,
        lessons: Sequence[Lesson] = (),
        changes: Iterable[Change] = (),
    ) -> None:
        self.spec = spec
        """What the search goes by: the spec as it was written, with the edits laid over it that took effect."""
        self.edited = spec
        """The same with all accepted edits."""
        self.plan: BudgetPlan = plan_budget(spec)
        self.asks: dict[int, Ask] = {}
        self.outcomes: dict[int, Outcome] = {}
        self._presets: Sequence[Mapping[str, Any]] = METHODS[spec.method].presets if spec.presets == "paper" else ()
        self._replay = dict(replay or {})
        self._sign = spec.objective.sign
        self._sampled = Sampled(spec, lessons)
        self._ended: list[int] = []
        self._told: list[int] = []
        self._heirs: list[list[Heir]] = []  # by generation, from the second
        self._starts = [0, self.plan.points]  # number of the first trial of each generation, and of the next one
        self.lessons = self._sampled.lessons
        self._spent = False
        self._changes: deque[Change] = deque()
        self._by_hand: dict[int, Change] = {}
        for change in changes:
            self.apply(change)

    @property
    def optuna(self) -> optuna.study.Study:
        """What the sampler sees."""
        return self._sampled.optuna

    @property
    def exhausted(self) -> bool:
        """Whether every trial of the budget has been asked, or a whole population is gone."""
        return not self._changes and (self._spent or len(self.asks) >= self.plan.trials)

    @property
    def finished(self) -> bool:
        """Whether every trial of the budget has ended."""
        return self.exhausted and len(self.outcomes) >= len(self.asks)

    def ask(self, *, below: float = math.inf) -> Ask | None:
        """The next trial to run; None while earlier results are awaited, or when all have been asked, or all `below`.

        Trials whose outcome a predecessor recorded are asked and completed on the way, unseen.
        """
        while self._take_effect() and not self.exhausted and len(self.asks) < below:
            number = len(self.asks)
            if not self._know(self._needed(number)):
                return None
            while not self._affords(number):  # what runs may end early, and leave steps for this trial
                if len(self._told) == number:
                    self._spent = True
                    return None
                if not self._know(self._needed(number, more=1)):
                    return None
            if self._extinct(number):
                self._spent = True
                return None
            ask = self._ask(number)
            recorded = self._replay.get(number)
            if recorded is None or recorded.outcome is None:
                return ask
            self.complete(number, recorded.outcome)
        return None

    def admit(self, seq: int, edit: Extend | ChangeSpace | CloneTrial | AddPoint) -> Change:
        """An edit that concerns the search, with the place where it takes effect: behind every trial that any attempt
        has asked. It is not applied yet. Raises ConfigError for what this search cannot do."""
        after = max(len(self.asks), *(number + 1 for number in self._replay), 0)
        told = len(self._told) if after == len(self.asks) and self.spec.mode == "deterministic" else 0
        if isinstance(edit, Extend | ChangeSpace):
            edited_spec(self.edited, edit)
            return Change(seq=seq, edit=edit, after=after, told=told)
        asked = {number: trial.params for number, trial in self._replay.items()}
        asked |= {number: ask.params for number, ask in self.asks.items()}
        params = point_by_hand(self.edited, edit, {trial_id(number): point for number, point in asked.items()})
        number = next(n for n in count(after) if n not in self._by_hand and not self._random(n))
        if self._spent or number >= most_trials(self.edited, len(self._by_hand) + 1):
            raise ConfigError("no trial of the budget is left to take its place: extend it first", "action")
        return Change(seq=seq, edit=edit, after=after, told=told, number=number, params=params)

    def apply(self, change: Change) -> None:
        """Let an admitted edit take effect at its place; a resumed search is given those of the attempts before it."""
        if change.number is not None:
            self._by_hand[change.number] = change
            self._replan()
        else:
            self.edited = edited_spec(self.edited, change.edit)
            self._changes.append(change)

    def complete(self, number: int, outcome: Outcome) -> None:
        """Note a trial's end. A second end of the same trial is ignored: retries and late reports happen."""
        if number not in self.asks:
            raise KeyError(f"trial {number} was never asked")
        if number not in self.outcomes:
            self.outcomes[number] = honest(outcome)
            self._ended.append(number)

    def best(self) -> int | None:
        """The number of the best complete trial; of equals the first. None before there is one."""
        ranked = self.ranked()
        return ranked[0] if ranked else None

    def ranked(self) -> list[int]:
        """Numbers of the complete trials, best first, equals in order of number.

        With several objectives: by front, and within one by the first objective.
        """
        complete = [number for number, outcome in self.outcomes.items() if outcome.state == "COMPLETE"]
        front = self._fronts(complete)
        return sorted(complete, key=lambda n: (front[n], -self._sign * value_of(self.outcomes[n]), n))

    def front(self) -> list[int]:
        """Numbers of the complete trials that no other beats, best first."""
        complete = self.ranked()
        front = self._fronts(complete)
        return [number for number in complete if front[number] == 0]

    def bar(self, ask: Ask) -> float | None:
        """What this trial must beat at the end of its generation if anybody is to go on from it; None: unknown yet."""
        if ask.until is None:
            return None
        generation = self._generation(ask.number)
        first, behind = self._starts[generation : generation + 2]
        earlier = {n: self.outcomes[n] for n in range(first, ask.number) if n in self.outcomes}
        return bar(self.spec, behind - first, [value_of(o) for n, o in earlier.items() if self._reached(n, o)])

    def wanted(self) -> set[int]:
        """Numbers of trials whose checkpoints may still be asked for by a later generation."""
        parents = {heir.parent for member, heir in self._descendants() if member not in self.outcomes}
        last = len(self._starts) - 2  # of which nobody knows yet who goes on
        return {
            number
            for number, ask in self.asks.items()
            if ask.until is not None and (number in parents or self._generation(number) == last)
        }

    def close(self) -> None:
        """Tell Optuna the rest; what never ended is told FAIL, so that no trial stays running for ever."""
        for number in self._sampled.open:
            self.outcomes.setdefault(number, Outcome(state="FAILED", reason="the search was stopped"))
            self._tell(number)

    def _take_effect(self) -> bool:
        """Apply what is due before the next ask; False while a result is awaited that was known when it was decided."""
        while self._changes and self._changes[0].after <= len(self.asks):
            if not self._know(range(self._changes[0].told)):
                return False
            space = self.spec.space
            self.spec = edited_spec(self.spec, self._changes.popleft().edit)
            self._spent = False
            self._replan()
            if self.spec.space != space:
                told = [(self.asks[number], self.outcomes[number]) for number in self._told]
                self._sampled = self._sampled.moved(self.spec, told, self.asks)
        return True

    def _replan(self) -> None:
        self.plan = replace(plan_budget(self.spec), trials=most_trials(self.spec, len(self._by_hand)))

    def _needed(self, number: int, *, more: int = 0) -> Sequence[int]:
        """The trials that must have been told before trial `number` is asked, in order; `more`: further ones."""
        if self.spec.mode == "asynchronous":
            known = len(self._told) + more
            return self._ended if known <= len(self._ended) else range(number)
        first = number - self.plan.window + 1
        if in_generations(self.spec):
            start = self._starts[self._generation(number)]
            # Of its own generation pbt knows nothing: its first points are drawn, the others inherited.
            first = start if start or isinstance(self.spec.scheduler, Pbt) else first
        return range(max(0, first, len(self._told) + more))

    def _know(self, needed: Sequence[int]) -> bool:
        """Tell the sampler of these trials; False while one of them runs."""
        if any(earlier not in self.outcomes for earlier in needed):
            return False
        for earlier in needed[len(self._told) :]:
            self._tell(earlier)
        return True

    def _extinct(self, number: int) -> bool:
        """Whether nobody is left whom trial `number`, the first of a generation, could go on from."""
        if not in_generations(self.spec) or number < self._starts[-1]:
            return False
        generation = len(self._starts) - 2
        if generation == len(self.plan.rung_steps):
            return True  # it was the last
        competing = [n for n in range(*self._starts[-2:]) if self.asks[n].until is not None]
        values = {
            member: value_of(outcome)
            for member in competing
            if self._reached(member, outcome := self.outcomes[member])
        }
        following = heirs(self.spec, generation, {n: self.asks[n].params for n in competing}, values)
        self._heirs.append(following)
        self._starts.append(number + len(following))
        return not following

    def _reached(self, number: int, outcome: Outcome) -> bool:
        """Whether a trial came to the end of its generation, within the constraints."""
        return outcome.state == "PRUNED" and outcome.step == self.asks[number].until

    def _affords(self, number: int) -> bool:
        """Whether trial `number` fits into the steps of the whole search if it and all that run go to full budget."""
        total = self.spec.budget.total_steps
        taken = sum(self.outcomes[told].step for told in self._told)
        return total is None or taken + (number + 1 - len(self._told)) * self.plan.steps <= total

    def _ask(self, number: int) -> Ask:
        random = self._random(number) and not self._generation(number)
        if random:
            sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed_of(self.spec, number))
        else:
            # A seed that the earlier sweeps have not used, or their first points would come again.
            place = number + self.lessons
            sampler = optuna_sampler(self.spec, place, conditional=bool(self._sampled.conditional))
        by_hand = self._by_hand.get(number)
        if by_hand is None:
            params = self._sampled.ask(number, sampler, fixed=self._fixed(number))
        else:
            params = self._sampled.ask(number, sampler, fixed=by_hand.params or {}, whole=True)
        control = self._in_control(number)
        ask = Ask(
            number=number,
            trial_id=trial_id(number),
            params=params,
            cutoffs={} if random or control else self._cutoffs(),
            control=control,
            edit=None if by_hand is None else by_hand.seq,
            **self._descent(number, free=random or control),
        )
        self.asks[number] = ask
        return ask

    def _fixed(self, number: int) -> dict[str, Any]:
        axes = self._sampled.axes
        if number in self._replay:  # the sampler would say the same; a newer Optuna might not
            known = self._replay[number].params
            return {key: known[key] for key in (*axes, *self._sampled.conditional) if key in known}
        if (heir := self._heir(number)) is not None:
            return {key: value for key, value in heir.params.items() if key not in self._sampled.constants}
        if self._random(number):
            return {}
        by_hand = sum(other < number for other in self._by_hand)
        place = number - stratum_size(number, self.spec.random_stratum) - by_hand
        if place < len(self._presets):
            # A value outside the space is left to the sampler: the authors' learning rates are for 7B models.
            preset = self._presets[place].items()
            return {key: value for key, value in preset if key in axes and lies_in(axes[key], value)}
        return planned_point(self.spec, number - by_hand)

    def _random(self, number: int) -> bool:
        return in_stratum(number, self.spec.random_stratum)

    def _heir(self, number: int) -> Heir | None:
        generation = self._generation(number)
        return self._heirs[generation - 1][number - self._starts[generation]] if generation else None

    def _generation(self, number: int) -> int:
        """From 0; that of the next one's first trial where nobody knows yet how many it has."""
        return bisect_right(self._starts, number) - 1 if in_generations(self.spec) else 0

    def _descendants(self) -> Iterator[tuple[int, Heir]]:
        for start, generation in zip(self._starts[1:], self._heirs, strict=False):
            yield from enumerate(generation, start)

    def _descent(self, number: int, *, free: bool) -> dict[str, Any]:
        """The fields of an ask that only generations have."""
        if not in_generations(self.spec) or free:
            return {}
        generation, heir = self._generation(number), self._heir(number)
        ends: tuple[int | None, ...] = (*self.plan.rung_steps, None)
        return {
            "parent": None if heir is None else heir.parent,
            "start": (ends[generation - 1] or 0) if generation else 0,
            "until": ends[generation],
            "peers": len(self._heirs[generation - 1]) if generation else None,
        }

    def _in_control(self, number: int) -> bool:
        """Every 1/control_group-th trial, from a place that the seed chooses."""
        scheduler = self.spec.scheduler
        if not isinstance(scheduler, Asha | Median | Halving) or self._generation(number):
            return False
        share, place = scheduler.control_group, seed_of(self.spec, 2**31) / 2**32
        return math.floor((number + 1) * share + place) > math.floor(number * share + place)

    def _cutoffs(self) -> dict[int, float]:
        """ASHA's rule (Li et al. 2018): the best 1/reduction_factor of the values seen at a rung go on.

        Fewer values than the reduction factor cut nobody: one of them would have to go on whatever its worth.
        Median stopping compares with the median of the others' means over their rungs so far.
        """
        scheduler = self.spec.scheduler
        if not isinstance(scheduler, Asha | Median):
            return {}
        cutoffs = {}
        for step in self.plan.rung_steps:
            told = [outcome for number in self._told if _counts_at(outcome := self.outcomes[number], step)]
            if isinstance(scheduler, Median):
                seen = [fmean(value for at, value in outcome.rungs.items() if at <= step) for outcome in told]
                if len(seen) >= scheduler.startup_trials:
                    cutoffs[step] = median(seen)
                continue
            seen = [self._sign * outcome.rungs[step] for outcome in told]
            if len(seen) >= scheduler.reduction_factor:
                cutoffs[step] = self._sign * float(np.quantile(seen, 1 - 1 / scheduler.reduction_factor))
        return cutoffs

    def _tell(self, number: int) -> None:
        self._sampled.tell(self.asks[number], self.outcomes[number])
        self._told.append(number)

    def _fronts(self, complete: Sequence[int]) -> dict[int, int]:
        """The Pareto front of each, 0 for all where there is one objective."""
        if not self.spec.other_objectives:
            return dict.fromkeys(complete, 0)
        signs = [objective.sign for objective in self.spec.objectives]
        worth = [
            [sign * value for sign, value in zip(signs, values_of(self.spec, self.outcomes[number]), strict=True)]
            for number in complete
        ]
        return dict(zip(complete, fronts(worth), strict=True))


def _counts_at(outcome: Outcome, step: int) -> bool:
    """Whether a told trial belongs to a rung's comparison: a broken model's value sets no bar."""
    return outcome.state in ("COMPLETE", "PRUNED") and step in outcome.rungs
