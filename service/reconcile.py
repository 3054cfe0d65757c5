"""The only mover of rows: threads that bring what is to what was wished, one pass after another.

Level-triggered: everything is decided from the database, the run directories and the clusters' lists, so a pass may be
cut off or missed at no loss. One process acts at a time, by leases; two that believe so at once do no harm, because
attempts are unique rows and outcomes are fenced by the attempt's number.
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable

import httpx

from service.clock import Clock
from service.cluster import Jobs
from service.courier import Courier
from service.examine import Doctor, Examinations
from service.metrics import Metrics
from service.promote import Promoter
from service.rollout import Rollout
from service.serving.deployer import Deployer
from service.settings import Settings
from service.store import Store
from service.supervise import Supervisor
from service.tuner import Tuner

log = logging.getLogger(__name__)

STOP_S = 10.0
"""How long the passes at work may take to end."""
_LEASE_S = 1.0  # at least; after a kill -9 the next process waits so long
_HOUSEKEEPING_S = 3600.0
_REST_S = 0.1  # between two passes, however soon somebody wants the next
_SHARE = 9  # and after a long one so many times what it took, within the interval: a tenth of a busy process
_GLANCE_S = 0.1


class Reconciler:
    """Loops, each with a thread and a lease of its own: Serve, receivers and the doctor take long, no sweep waits."""

    def __init__(
        self,
        *,
        store: Store,
        jobs: Jobs,
        deployer: Deployer,
        settings: Settings,
        clock: Clock,
        doctor: Doctor | None = None,
        metrics: Metrics | None = None,
        webhooks: Callable[[], httpx.AsyncBaseTransport] | None = None,
        housekeeping: Callable[[], None] = lambda: None,
        failpoint: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`doctor`: default: a process. `webhooks`: how they travel; default: to public addresses.

        `metrics`: of this process. `housekeeping`: done once an hour.

        `failpoint`: called at named places; tests end the process there.
        """
        self._clock = clock
        self._supervisor = Supervisor(store, jobs, settings, clock, failpoint)
        self._promoter = Promoter(store, settings, clock, failpoint)
        self._tuner = Tuner(store, settings, clock)
        self._rollout = Rollout(store, deployer, clock, failpoint)
        self._examinations = Examinations(store, settings, clock, doctor)
        metrics = metrics or Metrics(clock)
        self._courier = Courier(
            store, settings, clock, metrics=metrics, transport=webhooks, done=lambda: self._loops["webhooks"].wake()
        )
        self._housekeeping = housekeeping
        self._housekept_at = float("-inf")
        holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._loops = {
            name: _Loop(
                name,
                step,
                glance,
                store=store,
                clock=clock,
                metrics=metrics,
                holder=holder,
                interval_s=settings.reconcile_interval_s,
            )
            for name, step, glance in (
                ("reconciler", self._step_sweeps, self._supervisor.glance),
                ("deployments", self._step_deployments, None),
                ("webhooks", self._courier.step, None),
                ("datasets", self._step_datasets, None),
            )
        }

    def start(self) -> None:
        """Begin to work."""
        for loop in self._loops.values():
            loop.start()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """End after the passes at work, at the latest after `timeout_s`, and hand the leases on."""
        deadline = self._clock.monotonic() + timeout_s
        for loop in self._loops.values():
            loop.stop()
        for loop in self._loops.values():
            loop.join(max(0.0, deadline - self._clock.monotonic()))
        self._courier.close()

    def wake(self, *names: str) -> None:
        """There is something new: look now. `names`: the loops that it is for; default: all of them."""
        for name in names or self._loops:
            self._loops[name].wake()

    @property
    def alive(self) -> bool:
        """True while the threads work."""
        return all(loop.alive for loop in self._loops.values())

    @property
    def delivering(self) -> bool:
        """Whether a webhook's delivery is on its way from here."""
        return not self._courier.idle

    def run_once(self) -> None:
        """One pass over everything that this process has the lease for."""
        for loop in self._loops.values():
            loop.run_once()

    def _step_sweeps(self) -> bool:
        if self._clock.monotonic() - self._housekept_at > _HOUSEKEEPING_S:
            self._housekept_at = self._clock.monotonic()
            self._housekeeping()
        ended = self._supervisor.step()
        promoted = self._promoter.step()
        return self._tuner.step() or promoted or ended

    def _step_deployments(self) -> bool:
        self._rollout.step()
        return False

    def _step_datasets(self) -> bool:
        return self._examinations.step(self._loops["datasets"].holds)


class _Loop:
    """One step, again and again, by whoever has its lease."""

    def __init__(
        self,
        name: str,
        step: Callable[[], bool],
        glance: Callable[[], bool] | None,
        *,
        store: Store,
        clock: Clock,
        metrics: Metrics,
        holder: str,
        interval_s: float,
    ) -> None:
        self._name = name
        self._step = step
        self._glance = glance
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._holder = holder
        self._interval_s = interval_s
        self._renew_at = 0.0
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)
        try:
            self._store.release_lease(self._name, self._holder)
        except Exception as error:  # the database may be gone already; the lease runs out by itself
            log.warning("lease of %s not released: %s", self._name, error)

    def wake(self) -> None:
        self._wake.set()

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def holds(self) -> bool:
        """Whether a long step may go on: nobody wants its end, and the lease, kept by this call, is still ours."""
        return not self._stopping.is_set() and self._leads()

    def run_once(self) -> bool:
        """One step, if this process has the lease. True when another one at once is worth it."""
        leads = self._leads()
        self._metrics.leads.labels(self._name).set(leads)
        if not leads:
            return False
        with self._metrics.one_pass(self._name):
            return self._step()

    def _leads(self) -> bool:
        """Take or keep the lease; a third of its time may pass before it is written again."""
        now = self._clock.monotonic()
        if now < self._renew_at:
            return True
        ttl_s = max(_LEASE_S, 3 * self._interval_s)
        leads = self._store.take_lease(self._name, self._holder, ttl_s)
        self._renew_at = now + ttl_s / 3 if leads else 0.0
        return leads

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            began = time.thread_time()
            try:
                again = self.run_once()
            except Exception:
                # The loop outlives everything: the database may be back at the next pass.
                log.exception("%s: pass failed", self._name)
                again = False
            if not again:
                # However often it is woken, most of the time belongs to the requests of this process.
                self._stopping.wait(max(_REST_S, min(_SHARE * (time.thread_time() - began), self._interval_s)))
                self._wait()

    def _wait(self) -> None:
        """Until it is time for the next pass, or somebody wants one; meanwhile glance at what is new."""
        left = self._interval_s
        pause = left if self._glance is None else _GLANCE_S
        while left > 0 and not self._wake.wait(min(pause, left)):
            left -= pause
            began = self._clock.monotonic()
            if self._glance is None or not self._renew_at:
                continue  # only for who leads
            try:
                if self._leads() and self._glance():
                    return
            except Exception as error:
                log.warning("%s: %s", self._name, error)
            pause = max(_GLANCE_S, 10 * (self._clock.monotonic() - began))
