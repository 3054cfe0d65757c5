"""What the journals of a sweep know of its trials: for a resumed attempt, and for a sweep that learns from another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.outcome import Outcome, Replay, State
from sweeps.run_dir import Attempt, Record, RunDir, read_journal

ENDINGS: Mapping[State, str] = {
    "COMPLETE": "trial.completed",
    "PRUNED": "trial.pruned",
    "FAILED": "trial.failed",
    "INFEASIBLE": "trial.infeasible",
}


RESUMED = "job.resumed"
"""Written by an attempt that goes on from others; `read`: attempt -> number of its records that were read."""


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
    """Every trial of the attempts under `below`, by number; the first accepted end of a trial counts."""
    return trials_in(accepted_records(run, below=below))


def trials_in(journals: Iterable[tuple[Attempt, Sequence[Record]]]) -> dict[int, Recorded]:
    """The trials of some attempts' records, by number; the first end of a trial counts."""
    trials: dict[int, Recorded] = {}
    ended = set(ENDINGS.values())
    for attempt, records in journals:
        for record in records:
            data = record["data"]
            if record["type"] == "trial.created":
                known = trials.setdefault(data["number"], Recorded(params=data["params"]))
                known.directories.append(attempt.trial_path(data["trial_id"]))
            elif record["type"] in ended:
                _note_end(trials, record)
    return trials


def accepted_records(run: RunDir, *, below: int) -> list[tuple[Attempt, list[Record]]]:
    """The journals of the attempts under `below`, each as far as its successor has read it.

    What an orphan writes after that was never known to who went on in its place, and is nobody's.
    """
    fences: dict[int, int] = {}
    journals: list[tuple[Attempt, list[Record]]] = []
    for attempt in reversed([attempt for attempt in run.attempts() if attempt.number < below]):
        records = read_journal(attempt)[: fences.get(attempt.number)]
        journals.insert(0, (attempt, records))
        for record in records:
            if record["type"] == RESUMED:
                fences.update({int(number): seq for number, seq in record["data"]["read"].items()})
    return journals


def _note_end(trials: dict[int, Recorded], record: Record) -> None:
    known = trials.get(record["data"]["number"])
    if known is not None and known.outcome is None:
        known.outcome = Outcome.from_dict(record["data"])
        known.facts = {key: record["data"][key] for key in ("metrics", "interval", "checkpoint", "seconds")}


def begun(root: Path) -> bool:
    """Whether any sweep under `root` has asked for a trial, or has a second attempt: then it is worth keeping."""
    attempts = [RunDir(claim.parents[2]).attempt(int(claim.parent.name)) for claim in root.rglob("claim.json")]
    return any(
        attempt.number > 1 or any(record["type"] == "trial.created" for record in read_journal(attempt))
        for attempt in attempts
    )
