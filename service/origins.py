"""What a checkpoint comes from: a sweep, or the sweep of one method of a comparison."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from service.models import COMPARISON, Sweep
from service.settings import Settings
from sweeps.comparison_spec import ComparisonSpec
from sweeps.run_dir import RunDir, last_result


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A search as promotions and evaluations see it."""

    id: str
    """Of the row that owns it: the sweep, the run, or the whole comparison."""
    name: str
    plan: Mapping[str, Any]
    """A SweepSpec."""
    result: Mapping[str, Any]
    """As its driver wrote it; where the base lies is relative to the run directory of `id`, absolute, or a hub id."""
    winner: str | None
    """What its winner is called among the versions of a model; None: it has none that a trial has trained."""


def origin_of(session: Session, settings: Settings, sweep_id: str, checkpoint: str) -> Origin:
    """Of a checkpoint that was chosen once (`service.winners`): of a comparison's, `checkpoint` is its method."""
    row = session.get_one(Sweep, sweep_id)
    if row.kind == COMPARISON:
        return _of_method(settings, row, checkpoint)
    result = row.result or {}
    winner = (result.get("best") or {}).get("trial_id")
    return Origin(id=row.id, name=row.name, plan=row.plan, result=result, winner=winner)


def _of_method(settings: Settings, row: Sweep, method: str) -> Origin:
    """Its row holds what compares the methods; what each has found lies in a run directory of its own."""
    sweep = ComparisonSpec.model_validate(row.plan).sweeps()[method]
    run = RunDir(settings.run_dir(row.id) / "sweeps" / method)
    result = dict(last_result(run) or {})
    given = (result.get("base") or {}).get("checkpoint")
    if given and (run.root / given / "config.json").is_file():
        result["base"] = {**result["base"], "checkpoint": str((run.root / given).resolve())}
    return Origin(
        id=row.id,
        name=sweep.name,
        plan=sweep.model_dump(mode="json"),
        result=result,
        winner=method if result.get("best") else None,
    )
