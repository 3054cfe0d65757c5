"""What a sweep may cost: trials, steps, rungs, wall clock. A plan needs no Ray, no data and no model. Light."""

import time
from dataclasses import dataclass
from math import ceil

from sweeps.search_spec import Asha, Grid, Halving, Median, Pbt
from sweeps.signals import REASONS
from sweeps.spaces import grid_size
from sweeps.spec import SweepSpec
from sweeps.stratum import stratum_size


@dataclass(frozen=True, kw_only=True)
class BudgetPlan:
    """The counts that follow from a spec alone."""

    trials: int
    """Most trials that will start."""
    points: int
    """Of those, the ones that start from the base; the others go on from their checkpoints (halving, pbt)."""
    steps: int
    """Optimiser steps of a trial at full budget."""
    rung_steps: tuple[int, ...]
    """Steps at which a trial is compared with its predecessors, rising, all below `steps`. Population-based training:
    where trials go on as others, the ends of all generations but the last."""
    window: int
    """Trial i is asked when trials 0 to i - window have been told; as long as the sweep where nobody waits."""
    retrainings: int
    """Trainings of finalists under further seeds, after the search and no part of it; all of `steps`."""
    most_steps: int
    """Optimiser steps if nothing is stopped early, retrainings included."""
    likely_steps: int
    """Optimiser steps if the comparisons let the best 1/reduction_factor through from the start, likewise."""
    wall_clock_s: float | None
    """Hard stop of the search, seconds."""
    accelerator_hours: float | None
    """Hard stop of search and retrainings, hours of training processes (`sweeps.hours`)."""

    def as_dict(self) -> dict[str, object]:
        """JSON form, for a dry run."""
        return {**vars(self), "rung_steps": list(self.rung_steps)}


def plan_budget(spec: SweepSpec) -> BudgetPlan:
    """The plan of a valid spec."""
    steps, trials = spec.budget.steps, spec.budget.trials
    rungs: tuple[int, ...] = ()
    points: int | None = None
    most = likely = float(trials * steps)
    scheduler = spec.scheduler
    if isinstance(spec.sampler, Grid):
        trials = min(trials, grid_size(spec.space, spec.sampler.points))
        most = likely = float(trials * steps)
    if isinstance(scheduler, Asha | Median):
        rungs = tuple(round(share * steps) for share in scheduler.rungs)
        ends = [*rungs, steps]
        starts = [0, *rungs]
        alive = _alive(scheduler, len(ends))
        random = stratum_size(trials, spec.random_stratum)
        each = sum(share * (end - start) for share, start, end in zip(alive, starts, ends, strict=True))
        likely = random * steps + (trials - random) * each
    elif isinstance(scheduler, Halving):
        rungs = tuple(round(share * steps) for share in scheduler.rungs)
        most, further = _halved(trials, rungs, steps, scheduler, stratum_size(trials, spec.random_stratum))
        likely, points, trials = most, trials, trials + further
    elif isinstance(scheduler, Pbt):
        rungs = tuple(round(steps * (past + 1) / scheduler.generations) for past in range(scheduler.generations - 1))
        most = likely = float(scheduler.population * steps)
        points = scheduler.population
    retrainings = min(spec.finals.candidates, trials) * (spec.finals.seeds - 1)
    return BudgetPlan(
        trials=trials,
        points=points or trials,
        steps=steps,
        rung_steps=rungs,
        # Twice the trials at once: while one slow trial is held back, the others still find work.
        window=2 * spec.parallel.trials if spec.mode == "deterministic" else trials,
        retrainings=retrainings,
        most_steps=round(min(most, spec.budget.total_steps or most)) + retrainings * steps,
        likely_steps=round(min(likely, spec.budget.total_steps or likely)) + retrainings * steps,
        wall_clock_s=spec.budget.wall_clock_s,
        accelerator_hours=spec.budget.accelerator_hours,
    )


def _halved(points: int, rungs: tuple[int, ...], steps: int, halving: Halving, random: int) -> tuple[float, int]:
    """Optimiser steps of successive halving, and the trials that go on from others."""
    # The control group is the seed's affair, give or take one, and may share members with the random ones: its places
    # are counted as well as its steps.
    competing, further = points - random, 0
    total = float((random + ceil(halving.control_group * points)) * steps)
    for start, end in zip((0, *rungs), (*rungs, steps), strict=True):
        if start and competing:
            competing = max(1, int(competing / halving.reduction_factor))
            further += competing
        total += competing * (end - start)
    return total, further


def measurements(spec: SweepSpec) -> tuple[float, int]:
    """How often trials and retrainings are measured in all: likely, as `likely_steps` are, and at most."""
    plan = plan_budget(spec)
    every = len(plan.rung_steps) + 1
    most = (plan.trials + plan.retrainings) * every
    if not isinstance(spec.scheduler, Asha | Median):
        return most, most
    random = stratum_size(plan.trials, spec.random_stratum)
    each = sum(_alive(spec.scheduler, every))
    return (plan.trials - random) * each + (random + plan.retrainings) * every, most


def _alive(scheduler: Asha | Median, levels: int) -> list[float]:
    """Shares of the trials that are likely to go through each stretch between rungs."""
    through = 2.0 if isinstance(scheduler, Median) else scheduler.reduction_factor
    kept = scheduler.control_group
    return [kept + (1 - kept) * through**-level for level in range(levels)]


class WallClock:
    """Seconds by phase, and the moment after which the search must stop."""

    def __init__(self, limit_s: float | None) -> None:
        self.limit_s = limit_s
        self.hours: float | None = None
        """The limit of accelerator-hours that somebody else watches (`sweeps.limits`)."""
        self.seconds: dict[str, float] = {}
        """By phase; what was spent in a pause counts as `paused` alone."""
        self._began = time.monotonic()
        self._paused_at: float | None = None
        self.ended_by: str | None = None
        """Another limit that was reached: then no time is left, whatever this one says."""
        self.reason = REASONS["late"]
        """Why a trial that it stops has ended."""

    def end(self, limit: str, reason: str) -> None:
        """Leave no time: that limit is reached."""
        self.ended_by, self.reason = limit, reason

    def extend(self, limit_s: float | None, hours: float | None) -> None:
        """Raise limits; None leaves one as it is."""
        self.limit_s = limit_s or self.limit_s
        if hours is not None:
            self.hours, self.ended_by, self.reason = hours, None, REASONS["late"]

    @property
    def deadline(self) -> float | None:
        """Unix seconds, for other processes of the machine; None without a limit."""
        return None if self.left_s() == float("inf") else time.time() + self.left_s()

    def left_s(self) -> float:
        """Seconds left of the limit; infinite without one."""
        if self.ended_by is not None:
            return 0.0
        return float("inf") if self.limit_s is None else self.limit_s - self.spent_s

    @property
    def spent_s(self) -> float:
        """Seconds so far, without those of pauses."""
        return (self._paused_at or time.monotonic()) - self._began - self.paused_s

    @property
    def paused_s(self) -> float:
        """Seconds spent in pauses that are over."""
        return self.seconds.get("paused", 0.0)

    def pause(self) -> None:
        """Let the limit stand still."""
        self._paused_at = self._paused_at or time.monotonic()

    def resume(self) -> None:
        """Let it go on."""
        if self._paused_at is not None:
            self.seconds["paused"] = self.paused_s + time.monotonic() - self._paused_at
            self._paused_at = None

    def enter(self, phase: str) -> "_Phase":
        """A context that adds its duration to `seconds[phase]`."""
        return _Phase(self, phase)


class _Phase:
    def __init__(self, clock: WallClock, name: str) -> None:
        self._clock = clock
        self._name = name

    def __enter__(self) -> None:
        self._began = time.monotonic() - self._clock.paused_s

    def __exit__(self, *exception: object) -> None:
        seconds, spent = self._clock.seconds, time.monotonic() - self._clock.paused_s - self._began
        seconds[self._name] = seconds.get(self._name, 0.0) + spent
