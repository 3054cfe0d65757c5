"""The driver's side of a search: questions from the study, answers into the journal, best so far, what to keep.

No Ray in here: `sweeps.searcher` carries the words between this ledger and Tune. People's edits come in from another
thread (`sweeps.desk`), hence the lock.
"""

import shutil
import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweeps.budget import WallClock
from sweeps.control import AddPoint, ChangeSpace, CloneTrial, Extend, answers_in, applied
from sweeps.outcome import Ask, Outcome
from sweeps.recorded import ENDINGS, RESUMED, Recorded, accepted_records, trials_in
from sweeps.recorded import recorded_trials as recorded_trials
from sweeps.run_dir import Attempt, Level, Record
from sweeps.search_spec import Halving
from sweeps.signals import REASONS
from sweeps.spec import SweepSpec
from sweeps.study import Study
from sweeps.trial import Assignment, Update
from sweeps.warm_start import lessons_of


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial that is over: its terminal record's data."""

    ask: Ask
    outcome: Outcome
    metrics: dict[str, float] = field(default_factory=dict)
    """Held-out metrics at its last measurement."""
    interval: tuple[float, float] | None = None
    """95 % interval of the objective at its last measurement."""
    checkpoint: str | None = None
    """Relative to the run directory; None when there is none, or it was dropped."""
    seconds: float = 0.0
    pid: int = 0
    """The process that ran it: warm trials share one."""
    node: str = ""
    """Ray's id of the node where that was."""

    def data(self) -> dict[str, Any]:
        """The terminal record's data."""
        return {
            "trial_id": self.ask.trial_id,
            "number": self.ask.number,
            "params": self.ask.params,
            "metrics": self.metrics,
            "interval": self.interval,
            "checkpoint": self.checkpoint,
            "seconds": self.seconds,
            "pid": self.pid,
            "node": self.node,
            **self.outcome.as_dict(),
        }


class Ledger:
    """One attempt's books. One thread runs the search; another may interfere under the `lock`."""

    def __init__(self, attempt: Attempt, spec: SweepSpec, prepared: Path, clock: WallClock) -> None:
        self.attempt = attempt
        self.spec = spec
        self.prepared = prepared
        self.clock = clock
        self.ended: dict[int, Ended] = {}
        self.pids: set[int] = set()
        self.answers: dict[str, Record] = {}
        """How predecessors answered people's edits."""
        self._before = self._read_before()
        replay = {number: trial.replay for number, trial in self._before.items()}
        changes = [change for change in applied(self.answers) if isinstance(change.edit, SEARCH_EDITS)]
        self.study = Study(spec, replay, lessons_of(attempt, spec, prepared), changes)
        self.lock = threading.RLock()
        self.paused = False
        """No trial starts while this is set."""
        self.over = False
        """Nothing can be added to the search any more."""
        self._best: int | None = None
        self._swept: dict[int, str] = {}  # by number what of a trial an object store was asked to drop: rungs, all

    def next(self) -> Assignment | None:
        """The next trial to run, or None: wait, or (see `drained`) there is no more."""
        with self.lock:
            return self._next()

    @property
    def drained(self) -> bool:
        """Whether no further trial will start. While the last ones run somebody may still extend the budget."""
        return self.over

    @property
    def compared(self) -> bool:
        """Whether a comparison shares out one budget among this sweep and others, and its processes."""
        return self.attempt.run.prepared.exists()

    def endings(self) -> dict[int, str]:
        """By number: the state of every trial that is known to be over, and "" of those that are not."""
        known = {number: "" if trial.outcome is None else trial.outcome.state for number, trial in self._before.items()}
        known |= dict.fromkeys(self.study.asks, "")
        return known | {number: outcome.state for number, outcome in self.study.outcomes.items()}

    def number_of(self, trial_id: str) -> int:
        """The place in the search that its id names."""
        return int(trial_id.rpartition("_")[2])

    def update(self, number: int, update: Update) -> None:
        """Write what a running trial tells. An end waits for `end`."""
        with self.lock:
            self._update(number, update)

    def end(self, number: int, update: Update | None) -> None:
        """Close a trial. `update` is its last word; None, or one without an outcome: its process died."""
        with self.lock:
            self._end(number, update)

    def close(self) -> None:
        """Tell Optuna what is left."""
        self.study.close()

    def counts(self) -> dict[str, int]:
        """Trials by state, RUNNING included."""
        # A copy in one go: the pulse asks, without the lock, while the search goes on.
        states: Counter[str] = Counter(ended.outcome.state for ended in list(self.ended.values()))
        running = len(self.study.asks) - len(self.study.outcomes)
        return {**{state: states[state] for state in ENDINGS}, "RUNNING": running}

    def finalists(self) -> list[Ended]:
        """The best complete trials that still have a checkpoint, best first."""
        ranked = [self.ended[number] for number in self.study.ranked()]
        return [ended for ended in ranked if ended.checkpoint is not None][: self.spec.finals.candidates]

    def _next(self) -> Assignment | None:
        if self.paused:
            return None
        late = self.clock.left_s() <= 0
        known = [number + 1 for number, trial in self._before.items() if trial.outcome is not None]
        asked = -1
        while late and asked < len(self.study.asks) < max(known, default=0):  # what was trained before counts
            asked = len(self.study.asks)
            unfinished = self.study.ask(below=max(known))
            self._adopt()
            if unfinished is not None:
                given_up = Outcome(state="PRUNED", reason=self.clock.reason)
                self._end(unfinished.number, Update(kind="end", step=0, outcome=given_up))
        if late:
            self._none_left()
            return None
        ask = self.study.ask()
        self._adopt()
        if ask is None:
            if self.study.exhausted:
                self._none_left()
            return None
        before = self._before.get(ask.number)
        self.attempt.append(
            "trial.created",
            f"trial {ask.number} starts" if before is None else f"trial {ask.number} starts again",
            {
                "trial_id": ask.trial_id,
                "number": ask.number,
                "params": ask.params,
                "cutoffs": ask.cutoffs,
                **({"control": True} if ask.control else {}),
                **({} if ask.parent is None else {"parent": self.study.asks[ask.parent].trial_id}),
                **({} if ask.edit is None else {"edit": ask.edit}),
            },
        )
        return Assignment(
            trial_id=ask.trial_id,
            params=ask.params,
            cutoffs=ask.cutoffs,
            run_dir=str(self.attempt.run.root),
            prepared=str(self.prepared.absolute()),
            directory=str(self.attempt.trial_path(ask.trial_id)),
            resume=[str(path) for path in self._resumable(ask)],
            deadline=self.clock.deadline,
            workers=self.spec.parallel.workers_per_trial,
            start=ask.start,
            until=ask.until,
            peers=ask.peers,
            bar=self.study.bar(ask),
            restart=isinstance(self.spec.scheduler, Halving),
            signals=str(self.attempt.signals),
            store=self.attempt.run.place.uri if self.attempt.run.place.remote else None,
        )

    def _none_left(self) -> None:
        """Nobody may extend what a comparison shares out, so there the slots that are free are given to the next sweep.
        Elsewhere the last trial's end is the end."""
        self.over = self.over or self.compared or self.study.asks.keys() <= self.study.outcomes.keys()

    def _update(self, number: int, update: Update) -> None:
        ask = self.study.asks[number]
        where = {"trial_id": ask.trial_id, "number": number, "step": update.step}
        self.pids.add(update.pid)
        if update.kind == "started":
            self._note_start(number, where, update)
        elif update.kind == "progress":
            curve = {key: update.metrics[key] for key in CURVE}
            message = f"trial {number} step {update.step} of {self.study.plan.steps}: loss {curve['loss']:.4f}"
            self.attempt.append("trial.progress", message, {**where, **curve})
        elif update.kind == "rung":
            value = update.metrics[self.spec.objective.metric]
            message = f"trial {number} at step {update.step}: {self.spec.objective.metric} {value:.4f}"
            data = {**where, "metrics": update.metrics, "value": value, "pid": update.pid, "node": update.node}
            self.attempt.append("trial.rung", message, data)

    def _end(self, number: int, update: Update | None) -> None:
        if number in self.ended:
            return
        update, outcome = last_word(update, self.clock)
        self.study.complete(number, outcome)
        ended = Ended(
            ask=self.study.asks[number],
            outcome=self.study.outcomes[number],
            metrics=update.metrics,
            interval=update.interval,
            checkpoint=None if update.checkpoint is None else self.attempt.relative(update.checkpoint),
            seconds=update.seconds,
            pid=update.pid,
            node=update.node,
        )
        self.ended[number] = ended
        self._write_end(ended)
        self._crown()
        self._sweep_out()

    def _read_before(self) -> dict[int, Recorded]:
        """What the predecessors knew; how far they were read stands in this journal before anything is built on it."""
        journals = accepted_records(self.attempt.run, below=self.attempt.number)
        if not journals:
            return {}
        trials, self.answers = trials_in(journals), answers_in(journals)
        read = {str(attempt.number): len(records) for attempt, records in journals}
        over = sum(trial.outcome is not None for trial in trials.values())
        running = len(trials) - over
        message = f"goes on from attempt {max(read, key=int)}: {over} trials are over, {running} were running"
        self.attempt.append(RESUMED, message, {"read": read, "over": over, "running": running})
        return trials

    def _note_start(self, number: int, where: dict[str, Any], update: Update) -> None:
        """A process has begun with a trial; what it could not read stands before, each by its name."""
        source = None if update.checkpoint is None else self.attempt.relative(update.checkpoint)
        for path, reason in update.damaged:
            damaged = self.attempt.relative(path)
            message = f"trial {number} passes over {damaged} and goes on from {source or 'its start'}: {reason}"
            data = {**where, "path": damaged, "reason": reason, "instead": source}
            self.attempt.append("checkpoint.damaged", message, data, level="warn")
        told = f"trial {number} runs from step {update.step}" + ("" if source is None else f", {source}")
        self.attempt.append("trial.started", told, {**where, "from": source, "pid": update.pid, "node": update.node})

    def _resumable(self, ask: Ask) -> list[Path]:
        """Where checkpoints lie that a trial may go on from: its own of earlier attempts, and its parent's."""
        places = [] if ask.number not in self._before else list(self._before[ask.number].directories)
        if ask.parent is not None:
            places.append(self.attempt.trial_path(self.study.asks[ask.parent].trial_id))
            places += self._before[ask.parent].directories if ask.parent in self._before else []
        return places

    def _adopt(self) -> None:
        """Trials that a predecessor finished: already told to the study, already in its journal."""
        for number, outcome in self.study.outcomes.items():
            if number in self.ended:
                continue
            facts = dict(self._before[number].facts)
            if facts["checkpoint"] and not self.attempt.run.place.holds(self.attempt.run.root / facts["checkpoint"]):
                facts["checkpoint"] = None  # its own attempt dropped it later
            self.ended[number] = Ended(ask=self.study.asks[number], outcome=outcome, **facts)
            self._swept[number] = "all"  # this attempt has made nothing of it
        self._best = self.study.best()

    def _write_end(self, ended: Ended) -> None:
        outcome, number = ended.outcome, ended.ask.number
        how = {"COMPLETE": "is complete", "PRUNED": "was stopped early", "FAILED": "failed"}
        message = f"trial {number} {how.get(outcome.state, 'broke a constraint')}"
        if outcome.state == "COMPLETE":
            message += f": {self.spec.objective.metric} {outcome.value:.4f}"
        elif outcome.reason:
            message += f": {outcome.reason}"
        level: Level = "warn" if outcome.state == "FAILED" else "info"
        self.attempt.append(ENDINGS[outcome.state], message, ended.data(), level=level)

    def _crown(self) -> None:
        best = self.study.best()
        if best is None or best == self._best:
            return
        self._best = best
        ended = self.ended[best]
        self.attempt.append(
            "best.updated",
            f"best so far: trial {best}, {self.spec.objective.metric} {ended.outcome.value:.4f}",
            {"trial_id": ended.ask.trial_id, "value": ended.outcome.value, "params": ended.ask.params},
        )

    def _sweep_out(self) -> None:
        """Drop what no one will read: ways back into ended trials, weights that fell out of the kept ranks."""
        keep = set(self.study.ranked()[: max(self.spec.finals.candidates, KEEP)])
        wanted, place = self.study.wanted(), self.attempt.run.place
        for number, ended in self.ended.items():
            if number in wanted or self._swept.get(number) == "all":
                continue
            directory = self.attempt.trial_path(ended.ask.trial_id)
            if number not in keep and (directory.exists() or place.remote):
                place.drop(directory)
                self.ended[number] = replace(ended, checkpoint=None)
                if place.remote:
                    self._swept[number] = "all"
            # What begins with a dot was never finished: its process was killed.
            for left in (*directory.glob("rung-*"), *directory.glob(".*")):
                shutil.rmtree(left, ignore_errors=True)
            if place.remote and number not in self._swept:
                self._swept[number] = "rungs"
                for rung in place.folders(directory):
                    if rung.name.startswith("rung-"):
                        place.drop(rung)


SEARCH_EDITS = (Extend, ChangeSpace, CloneTrial, AddPoint)
"""Edits that change which questions the search asks."""


def last_word(update: Update | None, clock: WallClock) -> tuple[Update, Outcome]:
    """A trial's last update and how it ended; None, or one without an outcome: its process died."""
    if update is not None and update.outcome is not None:
        late = update.outcome.reason == REASONS["late"]  # it cannot know which limit has moved its deadline
        return update, replace(update.outcome, reason=clock.reason) if late else update.outcome
    step = 0 if update is None else update.step
    why = "(out of memory?)" if update else "before its first word (out of memory? no room for its workers?)"
    died = Outcome(state="FAILED", step=step, reason=f"the trial's process died {why}")
    return Update(kind="end", step=step, outcome=died), died


KEEP = 3
"""Checkpoints of at least so many best trials stay on disk."""

CURVE = ("loss", "margin", "accuracy", "grad_norm", "learning_rate")
