"""Deployments that answer, by project, as the gateway remembers them, so that a request for one needs no query."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from service.clock import Clock
from service.serving.declared import DesiredDeployment

REMEMBERED_S = 1.0
"""After so many seconds one request reads anew, and the others go on with what there was, for as long again at most.
What this process changed is seen at once."""
_MAX_PROJECTS = 1024


@dataclass(frozen=True, kw_only=True)
class Served:
    """A deployment that answers."""

    id: str
    name: str
    prefix: str
    """Where Serve answers for its champion."""
    champion: DesiredDeployment
    idle_s: int | None
    """Seconds after which it sleeps; None: never."""


class Directory:
    """A short memory. All methods may be called from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Mapping[str, Served], float]] = {}  # project -> by name, until when
        self._changes = 0

    def remembered(self, project: str) -> Mapping[str, Served] | None:
        """What answered a moment ago, by name. None: read it, and `remember`; only one is told so at a time."""
        now = self._clock.monotonic()
        with self._lock:
            known, until = self._known.get(project, (None, 0.0))
            if known is None or now < until:
                return known
            self._known[project] = (known, now + REMEMBERED_S)
            return None

    @property
    def changes(self) -> int:
        """How often it was made to forget; `remember` wants to know it as it was before the query."""
        with self._lock:
            return self._changes

    def remember(self, project: str, known: Mapping[str, Served], changes: int) -> None:
        """What was just read; not kept where something changed meanwhile."""
        with self._lock:
            if changes == self._changes:
                if len(self._known) >= _MAX_PROJECTS:
                    self._known.clear()
                self._known[project] = (known, self._clock.monotonic() + REMEMBERED_S)

    def forget(self) -> None:
        """Some deployment changed."""
        with self._lock:
            self._changes += 1
            self._known.clear()
