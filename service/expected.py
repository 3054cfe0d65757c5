"""How long a sweep's trials are likely to take, from what those of earlier sweeps like it took. Trains nothing.

Alike are sweeps of the same method, base, data, judge, training, tokens, measuring and parallel work: their steps cost
the same. A trial's rate is its seconds, measurements included, over its steps. low and high are the first and the last
tenth of the rates, times the likely steps and all steps; the estimate is the median, times the likely steps. Preparing
and finals are not in it. For a calibration on a machine: `python -m sweeps plan SPEC --calibrate`.
"""

from statistics import median, quantiles
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.models import COMPARISON, Sweep, Trial
from service.rows import Order
from service.states import State
from sweeps.budget import BudgetPlan, plan_budget
from sweeps.spec import SweepSpec

_ALIKE = ("method", "base_model", "dataset", "judge", "train", "tokens", "evaluation", "parallel")
_NEWEST = 50
"""Earlier sweeps that are looked at."""
_LEAST = 4
"""Fewest trials that an interval is told of."""


def hours_of(session: Session, order: Order) -> dict[str, Any] | None:
    """{wall_clock, accelerator: {estimate, low, high}, sweeps, trials}; None where too few trials are known, and for
    comparisons, whose methods differ."""
    if order.kind == COMPARISON:
        return None
    query = select(Sweep.id, Sweep.plan).where(Sweep.state == State.SUCCEEDED, Sweep.kind.in_(("sweep", "run")))
    known = session.execute(query.order_by(Sweep.id.desc()).limit(_NEWEST))
    alike = [sweep_id for sweep_id, plan in known if all(plan.get(key) == order.plan.get(key) for key in _ALIKE)]
    told = select(Trial.sweep_id, Trial.seconds, Trial.step).where(Trial.sweep_id.in_(alike))
    rows = [row for row in session.execute(told) if row.seconds and row.step]
    if len(rows) < _LEAST:
        return None
    spec = SweepSpec.model_validate(order.plan)
    hours = expected_hours(spec, plan_budget(spec), [row.seconds / row.step for row in rows])
    return {**hours, "sweeps": len({row.sweep_id for row in rows}), "trials": len(rows)}


def expected_hours(spec: SweepSpec, plan: BudgetPlan, rates: list[float]) -> dict[str, dict[str, float]]:
    """rates: seconds a step, of four trials or more."""
    tenths = quantiles(rates, n=10, method="inclusive")
    seconds = {
        "estimate": plan.likely_steps * median(rates),
        "low": plan.likely_steps * tenths[0],
        "high": plan.most_steps * tenths[-1],
    }
    at_once = min(spec.parallel.trials, plan.trials)
    return {
        "wall_clock": {name: each / at_once / 3600 for name, each in seconds.items()},
        "accelerator": {name: each * spec.parallel.workers_per_trial / 3600 for name, each in seconds.items()},
    }
