"""What a running trial heeds before each step: hold, stop, a moved deadline. Light.

The driver replaces one small file (`Attempt.signal`); a trial looks at its inode before each step and reads it only
when that has changed. Nothing is killed: a trial ends itself.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

HOLD_S = 0.2
"""How often a held trial looks again."""

Word = Literal["go", "hold", "stop", "late"]

REASONS: Mapping[str, str] = {"stop": "stopped by hand", "late": "the wall-clock budget was spent"}
"""Why a trial ended, by the word that ended it."""


class Signals:
    """One trial's view of its attempt's signals."""

    def __init__(
        self,
        path: str | None,
        trial_id: str,
        deadline: float | None,
        clock: Callable[[], float],
        agree: Callable[[Word], Word] = lambda word: word,
    ) -> None:
        """agree: makes of one worker's word that of all; called by all at the same steps."""
        self._agree = agree
        self.fetch: Callable[[], None] = lambda: None
        """Sees that the file is up to date where nobody else of this node does."""
        self._word: Word = "go"
        self._path = None if path is None else Path(path)
        self._trial_id = trial_id
        self._clock = clock
        self._seen: tuple[int, int] | None = None
        self._values: dict[str, Any] = {"deadline": deadline}

    @property
    def reason(self) -> str:
        """Why it was to end."""
        return REASONS[self._word]

    def ended(self) -> bool:
        """Whether the trial must end before its next step; waits while it is held."""
        while self._agreed() == "hold":
            time.sleep(HOLD_S)
        return self._word != "go"

    def word(self) -> Word:
        """What to do now. Unreadable signals leave things as they were."""
        self._look()
        if self._trial_id in self._values.get("stop", ()):
            return "stop"
        if self._values.get("hold"):
            return "hold"
        deadline = self._values["deadline"]
        return "late" if deadline is not None and self._clock() > deadline else "go"

    def _agreed(self) -> Word:
        self._word = self._agree(self.word())
        return self._word

    def _look(self) -> None:
        if self._path is None:
            return
        self.fetch()
        try:
            there = self._path.stat()
            if (there.st_ino, there.st_mtime_ns) != self._seen:
                self._values |= json.loads(self._path.read_text(encoding="utf-8"))
                self._seen = (there.st_ino, there.st_mtime_ns)
        except (OSError, ValueError):
            return


def signals(*, hold: bool, stop: list[str], deadline: float | None) -> dict[str, Any]:
    """The file's content. deadline: unix seconds; None without a limit."""
    return {"hold": hold, "stop": stop, "deadline": deadline}
