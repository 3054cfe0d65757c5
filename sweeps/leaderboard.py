"""The order of a sweep's trials, with intervals and stated ties. Pure functions of ended trials."""

from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.ledger import Ended
from sweeps.pareto import fronts
from sweeps.search_spec import Objective

_GROUPS = {"COMPLETE": 0, "PRUNED": 1, "INFEASIBLE": 2, "FAILED": 3}


def leaderboard(
    trials: Sequence[Ended],
    objective: Objective,
    judged: Mapping[str, dict[str, Any]] | None = None,
    others: Sequence[Objective] = (),
    contested: Mapping[str, dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """One row a trial: complete ones by value, then stopped ones by how far and how well they got, then the others.

    `tied_with_best`: the best trial's value lies inside this trial's own 95 % interval, so the data of the rungs do not
    tell them apart. `judged`: by trial id, how a pairwise judge has compared the finalists: estimate, interval, number
    judged, whom it is tied with (`simpo.evaluation.adaptive.Standing`); None for the other trials. `others`: further
    objectives; complete trials then stand by Pareto front, and within one by the first objective. Each row has its
    `front` (0: beaten by nobody) and its `others`. `contested`: by trial id, how the finalists stand over several
    training seeds (`sweeps.contest`); each row then has its `finals`, None for who was no finalist.
    """
    sign = objective.sign
    front = _fronts(trials, objective, others)

    def place(trial: Ended) -> tuple[float, ...]:
        value = trial.outcome.value
        worth = float("inf") if value is None else -sign * value
        reached = 0 if trial.outcome.state == "COMPLETE" else -trial.outcome.step
        number = trial.ask.number
        return (_GROUPS[trial.outcome.state], reached, front.get(number, 0), worth, number)

    ranked = sorted(trials, key=place)
    best = ranked[0].outcome.value if ranked and ranked[0].outcome.state == "COMPLETE" else None
    return [
        {
            **_row(rank, trial, best),
            "judged": (judged or {}).get(trial.ask.trial_id),
            **({"front": front.get(trial.ask.number), "others": trial.outcome.others} if others else {}),
            **({} if contested is None else {"finals": contested.get(trial.ask.trial_id)}),
        }
        for rank, trial in enumerate(ranked, 1)
    ]


def _fronts(trials: Sequence[Ended], objective: Objective, others: Sequence[Objective]) -> dict[int, int]:
    """Front of each complete trial by number; empty with one objective."""
    complete = [trial for trial in trials if others and trial.outcome.state == "COMPLETE"]
    points = [
        [objective.sign * (trial.outcome.value or 0.0), *(o.sign * trial.outcome.others[o.metric] for o in others)]
        for trial in complete
    ]
    return {trial.ask.number: front for trial, front in zip(complete, fronts(points), strict=True)}


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
