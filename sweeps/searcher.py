"""The bridge between Ray Tune and the books of what is to run: a search's ledger, or its finalists' retrainings.

All decisions are made elsewhere; Tune only runs what it is given.

Ray's own OptunaSearch tells Optuna that stopped trials are complete and leaves others running for ever.
"""

from typing import Any, Protocol

from ray.tune.search import Searcher

from simpo.errors import StorageError
from sweeps.ray_session import Room
from sweeps.run_dir import Attempt
from sweeps.trial import Assignment, Update


class Books(Protocol):
    """Who knows what is to be trained next, and is told how it went."""

    @property
    def attempt(self) -> Attempt:
        """Where they are written."""

    @property
    def drained(self) -> bool:
        """Whether no further trial will start."""

    def next(self) -> Assignment | None:
        """The next trial to run, or None: wait, or there is no more."""

    def number_of(self, trial_id: str) -> int:
        """The number by which a trial of `next` is spoken of below."""

    def update(self, number: int, update: Update) -> None:
        """What a running trial tells."""

    def end(self, number: int, update: Update | None) -> None:
        """Its last word; None, or one without an outcome: its process died."""


class StudySearcher:
    """Asks the books for trials, carries their words back. One search."""

    def __init__(self, books: Books, room: Room) -> None:
        self._books = books
        self._room = room
        # Tune names its trials itself; ours are stable over attempts.
        self._numbers: dict[str, int] = {}
        self._last: dict[str, Update] = {}
        self._live: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A trial's config; None: nothing now; FINISHED: no more."""
        if len(self._live) >= self._room.trials:
            return None
        assignment = self._books.next()
        if assignment is None:
            return Searcher.FINISHED if self._books.drained else None
        self._numbers[trial_id] = self._books.number_of(assignment.trial_id)
        self._live.add(trial_id)
        # One trial, one core, as long as there are trials for all of them.
        peers = assignment.peers or self._room.trials
        threads = max(1, self._room.trials // peers) if self._room.lends else 1
        return assignment.as_config() | {"gpus": self._room.gpus, "threads": threads}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Every report but the one that Tune repeats at the end."""
        update = Update.from_result(result)
        if update is not None and trial_id in self._live:
            self._last[trial_id] = update
            self._books.update(self._numbers[trial_id], update)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Once a trial. Its last update has the outcome, unless its process died."""
        if trial_id not in self._live:
            return
        self._live.discard(trial_id)
        update = None if result is None else Update.from_result(result)
        attempt = self._books.attempt
        if update is not None and update.fault:
            attempt.broken = StorageError(update.fault)
        if attempt.broken is not None:
            return  # the attempt is over, the trial is not: a successor goes on with it
        self._books.end(self._numbers[trial_id], update or self._last.pop(trial_id, None))
