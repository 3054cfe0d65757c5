"""Once an hour what is old is forgotten: stored answers to POSTs, files of deleted datasets, deliveries, audit.

How old something is only the wall clock can tell, and wall clocks are set: two days forward, and every Idempotency-Key
would be unknown, so that a client's second try would order a second time. So nothing is forgotten while the clock
cannot be believed; late is safe.
"""

import logging
from datetime import datetime

from sqlalchemy import select

from service.audit import forget as forget_audit
from service.clock import Clock
from service.datasets import forget_files
from service.deliveries import forget as forget_deliveries
from service.idempotency import Posts
from service.settings import Settings
from service.store import DatabaseNow, Store

log = logging.getLogger(__name__)

_JUMP_S = 60.0
_APART_S = 300.0


class Housekeeping:
    """To be called once an hour. The first call only looks at the clock."""

    def __init__(self, store: Store, settings: Settings, clock: Clock, posts: Posts) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._posts = posts
        self._ahead_s: float | None = None

    def __call__(self) -> None:
        """Forget, if the clock can be believed."""
        now = self._clock.now()
        if not self._believable(now):
            return
        self._posts.forget_old()
        with self._store.read() as session:
            forget_files(session, self._settings, now)
        with self._store.write() as session:
            forget_deliveries(session, now)
        if self._settings.audit_days is not None:
            forget_audit(self._store, now, days=self._settings.audit_days)

    def _believable(self, now: datetime) -> bool:
        """Whether the clock was not set since the last call, and agrees with the database's."""
        before, self._ahead_s = self._ahead_s, now.timestamp() - self._clock.monotonic()
        if before is None:
            return False
        if abs(self._ahead_s - before) > _JUMP_S:
            log.warning("the clock was set by %.0f s: nothing is forgotten for now", self._ahead_s - before)
            return False
        with self._store.read() as session:
            apart_s = now.timestamp() - session.execute(select(DatabaseNow())).scalar_one()
        if abs(apart_s) > _APART_S:
            log.error("clock and database are %.0f s apart: nothing is forgotten until they agree", apart_s)
            return False
        return True
