"""The choice among finalists over several training seeds, and among what their weights can be mixed to.

A contender is a finalist, a soup of the finalists, or a point on the line from the base through the best finalist. All
are measured alike: on the rung prompts, with fresh sampling seeds where answers are sampled, one model a training seed
(a soup of seed r is made of the finalists of seed r). The figure is the mean over seeds and items, its interval knows
the spread of both (`simpo.evaluation.crossed`), and two contenders are tied where the interval of their difference,
paired by seed and by item, holds 0. The best mean wins, of equals the first; what breaks a constraint under fresh
sampling, or fails under another seed, stands behind all others. The winner's weights are those of the first seed, the
search's own: no seed is picked for its luck.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from simpo.errors import DataError
from simpo.evaluation.crossed import FORMULA, crossed_interval
from simpo.evaluation.intervals import Estimate
from sweeps.constraints import violations
from sweeps.ledger import Ended
from sweeps.mixtures import Mixtures
from sweeps.retrainings import Retrained
from sweeps.spec import SweepSpec

Note = Callable[[str, dict[str, Any]], None]
"""(message, data) of one evaluation."""

Measure = Callable[[str], "Seen"]
"""From a checkpoint's place to what was seen of it."""

RULE = "best mean over training seeds; of equals the first; deployed weights: the search's own seed"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One model on the rungs' data."""

    items: Sequence[float | None]
    """The objective by pair or prompt; None where a judgement failed."""
    metrics: Mapping[str, float]
    """Probes among them, where text was generated."""


@dataclass(kw_only=True)
class Contender:
    """Something that may win."""

    name: str
    """The finalist's trial id, soup, or scale-<s>."""
    ended: Ended
    """The finalist that it is, or that it was made from first of all."""
    places: dict[int, str]
    """Replicate -> checkpoint."""
    faults: list[str] = field(default_factory=list)
    """Why it stands behind those without."""
    recipe: dict[str, Any] | None = None
    """How it was made; None for a finalist."""
    seen: dict[int, Seen] = field(default_factory=dict)
    """By replicate."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A contender's row."""

    name: str
    trial_id: str
    estimate: Estimate
    by_seed: list[float]
    tied_with: list[str]
    faults: list[str]
    recipe: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), **self.estimate.as_dict()}


@dataclass(frozen=True, kw_only=True)
class Contest:
    """How it went, as it stands in result.json under `finals`."""

    metric: str
    rows: tuple[Standing, ...]
    """Best first; the first one has won."""
    replicates: list[int]
    """Training seeds that all of them were measured with; 0 is the search's own."""
    wanted: int
    """Training seeds that the spec asks for."""
    winner: Ended
    """With the checkpoint that has won."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "metric": self.metric,
            "winner": self.rows[0].name,
            "seeds": len(self.replicates),
            "seeds_wanted": self.wanted,
            "interval": FORMULA,
            "rule": RULE,
            "rows": [row.as_dict() for row in self.rows],
        }

    def made(self) -> dict[str, Any]:
        """What `best` says of a winner that no trial has trained: candidate and recipe; nothing of a finalist."""
        first = self.rows[0]
        return {} if first.recipe is None else {"candidate": first.name, "recipe": first.recipe}

    def by_trial(self) -> dict[str, dict[str, Any]]:
        """The finalists' rows, by trial id."""
        return {row.trial_id: row.as_dict() for row in self.rows if row.recipe is None}


def hold_contest(
    spec: SweepSpec,
    root: Path,
    finalists: Sequence[Ended],
    retrained: Mapping[int, Sequence[Retrained]],
    measure: Measure,
    mixtures: Mixtures,
    note: Note,
) -> Contest:
    """Measure everybody and choose. root: of the run directory. retrained: by the finalist's number."""
    finals = [_finalist(root, finalist, retrained.get(finalist.ask.number, ())) for finalist in finalists]
    sound = [contender for contender in finals if not contender.faults] or finals
    common = [r for r in range(spec.finals.seeds) if all(r in contender.places for contender in sound)]
    for contender in finals:
        _look(spec, contender, common, measure, note)
    best = next(each for each in _ranked(spec, finals) if all(r in each.places for r in common))
    everybody = list(finals)
    for name, recipe, places in mixtures.made(finals, best, common):
        contender = Contender(name=name, ended=best.ended, places=places, recipe=recipe)
        _look(spec, contender, common, measure, note)
        everybody.append(contender)
    ranked = _ranked(spec, everybody)
    first = ranked[0]
    rows = tuple(_standing(spec, contender, ranked) for contender in ranked)
    mixtures.clear(keep=None if first.recipe is None else first.places[0])
    return Contest(
        metric=spec.objective.metric,
        rows=rows,
        replicates=common,
        wanted=spec.finals.seeds,
        winner=_crowned(root, first, rows[0].estimate.estimate),
    )


def _finalist(root: Path, ended: Ended, retrained: Sequence[Retrained]) -> Contender:
    places = {0: str(root / str(ended.checkpoint))}
    faults = []
    for each in retrained:
        if each.checkpoint is not None:
            places[each.replicate] = str(root / each.checkpoint)
        elif each.outcome.state != "PRUNED":
            faults.append(f"seed {each.replicate + 1} is {each.outcome.state}: {each.outcome.reason}")
    return Contender(name=ended.ask.trial_id, ended=ended, places=places, faults=faults)


def _look(spec: SweepSpec, contender: Contender, replicates: Sequence[int], measure: Measure, note: Note) -> None:
    """Measure a contender under each seed that it has, and say so."""
    for replicate in replicates:
        if replicate in contender.places:
            contender.seen[replicate] = measure(contender.places[replicate])
    each = [seen.metrics for seen in contender.seen.values()]
    mean = {key: fmean(metrics[key] for metrics in each) for key in each[0]}
    for probe, violation in violations(spec.constraints, mean).items() if spec.constraints else ():
        if violation > 0:
            contender.faults.append(f"{probe} is {mean[probe]:.3g}, wanted {spec.constraints[probe]}")
    value = _mean(contender, _kept([contender]))
    data = {
        "what": "finalist" if contender.recipe is None else "mixture",
        "name": contender.name,
        "trial_id": contender.ended.ask.trial_id,
        "metrics": mean,
        "value": value,
        "seeds": len(contender.seen),
        "faults": contender.faults,
    }
    note(f"{contender.name}: {spec.objective.metric} {value:.4f} over {len(contender.seen)} training seeds", data)


def _ranked(spec: SweepSpec, contenders: Sequence[Contender]) -> list[Contender]:
    """Best first. A finalist that lacks a seed has faults, and stands behind whatever its mean."""
    kept = _kept(contenders)
    return sorted(contenders, key=lambda each: (bool(each.faults), -spec.objective.sign * _mean(each, kept)))


def _kept(contenders: Sequence[Contender]) -> list[int]:
    """Items of which every model has a value: a judgement that failed for one counts for nobody."""
    rows = [seen.items for contender in contenders for seen in contender.seen.values()]
    kept = [place for place, column in enumerate(zip(*rows, strict=True)) if None not in column]
    if not kept:
        raise DataError("the judge gave no prompt a score for every candidate: look at the judge")
    return kept


def _table(contender: Contender, kept: Sequence[int]) -> list[list[float]]:
    """Values by seed and kept item."""
    return [[float(seen.items[place] or 0.0) for place in kept] for _, seen in sorted(contender.seen.items())]


def _mean(contender: Contender, kept: Sequence[int]) -> float:
    return fmean(itertools.chain.from_iterable(_table(contender, kept)))


def _standing(spec: SweepSpec, contender: Contender, everybody: Sequence[Contender]) -> Standing:
    kept = _kept(everybody)
    mine = _table(contender, kept)
    estimate = crossed_interval(mine)
    if spec.objective.metric != "margin":  # shares: Student's t does not know where they end
        estimate = replace(estimate, low=max(0.0, estimate.low), high=min(1.0, estimate.high))
    missing = len(next(iter(contender.seen.values())).items) - len(kept)
    tied = [other.name for other in everybody if other is not contender and _tied(contender, other, kept)]
    return Standing(
        name=contender.name,
        trial_id=contender.ended.ask.trial_id,
        estimate=replace(estimate, missing=missing),
        by_seed=[fmean(row) for row in mine],
        tied_with=tied,
        faults=contender.faults,
        recipe=contender.recipe,
    )


def _tied(one: Contender, other: Contender, kept: Sequence[int]) -> bool:
    """Whether the difference may be nothing, over the seeds that both have."""
    both = sorted(one.seen.keys() & other.seen.keys())
    rows = [[float(one.seen[r].items[i] or 0.0) - float(other.seen[r].items[i] or 0.0) for i in kept] for r in both]
    difference = crossed_interval(rows)
    return difference.low <= 0.0 <= difference.high


def _crowned(root: Path, winner: Contender, value: float) -> Ended:
    if winner.recipe is None:
        return winner.ended
    seen = winner.seen[0].metrics
    return replace(
        winner.ended,
        checkpoint=Path(winner.places[0]).relative_to(root).as_posix(),
        outcome=replace(winner.ended.outcome, value=value),
        metrics=dict(seen),
    )
