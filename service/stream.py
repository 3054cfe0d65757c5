"""Events as server-sent events, for hundreds of watchers at the price of one small query a beat.

One task asks the database how far the watched parents have come; only what is new is then read, once per parent and
place, however many watch it.
"""

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from service import events
from service.models import Sweep
from service.models_registry import Promotion
from service.states import LIVE_PROMOTIONS, TERMINAL
from service.store import Store

log = logging.getLogger(__name__)

_BATCH = 200
PING = ": ping\n\n"
RETRY_MS = (1000, 5000)
"""When a client whose stream had to end may come back: somewhere between, so that hundreds do not come at once."""
DONE = "event: done\ndata: {}\n\n"


@dataclass(kw_only=True)
class _Channel:
    """How far one parent has come."""

    seq: int = 0
    over: bool = False
    watchers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    batches: dict[int, asyncio.Task[tuple[str, int]]] = field(default_factory=dict)
    """Cursor -> (text, new cursor): watchers at the same place share one read."""


class Hub:
    """All open streams of this process."""

    def __init__(self, store: Store, *, poll_s: float = 0.1, heartbeat_s: float = 15.0) -> None:
        """`poll_s`: between two looks. `heartbeat_s`: silence after which a comment is sent."""
        self._store = store
        self._poll_s = poll_s
        self._heartbeat_s = heartbeat_s
        self._channels: dict[str, _Channel] = {}
        self._poller: asyncio.Task[None] | None = None
        self._closing = False

    async def stream(self, parent_id: str, after: int) -> AsyncIterator[str]:
        """The wire text of every event past `after`, then of each new one; ends with `done` when the parent is over."""
        channel = self._join(parent_id)
        cursor = after
        try:
            await self._look([parent_id])
            while not self._closing:
                changed = channel.changed
                # Read before the events: all events of a state that is over are stored with it.
                seq, over = channel.seq, channel.over
                while cursor < seq:
                    text, cursor = await self._batch(parent_id, channel, cursor)
                    yield text
                if over:
                    yield DONE
                    return
                try:
                    await asyncio.wait_for(changed.wait(), self._heartbeat_s)
                except TimeoutError:
                    yield PING
            yield f"retry: {random.randint(*RETRY_MS)}\n\n"
        finally:
            self._leave(parent_id, channel)

    @property
    def watchers(self) -> int:
        """Open streams."""
        return sum(channel.watchers for channel in list(self._channels.values()))

    def drain(self) -> None:
        """End every stream, now and from now on, without `done`: clients resume elsewhere, a little later."""
        self._closing = True
        for channel in self._channels.values():
            channel.changed.set()

    async def close(self) -> None:
        """The same, and look no more."""
        self.drain()
        if self._poller is not None:
            self._poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poller

    def _join(self, parent_id: str) -> _Channel:
        channel = self._channels.setdefault(parent_id, _Channel())
        channel.watchers += 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        return channel

    def _leave(self, parent_id: str, channel: _Channel) -> None:
        channel.watchers -= 1
        if channel.watchers == 0:
            self._channels.pop(parent_id, None)

    async def _poll(self) -> None:
        while self._channels:
            await asyncio.sleep(self._poll_s)
            try:
                await self._look(list(self._channels))
            except Exception as error:  # the database may be back at the next look
                log.warning("event streams: %s", error)

    async def _look(self, parent_ids: list[str]) -> None:
        for parent_id, seq, over in await run_in_threadpool(self._progress, parent_ids):
            channel = self._channels.get(parent_id)
            if channel is None or (channel.seq, channel.over) == (seq, over):
                continue
            channel.seq, channel.over = seq, over
            channel.batches.clear()
            channel.changed.set()
            channel.changed = asyncio.Event()

    def _progress(self, parent_ids: list[str]) -> list[tuple[str, int, bool]]:
        query = select(Sweep.id, Sweep.event_seq, Sweep.state).where(Sweep.id.in_(parent_ids))
        with self._store.read() as session:
            found = [(id, seq, state in TERMINAL) for id, seq, state in session.execute(query)]
            if len(found) < len(parent_ids):  # the others are promotions
                more = select(Promotion.id, Promotion.event_seq, Promotion.state).where(Promotion.id.in_(parent_ids))
                found += [(id, seq, state not in LIVE_PROMOTIONS) for id, seq, state in session.execute(more)]
            return found

    async def _batch(self, parent_id: str, channel: _Channel, cursor: int) -> tuple[str, int]:
        task = channel.batches.get(cursor)
        if task is None:
            task = asyncio.create_task(run_in_threadpool(self._read, parent_id, cursor))
            channel.batches[cursor] = task
        return await asyncio.shield(task)

    def _read(self, parent_id: str, cursor: int) -> tuple[str, int]:
        with self._store.read() as session:
            found = events.read(session, parent_id, after=cursor, limit=_BATCH)
        text = "".join(_wire(events.to_json(event)) for event in found)
        return text, found[-1].seq


def _wire(event: dict[str, object]) -> str:
    # JSON escapes line ends, so the data is one line.
    return f"id: {event['id']}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n"
