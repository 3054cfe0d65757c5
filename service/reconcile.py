"""The only mover of rows: a thread that brings what is to what was wished, one pass after another.

Level-triggered: everything is decided from the database, the run directories and the clusters' lists, so a pass may be
cut off or missed at no loss. One process acts at a time, by a lease; two that believe so at once do no harm, because
attempts are unique rows and outcomes are fenced by the attempt's number.
"""

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable

from service.clock import Clock
from service.cluster import Jobs
from service.rollout import Rollout
from service.serving.deployer import Deployer
from service.settings import Settings
from service.store import Store
from service.supervise import Supervisor

log = logging.getLogger(__name__)

LEASE = "reconciler"
_LEASE_S = 2.0  # at least; after a kill -9 the next process waits so long
_HOUSEKEEPING_S = 3600.0


class Reconciler:
    """Owns the thread, the lease and the rhythm."""

    def __init__(
        self,
        *,
        store: Store,
        jobs: Jobs,
        deployer: Deployer,
        settings: Settings,
        clock: Clock,
        housekeeping: Callable[[], None] = lambda: None,
        failpoint: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`housekeeping`: done once an hour. `failpoint`: called at named places; tests end the process there."""
        self._store = store
        self._interval_s = settings.reconcile_interval_s
        self._clock = clock
        self._sweeps = Supervisor(store, jobs, settings, clock, failpoint)
        self._deployments = Rollout(store, deployer, clock, failpoint)
        self._housekeeping = housekeeping
        self._housekept_at = float("-inf")
        self._renew_at = 0.0
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to work in a thread of its own."""
        self._thread = threading.Thread(target=self._loop, name="reconciler", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 15.0) -> None:
        """End after the pass at work and hand the lease on."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        try:
            self._store.release_lease(LEASE, self._holder)
        except Exception as error:  # the database may be gone already; the lease runs out by itself
            log.warning("lease not released: %s", error)

    def wake(self) -> None:
        """There is something new: look now."""
        self._wake.set()

    @property
    def alive(self) -> bool:
        """True while the thread works."""
        return self._thread is not None and self._thread.is_alive()

    def run_once(self) -> bool:
        """One pass, if this process has the lease. True when another one at once is worth it."""
        if not self._leads():
            return False
        again = self._sweeps.step()
        self._deployments.step()
        if self._clock.monotonic() - self._housekept_at > _HOUSEKEEPING_S:
            self._housekept_at = self._clock.monotonic()
            self._housekeeping()
        return again

    def _leads(self) -> bool:
        """Take or keep the lease; a third of its time may pass before it is written again."""
        now = self._clock.monotonic()
        if now < self._renew_at:
            return True
        ttl_s = max(_LEASE_S, 3 * self._interval_s)
        leads = self._store.take_lease(LEASE, self._holder, ttl_s)
        self._renew_at = now + ttl_s / 3 if leads else 0.0
        return leads

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                again = self.run_once()
            except Exception:
                # The loop outlives everything: the database may be back at the next pass.
                log.exception("pass failed")
                again = False
            if not again:
                self._wake.wait(self._interval_s)
