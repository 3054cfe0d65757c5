"""Journal records -> events and trials. Idempotent by (attempt, seq), fenced by the caller's lock on the attempt."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service import edits, events
from service.models import Attempt, Sweep, Trial
from service.states import TRIAL_OVER, TrialState
from service.usage import Meter
from sweeps.control import APPLIED, REFUSED
from sweeps.run_dir import Record

_ENDINGS = {
    "trial.completed": TrialState.SUCCEEDED,
    "trial.pruned": TrialState.PRUNED,
    "trial.infeasible": TrialState.INFEASIBLE,
    "trial.failed": TrialState.FAILED,
}
# The driver speaks of its own end; whether the sweep has failed is for the reconciler to say.
_RENAMED = {"job.failed": "attempt.failed"}
_NOT_METRICS = frozenset({"trial_id", "number", "step", "metrics"})


def take_records(
    session: Session, sweep: Sweep, attempt: Attempt, records: Sequence[Record], now: datetime
) -> None:
    """Store the records past `attempt.journal_seq`; `sweep` and `attempt` are locked and current."""
    trials, meter = _Trials(session, sweep.id, records), Meter(session, sweep)
    for record in records:
        if record["seq"] <= attempt.journal_seq:
            continue
        kind, data = record["type"], record["data"]
        at = _moment(record["at"], now)
        events.append(
            session,
            sweep,
            _RENAMED.get(kind, kind),
            record["message"],
            data,
            now=at,
            level=record["level"],
            actor=events.DRIVER,
            attempt=attempt.n,
            journal_seq=record["seq"],
        )
        if kind == "job.phase":
            sweep.phase, sweep.progress = str(data.get("phase") or ""), _number(data.get("progress"))
        elif kind == "best.updated":
            sweep.best = data
        elif kind in (APPLIED, REFUSED):
            edits.take_answer(session, sweep.id, attempt.n, record, at)
        elif kind.startswith("trial.") and data.get("trial_id"):
            trials.apply(kind, data, attempt.n, at)
        meter.take(kind, data, attempt.n, min(at, now))  # a clock that runs ahead must not cost hours
        attempt.journal_seq = record["seq"]
    if records and attempt.ended_at is not None:
        # Late records of an attempt that was given up: what they began ends with them.
        meter.close(attempt.n, min(_moment(records[-1]["at"], now), now))


def note_checkpoints(session: Session, sweep_id: str, result: dict[str, Any]) -> None:
    """Which trials kept a checkpoint: the driver drops those that can no longer win, and says so in its ranking."""
    kept = {row.get("trial_id"): row.get("checkpoint") for row in result.get("leaderboard") or ()}
    for trial in session.scalars(select(Trial).where(Trial.sweep_id == sweep_id)):
        if trial.trial_id in kept:
            trial.checkpoint = kept[trial.trial_id]


class _Trials:
    """The rows of those of a sweep's trials that some records tell of, read once and only when needed."""

    def __init__(self, session: Session, sweep_id: str, records: Sequence[Record]) -> None:
        self._session = session
        self._sweep_id = sweep_id
        self._named = {str(id) for record in records if (id := record["data"].get("trial_id"))}
        self._rows: dict[str, Trial] | None = None

    def apply(self, kind: str, data: dict[str, Any], attempt: int, at: datetime) -> None:
        trial = self._row(data, attempt, at)
        if trial.state in TRIAL_OVER:
            return  # a result is recorded once, whatever a later attempt repeats
        trial.attempt = attempt
        trial.params = {**trial.params, **(data.get("params") or {})}
        if data.get("step") is not None:
            trial.step = int(data["step"])
        metrics = data.get("metrics") or {key: value for key, value in data.items() if key not in _NOT_METRICS}
        if kind in ("trial.progress", "trial.rung"):
            trial.metrics = {**trial.metrics, **metrics}
            trial.state = TrialState.RUNNING
        if kind == "trial.rung":
            done = [rung for rung in trial.rungs if rung["step"] != trial.step]
            trial.rungs = [*done, {"step": trial.step, "metrics": metrics}]
        if kind in _ENDINGS:
            trial.state = _ENDINGS[kind]
            trial.value = _number(data.get("value"))
            trial.reason = str(data.get("reason") or "")
            trial.checkpoint = data.get("checkpoint") or None
            trial.seconds = _number(data.get("seconds"))
            trial.metrics = {**trial.metrics, **(data.get("metrics") or {})}
            trial.ended_at = at

    def _row(self, data: dict[str, Any], attempt: int, at: datetime) -> Trial:
        if self._rows is None:
            mine = (Trial.sweep_id == self._sweep_id) & Trial.trial_id.in_(self._named)
            self._rows = {trial.trial_id: trial for trial in self._session.scalars(select(Trial).where(mine))}
        trial_id = str(data["trial_id"])
        if trial_id not in self._rows:
            number = data.get("number")
            self._rows[trial_id] = Trial(
                sweep_id=self._sweep_id,
                trial_id=trial_id,
                number=self._how_many() if number is None else int(number),
                attempt=attempt,
                state=TrialState.RUNNING,
                params={},
                metrics={},
                rungs=[],
                reason="",
                created_at=at,
            )
            self._session.add(self._rows[trial_id])
        return self._rows[trial_id]

    def _how_many(self) -> int:
        return self._session.scalars(select(func.count()).where(Trial.sweep_id == self._sweep_id)).one()


def _number(value: Any) -> float | None:
    """A plain number, or the estimate of one with an interval."""
    if isinstance(value, dict):
        value = value.get("estimate")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _moment(text: str, otherwise: datetime) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return otherwise
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
