"""The finalists trained again under other seeds: what is to run, how it ended, what a predecessor has done. No Ray.

The search is never told of them. Records: `replicate.created` {trial_id, number, replicate, params}, `replicate.rung`
{step, value, metrics}, then `replicate.completed`, `.pruned`, `.infeasible` or `.failed` with the fields of a trial's
end. trial_id and number are the finalist's; checkpoints lie under `trials/<trial_id>_r<replicate>`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.ledger import Ended, Ledger, last_word
from sweeps.outcome import Outcome, honest
from sweeps.recorded import ENDINGS, accepted_records
from sweeps.run_dir import Attempt, Level, RunDir
from sweeps.trial import Assignment, Update

CREATED = "replicate.created"
_ENDINGS = {state: kind.replace("trial.", "replicate.") for state, kind in ENDINGS.items()}
_FINAL = ("COMPLETE", "INFEASIBLE", "FAILED")
"""Ends that a successor takes over; PRUNED is the clock's work, and its clock is another."""


@dataclass(frozen=True, kw_only=True)
class Retrained:
    """One finalist under one further seed, over."""

    number: int
    """Of the finalist."""
    replicate: int
    """From 1; the search's own training is 0."""
    outcome: Outcome
    checkpoint: str | None = None
    """Relative to the run directory; None unless COMPLETE."""
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Retrainings:
    """What is left to train of (finalists x further seeds), seed by seed: a clock that strikes leaves whole seeds."""

    def __init__(self, ledger: Ledger, finalists: Sequence[Ended]) -> None:
        self.ended: dict[tuple[int, int], Retrained] = {}
        self.wanted = ledger.spec.finals.seeds - 1
        self._ledger = ledger
        self._finalists = {finalist.ask.number: finalist for finalist in finalists}
        self._tasks = [(number, r) for r in range(1, self.wanted + 1) for number in self._finalists]
        self._asked = 0
        self._stopped = False
        self._places: dict[tuple[int, int], list[Path]] = {}
        for task, ended, places in _recorded(ledger.attempt.run, below=ledger.attempt.number):
            self._places[task] = places
            if task in self._tasks and ended is not None:
                self.ended[task] = ended
        self._pending = [task for task in self._tasks if task not in self.ended]

    @property
    def attempt(self) -> Attempt:
        """The search's own."""
        return self._ledger.attempt

    @property
    def drained(self) -> bool:
        """Whether no further one will start."""
        return self._stopped or self._asked >= len(self._pending)

    def of(self, finalist: Ended) -> list[Retrained]:
        """Those of a finalist that are over, by seed."""
        return [ended for (number, _), ended in sorted(self.ended.items()) if number == finalist.ask.number]

    def next(self) -> Assignment | None:
        """The next one to train, or None: there is no more, or the clock has struck."""
        self._stopped = self._stopped or self._ledger.clock.left_s() <= 0
        if self.drained:
            return None
        number, replicate = self._pending[self._asked]
        self._asked += 1
        finalist, attempt = self._finalists[number], self._ledger.attempt
        data = {**_where(finalist, replicate), "params": finalist.ask.params}
        attempt.append(CREATED, f"trial {number} is trained again, seed {replicate + 1}", data)
        return Assignment(
            trial_id=_name(finalist.ask.trial_id, replicate),
            params=finalist.ask.params,
            cutoffs={},
            run_dir=str(attempt.run.root),
            prepared=str(self._ledger.prepared.absolute()),
            directory=str(attempt.trial_path(_name(finalist.ask.trial_id, replicate))),
            resume=[str(path) for path in self._places.get((number, replicate), ())],
            deadline=self._ledger.clock.deadline,
            workers=self._ledger.spec.parallel.workers_per_trial,
            signals=str(attempt.signals),
            replicate=replicate,
            store=attempt.run.place.uri if attempt.run.place.remote else None,
        )

    def number_of(self, trial_id: str) -> int:
        """Its place in the list."""
        names = [_name(self._finalists[number].ask.trial_id, replicate) for number, replicate in self._pending]
        return names.index(trial_id)

    def update(self, number: int, update: Update) -> None:
        """Its rungs; the steps between them are nobody's concern here."""
        task, replicate = self._pending[number]
        self._ledger.pids.add(update.pid)
        if update.kind != "rung":
            return
        metric = self._ledger.spec.objective.metric
        value = update.metrics[metric]
        data = {**_where(self._finalists[task], replicate), "step": update.step, "value": value}
        message = f"trial {task}, seed {replicate + 1}, at step {update.step}: {metric} {value:.4f}"
        self._ledger.attempt.append("replicate.rung", message, {**data, "metrics": update.metrics, "pid": update.pid})

    def end(self, number: int, update: Update | None) -> None:
        """Close one."""
        task = self._pending[number]
        if task in self.ended:
            return
        update, outcome = last_word(update, self._ledger.clock)
        outcome, attempt = honest(outcome), self._ledger.attempt
        checkpoint = update.checkpoint if outcome.state == "COMPLETE" else None
        ended = Retrained(
            number=task[0],
            replicate=task[1],
            outcome=outcome,
            checkpoint=None if checkpoint is None else attempt.relative(checkpoint),
            metrics=update.metrics,
            seconds=update.seconds,
        )
        self.ended[task] = ended
        how = f"{self._ledger.spec.objective.metric} {outcome.value:.4f}" if outcome.value is not None else ""
        message = f"trial {task[0]}, seed {task[1] + 1}: {outcome.reason or how}"
        level: Level = "warn" if outcome.state == "FAILED" else "info"
        more = {key: getattr(ended, key) for key in ("checkpoint", "metrics", "seconds")}
        data = {**_where(self._finalists[task[0]], task[1]), **more, **outcome.as_dict()}
        attempt.append(_ENDINGS[outcome.state], message, data, level=level)


def weights_of(run: RunDir, finalists: Sequence[Ended]) -> Iterator[Path]:
    """Folders of all retrainings, of all attempts: nobody needs them once the winner is published."""
    names = [finalist.ask.trial_id for finalist in finalists]
    for attempt in run.attempts():
        for name in names:
            folders = run.place.folders(attempt.trial_path(name).parent)
            yield from (folder for folder in folders if folder.name.startswith(f"{name}_r"))


def _recorded(run: RunDir, *, below: int) -> list[tuple[tuple[int, int], Retrained | None, list[Path]]]:
    """What the attempts under `below` know: (finalist, replicate), its end if it can be taken over, its folders."""
    places: dict[tuple[int, int], list[Path]] = {}
    ends: dict[tuple[int, int], Retrained] = {}
    for attempt, records in accepted_records(run, below=below):
        for record in records:
            kind, data = record["type"], record["data"]
            if kind != CREATED and kind not in _ENDINGS.values():
                continue
            task = (int(data["number"]), int(data["replicate"]))
            if kind == CREATED:
                places.setdefault(task, []).append(_folder(attempt, data))
            elif data["state"] in _FINAL and _still_there(run, data):
                facts = {key: data[key] for key in ("checkpoint", "metrics", "seconds")}
                ends[task] = Retrained(number=task[0], replicate=task[1], outcome=Outcome.from_dict(data), **facts)
    return [(task, ends.get(task), where) for task, where in places.items()]


def _still_there(run: RunDir, data: dict[str, Any]) -> bool:
    return data["state"] != "COMPLETE" or run.place.holds(run.root / str(data["checkpoint"]))


def _folder(attempt: Attempt, data: dict[str, Any]) -> Path:
    return attempt.trial_path(_name(str(data["trial_id"]), int(data["replicate"])))


def _where(finalist: Ended, replicate: int) -> dict[str, Any]:
    return {"trial_id": finalist.ask.trial_id, "number": finalist.ask.number, "replicate": replicate}


def _name(trial_id: str, replicate: int) -> str:
    return f"{trial_id}_r{replicate}"
