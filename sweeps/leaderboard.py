"""The order of a sweep's trials, with intervals and stated ties. Pure functions of ended trials."""

from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.ledger import Ended
from sweeps.search_spec import Objective

_GROUPS = {"COMPLETE": 0, "PRUNED": 1, "INFEASIBLE": 2, "FAILED": 3}


def leaderboard(
    trials: Sequence[Ended], objective: Objective, judged: Mapping[str, dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """One row a trial: complete ones by value, then stopped ones by how far and how well they got, then the others.

    `tied_with_best`: the best trial's value lies inside this trial's own 95 % interval, so the data of the rungs do not
    tell them apart. `judged`: by trial id, how a pairwise judge has compared the finalists: estimate, interval, number
    judged, whom it is tied with (`simpo.evaluation.adaptive.Standing`); None for the other trials.
    """
    sign = 1.0 if objective.goal == "maximize" else -1.0

    def place(trial: Ended) -> tuple[float, ...]:
        value = trial.outcome.value
        worth = float("inf") if value is None else -sign * value
        reached = 0 if trial.outcome.state == "COMPLETE" else -trial.outcome.step
        return (_GROUPS[trial.outcome.state], reached, worth, trial.ask.number)

    ranked = sorted(trials, key=place)
    best = ranked[0].outcome.value if ranked and ranked[0].outcome.state == "COMPLETE" else None
    return [
        {**_row(rank, trial, best), "judged": (judged or {}).get(trial.ask.trial_id)}
        for rank, trial in enumerate(ranked, 1)
    ]


def _row(rank: int, trial: Ended, best: float | None) -> dict[str, Any]:
    outcome, interval = trial.outcome, trial.interval
    complete = outcome.state == "COMPLETE"
    return {
        "rank": rank,
        "trial_id": trial.ask.trial_id,
        "number": trial.ask.number,
        "state": outcome.state,
        "params": trial.ask.params,
        "value": outcome.value,
        "low": None if interval is None else interval[0],
        "high": None if interval is None else interval[1],
        "tied_with_best": complete and best is not None and interval is not None and interval[0] <= best <= interval[1],
        "step": outcome.step,
        "metrics": trial.metrics,
        "reason": outcome.reason,
        "seconds": trial.seconds,
        "checkpoint": trial.checkpoint,
    }
