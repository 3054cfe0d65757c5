"""Who carries the outbox of webhooks out: one step looks what is due, an event loop of its own does the sending.

A step never waits for a receiver, and a receiver never holds up another one: each attempt has its own task and a limit
on its whole time, and a webhook has a few on their way at most.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from datetime import timedelta

import httpx

from service import deliveries
from service.clock import Clock
from service.deliveries import Due, Outcome
from service.metrics import Metrics
from service.settings import Settings
from service.store import Store
from service.webhook_reach import Checked, client
from service.webhook_wire import headers_of
from sweeps.judges_reach import NotPublic

log = logging.getLogger(__name__)

_CLOSE_S = 2.0
_UNRECORDED_S = 10.0  # a receiver must not be told again and again because our database does not write


class Courier:
    """Delivers from one process. Its thread starts with the first delivery."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        clock: Clock,
        *,
        metrics: Metrics,
        transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """`transport`: how requests travel; default: to checked addresses alone. `done`: called after each attempt."""
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._transport = transport or (lambda: Checked(loopback=settings.webhook_loopback))
        self._timeout_s = settings.webhook_timeout_s
        self._disable_after = timedelta(seconds=settings.webhook_disable_after_s)
        self._done = done
        self._lock = threading.Lock()
        self._busy: dict[str, set[str]] = {}
        """webhook -> its deliveries on their way"""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._http: httpx.AsyncClient | None = None

    def step(self) -> bool:
        """Send off what is due. False: there is no more to look for at once; the end of each attempt wakes the loop."""
        with self._lock:
            busy = {webhook: set(ids) for webhook, ids in self._busy.items()}
        with self._store.read() as session:
            found = deliveries.due(session, self._clock.now(), busy)
        for item in found:
            with self._lock:
                self._busy.setdefault(item.webhook_id, set()).add(item.id)
            asyncio.run_coroutine_threadsafe(self._carry(item), self._running())
        return False

    def close(self) -> None:
        """Break off what is on its way: its rows are still PENDING, and whoever comes next sends them again."""
        if self._loop is None or self._thread is None:
            return
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_S)
        self._loop = self._thread = self._http = None

    @property
    def idle(self) -> bool:
        """True while nothing is on its way."""
        with self._lock:
            return not self._busy

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run, args=(self._loop,), name="webhook-sends", daemon=True)
            self._thread.start()
        return self._loop

    async def _carry(self, item: Due) -> None:
        try:
            started = self._clock.monotonic()
            outcome = await self._attempt(item)
            self._metrics.webhook_seconds.observe(self._clock.monotonic() - started)
            self._metrics.webhook_attempts.labels(await asyncio.to_thread(self._record, item, outcome)).inc()
        except Exception:
            # The row is as it was, so it will be tried again.
            log.exception("%s: delivery not recorded", item.id)
            await asyncio.sleep(_UNRECORDED_S)
        finally:
            with self._lock:
                self._busy[item.webhook_id].discard(item.id)
                if not self._busy[item.webhook_id]:
                    del self._busy[item.webhook_id]
            self._done()

    async def _attempt(self, item: Due) -> Outcome:
        headers = headers_of(item.secrets, item.message_id, item.body, self._clock.now())
        try:
            if self._http is None:
                self._http = client(self._transport(), self._timeout_s)
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.stream("POST", item.url, content=item.body, headers=headers) as answer,
            ):
                return _outcome(answer)  # its body is never read: the connection ends here
        except NotPublic:
            return Outcome(status=None, message="The host has no address on the public internet, or one that is not.")
        except (TimeoutError, httpx.TimeoutException):
            return Outcome(status=None, message=f"No answer within {self._timeout_s:g} s.")
        except httpx.ConnectError:
            return Outcome(status=None, message="No connection: refused, unreachable, or a bad certificate.")
        except httpx.HTTPError:
            return Outcome(status=None, message="The connection broke, or what came was no HTTP.")
        except Exception as error:
            log.error("%s: not sent: %s", item.id, type(error).__name__)
            return Outcome(status=None, message="It could not be sent.")

    def _record(self, item: Due, outcome: Outcome) -> str:
        with self._store.write() as session:
            return deliveries.record(session, item, outcome, self._clock.now(), self._disable_after)


def _outcome(answer: httpx.Response) -> Outcome:
    if answer.is_success:
        return Outcome(status=answer.status_code, message="")
    words = f"Answered {answer.status_code}"
    if answer.is_redirect or 300 <= answer.status_code < 400:
        words += "; redirects are not followed"
    asked = answer.headers.get("retry-after", "")
    wait_s = int(asked) if asked.isascii() and asked.isdecimal() and len(asked) < 8 else 0
    return Outcome(status=answer.status_code, message=f"{words}.", retry_after_s=wait_s)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
