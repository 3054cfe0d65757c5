"""What is known of a sweep while it runs: journal records, or the service's events, in; one `Board` out. Light.

Nothing is drawn here: see `sweeps.board_view`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ENDINGS = {
    "trial.completed": "COMPLETE",
    "trial.pruned": "PRUNED",
    "trial.failed": "FAILED",
    "trial.infeasible": "INFEASIBLE",
}
"""Type of record -> state of a trial that is over."""


@dataclass(kw_only=True)
class TrialRow:
    """One trial as far as the records told."""

    trial_id: str
    """Stable over attempts."""
    number: int
    """Place in the order of suggestion, from 0."""
    params: dict[str, Any] = field(default_factory=dict)
    """The point: learning_rate, beta, ..."""
    state: str = "RUNNING"
    """RUNNING or one of ENDINGS."""
    step: int | None = None
    """Newest optimiser step heard of."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Newest value of each: loss, margin, accuracy, win_rate, probes."""
    value: float | None = None
    """The objective at the end."""
    why: str = ""
    """Why it ended."""

    @property
    def over(self) -> bool:
        """True once no more is to come."""
        return self.state != "RUNNING"


@dataclass(kw_only=True)
class Board:
    """A sweep's picture. `apply` is idempotent and indifferent to fields it does not know."""

    name: str
    """For the headline."""
    total: int
    """Trials asked for."""
    metric: str
    """The objective: win_rate, accuracy or margin."""
    phase: str = "waiting for the cluster"
    """preparing, searching, finals, done."""
    progress: float = 0.0
    """Share of the phase that is done, 0 to 1."""
    paused: bool = False
    """Whether a person has paused it."""
    trials: dict[str, TrialRow] = field(default_factory=dict)
    """By id, in the order of creation."""
    best_id: str | None = None
    """The trial that leads."""
    best_value: float | None = None
    """Its objective."""
    reference: dict[str, Any] | None = None
    """What reference log-probabilities took: seconds, cpu_seconds, tokens, hits, misses, checked; None until known."""

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> "Board":
        """An empty board for a sweep's or run's spec, as JSON values."""
        budget, objective = spec.get("budget") or {}, spec.get("objective") or {}
        return cls(
            name=str(spec.get("name") or "sweep"),
            total=int(budget.get("trials") or 1),
            metric=str(objective.get("metric") or "win_rate"),
        )

    @property
    def finished(self) -> int:
        """Trials that are over."""
        return sum(row.over for row in self.trials.values())

    @property
    def overall(self) -> float:
        """Share of the whole that is done, 0 to 1: the search counts by trials, the other phases by their own word."""
        if self.phase == "done":
            return 1.0
        if self.phase == "preparing":
            return 0.15 * self.progress
        if self.phase == "finals":
            return 0.85 + 0.15 * self.progress
        if self.phase == "searching" or self.trials:
            return 0.15 + 0.7 * min(1.0, self.finished / max(self.total, 1))
        return 0.0

    @property
    def best(self) -> TrialRow | None:
        """The row that leads, once one does."""
        return self.trials.get(self.best_id or "")

    def apply(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        """Take in one record or event: its type, its sentence, its facts."""
        if kind == "job.phase":
            self.phase = str(data.get("phase") or self.phase)
            self.progress = as_number(data.get("progress")) or 0.0
        elif kind == "job.restarted":
            self.phase, self.progress = "restarting", 0.0
        elif kind == "job.finished":
            self.phase, self.progress = "done", 1.0
        elif kind == "control.applied":
            self._apply_edit(data)
        elif kind == "reference.ready":
            self.reference = dict(data)
        elif kind == "best.updated":
            self.best_id, self.best_value = str(data.get("trial_id")), as_number(data.get("value"))
        elif kind.startswith("trial.") and data.get("trial_id"):
            self._apply_to_trial(kind, message, data)

    @property
    def where(self) -> str:
        """The phase, for people."""
        return f"{self.phase}, paused" if self.paused else self.phase

    def take(self, trials: Iterable[Mapping[str, Any]], *, best_id: str | None) -> None:
        """Fill the board from the API's trials, for a sweep that is not followed."""
        for trial in trials:
            row = TrialRow(trial_id=str(trial.get("trial_id") or trial.get("id")), number=int(trial.get("number") or 0))
            row.params = dict(trial.get("params") or {})
            row.state = str(trial.get("state") or row.state)
            row.step = trial.get("step")
            row.metrics = _numbers(trial.get("metrics") or {})
            row.value = as_number(trial.get("value"))
            row.why = str(trial.get("reason") or "")
            self.trials[row.trial_id] = row
        self.best_id = best_id

    def _apply_edit(self, data: Mapping[str, Any]) -> None:
        action, edit = data.get("action"), data.get("edit") or {}
        if action in ("pause", "resume"):
            self.paused = action == "pause"
        elif action == "extend":
            self.total = int(edit.get("trials") or self.total)

    def _apply_to_trial(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        trial_id = str(data["trial_id"])
        number = data.get("number")
        row = self.trials.get(trial_id)
        if row is None:
            row = TrialRow(trial_id=trial_id, number=len(self.trials) if number is None else int(number))
            self.trials[trial_id] = row
        row.params.update(data.get("params") or {})
        row.step = row.step if data.get("step") is None else int(data["step"])
        reported = data.get("metrics") or {key: value for key, value in data.items() if key in _PROGRESS_METRICS}
        row.metrics |= _numbers(reported)
        if kind in ENDINGS:
            row.state = ENDINGS[kind]
            row.value = as_number(data.get("value"))
            row.why = str(data.get("reason") or ("full budget" if kind == "trial.completed" else message))
        elif kind == "trial.created":
            row.state, row.why = "RUNNING", ""  # a new attempt runs an unfinished trial again


_PROGRESS_METRICS = frozenset({"loss", "margin", "accuracy", "win_rate", "grad_norm"})


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: number for key, value in metrics.items() if (number := as_number(value)) is not None}


def as_number(value: Any) -> float | None:
    """A metric as a number, whether it came plain or as an estimate with its interval; None when it is neither."""
    if isinstance(value, Mapping):
        value = value.get("estimate")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def reference_line(cost: Mapping[str, Any]) -> str:
    """What reference log-probabilities took, in one line; a method without a reference took nothing."""
    if not cost.get("hits") and not cost.get("misses"):
        return "reference log-probabilities: none needed, 0 s"
    return (
        f"reference log-probabilities: {cost['misses']} computed, {cost['hits']} known, {cost['tokens']} tokens, "
        f"{cost['seconds']:.1f} s ({cost['cpu_seconds']:.1f} CPU-seconds)"
    )
