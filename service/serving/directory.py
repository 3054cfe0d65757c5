"""Deployments by project as the gateway remembers them, so that a request for one needs no query."""

import threading
from collections.abc import Sequence

from service.clock import Clock
from service.models import Deployment

REMEMBERED_S = 1.0
"""What another process changed is seen at the latest so many seconds later; what this one changed, at once."""
_MAX_PROJECTS = 1024


class Directory:
    """A short memory. All methods may be called from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rows: dict[str, tuple[Sequence[Deployment], float]] = {}  # project -> rows, until when
        self._changes = 0

    def remembered(self, project: str) -> Sequence[Deployment] | None:
        """Rows of a project that were read a moment ago; nobody changes them."""
        with self._lock:
            rows, until = self._rows.get(project, ((), float("-inf")))
        return rows if self._clock.monotonic() < until else None

    @property
    def changes(self) -> int:
        """How often it was made to forget; `remember` wants to know it as it was before the query."""
        with self._lock:
            return self._changes

    def remember(self, project: str, rows: Sequence[Deployment], changes: int) -> None:
        """Rows that were just read; not kept where something changed meanwhile."""
        with self._lock:
            if changes == self._changes:
                if len(self._rows) >= _MAX_PROJECTS:
                    self._rows.clear()
                self._rows[project] = (rows, self._clock.monotonic() + REMEMBERED_S)

    def forget(self) -> None:
        """Some deployment changed."""
        with self._lock:
            self._changes += 1
            self._rows.clear()
