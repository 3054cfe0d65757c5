"""What the journals of a sweep know of its trials: for a resumed attempt, and for a sweep that learns from another."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.outcome import Outcome, Replay, State
from sweeps.run_dir import Record, RunDir, read_journal

ENDINGS: Mapping[State, str] = {
    "COMPLETE": "trial.completed",
    "PRUNED": "trial.pruned",
    "FAILED": "trial.failed",
    "INFEASIBLE": "trial.infeasible",
}


@dataclass(kw_only=True)
class Recorded:
    """What all predecessors' journals know of a trial."""

    params: dict[str, Any]
    directories: list[Path] = field(default_factory=list)
    """Where its attempts kept its checkpoints."""
    outcome: Outcome | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """metrics, interval, checkpoint, seconds of the terminal record."""

    @property
    def replay(self) -> Replay:
        """The study's view."""
        return Replay(params=self.params, outcome=self.outcome)


def recorded_trials(run: RunDir, *, below: int) -> dict[int, Recorded]:
    """Every trial of the attempts under `below`, by number; the first end of a trial counts."""
    trials: dict[int, Recorded] = {}
    ended = set(ENDINGS.values())
    for attempt in run.attempts():
        for record in read_journal(attempt) if attempt.number < below else []:
            data = record["data"]
            if record["type"] == "trial.created":
                known = trials.setdefault(data["number"], Recorded(params=data["params"]))
                known.directories.append(attempt.trial_path(data["trial_id"]))
            elif record["type"] in ended:
                _note_end(trials, record)
    return trials


def _note_end(trials: dict[int, Recorded], record: Record) -> None:
    known = trials.get(record["data"]["number"])
    if known is not None and known.outcome is None:
        known.outcome = Outcome.from_dict(record["data"])
        known.facts = {key: record["data"][key] for key in ("metrics", "interval", "checkpoint", "seconds")}
