"""Who wins over several training seeds, who is tied, who stands behind; values are given, nothing is trained."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simpo.errors import DataError
from sweeps.contest import Contest, Seen, hold_contest
from sweeps.ledger import Ended
from sweeps.outcome import Ask, Outcome
from sweeps.report_search import panels, standing
from sweeps.retrainings import Retrained
from sweeps.spec import SweepSpec, parse_spec

pytestmark = pytest.mark.quick

Items = Mapping[str, Sequence[float | None]]


class _Mixed:
    """A soup, and points on a line, that are measured like everything else."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.best = ""
        self.kept: str | None = None

    def made(
        self, finalists: Sequence[Any], best: Any, replicates: Sequence[int]
    ) -> Iterator[tuple[str, dict[str, Any], dict[int, str]]]:
        self.best = best.name
        for name in self.names:
            yield name, {"kind": name}, {r: f"/run/mix/{name}/{r}" for r in replicates}

    def clear(self, *, keep: str | None) -> None:
        self.kept = keep


def _spec(**changes: Any) -> SweepSpec:
    finals = {"candidates": 2, "seeds": changes.pop("seeds", 2)}
    return parse_spec({"name": "x", "objective": "accuracy", "constraints": {}, "finals": finals} | changes)


def _hold(
    items: Items,
    *,
    spec: SweepSpec | None = None,
    ends: Mapping[int, Outcome] | None = None,
    mixed: _Mixed | None = None,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
) -> Contest:
    """Finalists t0 and t1; items by the last parts of a checkpoint's place: t0/0 is t0 under the search's own seed."""
    numbers = sorted({int(name[1]) for name in items if name.startswith("t")})
    complete = Outcome(state="COMPLETE", step=9, value=0.5)
    finalists = [
        Ended(ask=Ask(number=n, trial_id=f"t{n}", params={}, cutoffs={}), outcome=complete, checkpoint=f"t{n}/0")
        for n in numbers
    ]
    retrained = {
        n: [
            Retrained(number=n, replicate=int(name[3]), outcome=complete, checkpoint=name)
            for name in items
            if name.startswith(f"t{n}/") and name[3] != "0"
        ]
        for n in numbers
    }
    for n, outcome in (ends or {}).items():
        retrained[n].append(Retrained(number=n, replicate=1, outcome=outcome))

    def measure(place: str) -> Seen:
        key = place.removeprefix("/run/").removeprefix("mix/")
        return Seen(items=items[key], metrics={"accuracy": 0.5, **(metrics or {}).get(key, {})})

    notes: list[dict[str, Any]] = []
    contest = hold_contest(
        spec or _spec(),
        Path("/run"),
        finalists,
        retrained,
        measure,
        mixed or _Mixed(),  # type: ignore[arg-type]
        lambda message, data: notes.append(data),
    )
    assert len(notes) == len(contest.rows)
    json.dumps([contest.as_dict(), notes], allow_nan=False)
    return contest


def test_the_mean_over_seeds_decides_and_not_the_lucky_one() -> None:
    contest = _hold({"t0/0": [1, 1, 1, 1], "t0/1": [0, 0, 0, 1], "t1/0": [1, 1, 1, 0], "t1/1": [1, 1, 0, 1]})
    assert [row.name for row in contest.rows] == ["t1", "t0"]
    assert [row.by_seed for row in contest.rows] == [[0.75, 0.75], [1.0, 0.25]]
    assert contest.winner.ask.trial_id == "t1" and contest.winner.checkpoint == "t1/0"
    assert [row.tied_with for row in contest.rows] == [["t0"], ["t1"]], "seeds that disagree separate nobody"
    assert contest.made() == {} and set(contest.by_trial()) == {"t0", "t1"}
    (panel,) = panels({"finals": contest.as_dict()})
    assert [row[0] for row in panel.rows] == ["t1", "t0"] and panel.rows[0][3:5] == ["0.75, 0.75", "t0"]
    assert standing(contest.as_dict()["rows"][1]).endswith("n = 4); seeds 1, 0.25; tied with t1")


def test_differences_are_paired_by_item() -> None:
    """Items differ far more among each other than the two models do on each of them."""
    rng = np.random.default_rng(0)
    hard = rng.normal(size=60)
    items = {f"t{n}/{r}": (hard + 0.3 * n + 0.05 * rng.normal(size=60)).tolist() for n in (0, 1) for r in (0, 1, 2)}
    contest = _hold(items, spec=_spec(seeds=3, objective="margin"))
    first, second = contest.rows
    assert (first.name, first.tied_with, second.tied_with) == ("t1", [], [])
    assert first.estimate.low < second.estimate.high, "their own intervals overlap all the same"


def test_of_equals_the_first_one_wins() -> None:
    contest = _hold({"t0/0": [1, 0], "t0/1": [1, 0], "t1/0": [0, 1], "t1/1": [0, 1]})
    assert contest.rows[0].name == "t0"


def test_a_seed_that_one_lacks_counts_for_nobody() -> None:
    late = Outcome(state="PRUNED", reason="the wall-clock budget was spent")
    contest = _hold({"t0/0": [1, 0, 0], "t1/0": [1, 1, 0], "t1/1": [0, 0, 0]}, ends={0: late})
    assert (contest.replicates, contest.rows[0].name, contest.as_dict()["seeds"]) == ([0], "t1", 1)
    assert contest.as_dict()["seeds_wanted"] == 2


def test_who_fails_under_another_seed_stands_behind() -> None:
    failed = Outcome(state="FAILED", reason="the loss is not finite")
    contest = _hold({"t0/0": [1, 1, 1], "t1/0": [1, 1, 0], "t1/1": [1, 0, 0]}, ends={0: failed})
    assert [row.name for row in contest.rows] == ["t1", "t0"]
    assert contest.rows[1].faults == ["seed 2 is FAILED: the loss is not finite"]
    assert contest.replicates == [0, 1], "the others keep their seeds"
    alone = _hold({"t0/0": [1, 1, 1]}, ends={0: failed})
    assert alone.rows[0].name == "t0", "somebody has to win"


def test_who_breaks_a_constraint_under_fresh_sampling_stands_behind() -> None:
    spec = _spec(constraints={"repetition": "<=0.3"}, seeds=1, finals={"extra": ["scale"], "scales": [0.5]})
    probes = {"t0/0": {"repetition": 0.9}, "t1/0": {"repetition": 0.1}}
    contest = _hold({"t0/0": [1, 1, 1], "t1/0": [1, 0, 0]}, spec=spec, metrics=probes)
    assert contest.rows[0].name == "t1"
    assert contest.rows[1].faults == ["repetition is 0.9, wanted <=0.3"]


def test_a_mixture_wins_on_the_same_terms() -> None:
    items = {f"t0/{r}": [1, 0, 0, 0] for r in (0, 1)} | {f"soup/{r}": [1, 1, 1, 0] for r in (0, 1)}
    mixed = _Mixed("soup")
    contest = _hold(items, mixed=mixed)
    assert contest.rows[0].name == "soup" and mixed.best == "t0"
    assert contest.made() == {"candidate": "soup", "recipe": {"kind": "soup"}}
    assert (contest.winner.checkpoint, contest.winner.outcome.value) == ("mix/soup/0", 0.75)
    assert contest.winner.ask.trial_id == "t0" and mixed.kept == "/run/mix/soup/0"
    assert set(contest.by_trial()) == {"t0"}
    weak = _Mixed("soup")
    worse = {**items, "soup/0": [0, 0, 0, 0], "soup/1": [0, 0, 0, 0]}
    assert _hold(worse, mixed=weak).made() == {} and weak.kept is None


def test_a_failed_judgement_leaves_the_prompt_out_for_all() -> None:
    contest = _hold({"t0/0": [1, None, 0], "t0/1": [1, 1, 0], "t1/0": [1, 1, 1], "t1/1": [0, 1, 1]})
    assert {(row.estimate.n, row.estimate.missing) for row in contest.rows} == {(2, 1)}
    with pytest.raises(DataError, match="every candidate"):
        _hold({"t0/0": [None, None], "t0/1": [1, 1]})
