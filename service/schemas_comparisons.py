"""What the API shows of comparisons."""

from typing import Literal

from pydantic import BaseModel

from service.clock import rfc3339
from service.models import Sweep
from service.schemas import Json


class ComparisonOut(BaseModel):
    """Several methods under one budget."""

    id: str
    object: Literal["comparison"] = "comparison"
    name: str
    state: str
    reason: str
    message: str
    stale_since: str | None
    """While Ray does not answer: since when the state may be older than the facts."""
    desired: str
    """RUN or CANCEL"""
    phase: str | None
    """preparing, comparing or done"""
    progress: float | None
    """Share of the phase that is done: of the methods, where they are compared."""
    attempt: int
    methods: list[str]
    error: Json | None
    spec: Json
    spec_hash: str
    created_at: str
    started_at: str | None
    ended_at: str | None
    result: Json | None
    """leaderboard, curves, verdicts ... of a SUCCEEDED one, and only when read by its id."""


def comparison_json(row: Sweep, *, whole: bool) -> Json:
    """`whole`: with the result."""
    return ComparisonOut(
        id=row.id,
        name=row.name,
        state=row.state,
        reason=row.reason,
        message=row.message,
        stale_since=rfc3339(row.stale_since) if row.stale_since else None,
        desired=row.desired,
        phase=row.phase,
        progress=row.progress,
        attempt=row.attempt,
        methods=[each["label"] or each["method"] for each in row.spec["methods"]],
        error=row.error,
        spec=row.spec,
        spec_hash=row.spec_hash,
        created_at=rfc3339(row.created_at),
        started_at=rfc3339(row.started_at) if row.started_at else None,
        ended_at=rfc3339(row.ended_at) if row.ended_at else None,
        result=(row.result or {}).get("comparison") if whole else None,
    ).model_dump(mode="json")
