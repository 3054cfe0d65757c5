"""Where edits of a running sweep are answered: each is applied or refused, and the journal says which.

The pulse's thread asks the desk to look each second, whatever the attempt is at. Before the search begins edits of it
wait; once it is over they are refused. The journal hears first: an edit that it holds counts, for this attempt and
for those after it, and one that it does not hold is looked at again.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from simpo.errors import ConfigError, SimPOError
from sweeps.budget import WallClock
from sweeps.control import (
    APPLIED,
    REFUSED,
    Cancel,
    Change,
    Extend,
    Found,
    Pause,
    Resume,
    StopTrial,
    answers,
    applied,
    paused_by,
    read_edits,
    trial_id,
)
from sweeps.ledger import SEARCH_EDITS, Ledger
from sweeps.run_dir import Attempt, Record
from sweeps.signals import signals

log = logging.getLogger(__name__)


class Desk:
    """One attempt's. `heed` from any thread. Raises ConfigError when the sweep was cancelled before."""

    def __init__(self, attempt: Attempt, clock: WallClock, cancel: Callable[[], None]) -> None:
        self._attempt = attempt
        self._clock = clock
        self._cancel = cancel
        self._ledger: Ledger | None = None
        self._searched = False
        self._closed = False
        self._lock = threading.RLock()
        self._answered: set[str] = set()
        self._own: list[Change] = []
        self._paused = False
        self._stopped: list[str] = []
        self._adopt(answers(attempt.run, below=attempt.number))

    @contextmanager
    def searching(self, ledger: Ledger) -> Iterator[None]:
        """For the length of the context edits of the search are looked at, by the ledger's leave."""
        with self._lock:
            self._adopt(ledger.answers)  # what the search goes by: a dying predecessor may have answered meanwhile
            self._ledger = ledger
            ledger.paused = self._paused
            if self._paused:
                self._clock.pause()
            if self._paused or self._stopped:
                self._signal()
        try:
            yield
            self._searched = True
        finally:
            with self._lock, ledger.lock:
                ledger.over = True
                self._clock.resume()
                self._ledger = None
                self._closed = not self._searched  # a search that was broken off has a successor, who answers the rest

    def heed(self) -> None:
        """Answer every edit that is there and can be answered now. Raises RunDirError on a full disk: try again."""
        with self._lock:
            for found in () if self._closed else read_edits(self._attempt.run, self._answered):
                if found.fault is not None:
                    self._refuse(found, found.fault)
                elif self._ledger is not None:
                    with self._ledger.lock:
                        self._answer(found)
                elif self._searched or isinstance(found.edit, Pause | Resume | Cancel):
                    self._answer(found)

    def tell(self) -> None:
        """Let running trials know where the clock stands."""
        with self._lock:
            self._signal()

    def _adopt(self, earlier: Mapping[str, Record]) -> None:
        """Go by what predecessors have answered, then by what this attempt has."""
        self._answered |= earlier.keys()
        changes = [*applied(earlier), *self._own]
        self._paused = paused_by(changes)
        self._stopped = [change.edit.trial_id for change in changes if isinstance(change.edit, StopTrial)]
        for change in changes:
            if isinstance(change.edit, Cancel) and change not in self._own:
                raise ConfigError("was cancelled, which is for good: start another sweep", f"control.{change.seq}")
            if isinstance(change.edit, Extend):
                self._clock.extend(change.edit.wall_clock_s, change.edit.accelerator_hours)

    def _answer(self, found: Found) -> None:
        assert found.seq is not None  # or it would have a fault
        try:
            change = self._admitted(found.seq, found.edit)
        except SimPOError as error:
            self._refuse(found, error)
        except Exception as error:  # whatever a file holds, the sweep goes on
            log.exception("control/%s cannot be answered", found.name)
            self._refuse(found, ConfigError(f"cannot be answered ({type(error).__name__}: {error})", "action"))
        else:
            facts = change.as_dict() | {"file": found.name}
            if change.number is not None or isinstance(change.edit, StopTrial):
                facts["trial_id"] = trial_id(change.number) if change.number is not None else change.edit.trial_id
            self._attempt.append(APPLIED, f"edit {change.seq}: {_said(change)}", facts)
            self._answered.add(found.name)
            self._own.append(change)
            self._apply(change)

    def _refuse(self, found: Found, why: SimPOError) -> None:
        action = getattr(found.edit, "action", None)
        facts = {"seq": found.seq, "file": found.name, "action": action, "field": why.field, "message": why.message}
        message = f"edit {found.seq or found.name} ({action or 'unreadable'}) is refused: {why}"
        self._attempt.append(REFUSED, message, facts, level="warn")
        self._answered.add(found.name)

    def _admitted(self, seq: int, edit: Any) -> Change:
        """Raises SimPOError for what cannot be done."""
        ledger, compared = self._ledger, self._attempt.run.prepared.exists()
        # In a comparison trials may still run when nothing more will start.
        over = self._searched if ledger is None else ledger.over and (not compared or isinstance(edit, SEARCH_EDITS))
        if isinstance(edit, Cancel):
            if compared:
                raise ConfigError("this is one of a comparison's sweeps: end the comparison itself", "action")
        elif over:
            raise ConfigError("the search is over: only cancel is heard during the finals", "action")
        elif isinstance(edit, SEARCH_EDITS):
            assert ledger is not None  # heed has waited for it
            if compared:
                raise ConfigError("a comparison's sweeps all have the same budget and space: start another", "action")
            return ledger.study.admit(seq, edit)
        else:
            self._check_life(edit, ledger)
        return Change(seq=seq, edit=edit, after=0 if ledger is None else len(ledger.study.asks))

    def _check_life(self, edit: Pause | Resume | StopTrial, ledger: Ledger | None) -> None:
        if isinstance(edit, Pause) and self._paused:
            raise ConfigError("is paused already: resume it", "action")
        if isinstance(edit, Resume) and not self._paused:
            raise ConfigError("is not paused", "action")
        if isinstance(edit, StopTrial) and ledger is not None:
            endings = {trial_id(number): state for number, state in ledger.endings().items()}
            if edit.trial_id not in endings:
                raise ConfigError(f"no trial {edit.trial_id} was asked yet", "trial_id")
            if endings[edit.trial_id]:
                raise ConfigError(f"{edit.trial_id} is over already: {endings[edit.trial_id]}", "trial_id")

    def _apply(self, change: Change) -> None:
        edit, ledger = change.edit, self._ledger
        if isinstance(edit, Cancel):
            self._cancel()
        elif isinstance(edit, Pause | Resume):
            self._paused = isinstance(edit, Pause)
            if ledger is not None:
                ledger.paused = self._paused
                self._clock.pause() if self._paused else self._clock.resume()
                self._signal()
        elif isinstance(edit, StopTrial):
            self._stopped.append(edit.trial_id)
            self._signal()
        else:
            assert ledger is not None
            ledger.study.apply(change)
            if isinstance(edit, Extend):
                self._clock.extend(edit.wall_clock_s, edit.accelerator_hours)
                self._signal()

    def _signal(self) -> None:
        deadline = None if self._paused else self._clock.deadline
        self._attempt.signal(signals(hold=self._paused, stop=self._stopped, deadline=deadline))


def _said(change: Change) -> str:
    edit = change.edit
    if isinstance(edit, Extend):
        raised = edit.model_dump(exclude={"action"}, exclude_none=True)
        return "the budget has now " + ", ".join(f"{key} {value:g}" for key, value in raised.items())
    if isinstance(edit, StopTrial):
        return f"{edit.trial_id} is being stopped"
    if change.number is not None:
        return f"{trial_id(change.number)} will train a point given by hand"
    if isinstance(edit, Pause | Resume | Cancel):
        return {"pause": "paused", "resume": "goes on", "cancel": "cancelled"}[edit.action]
    return f"another space from trial {change.after} on: {', '.join(edit.axes)}"
