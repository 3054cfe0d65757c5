"""From the decoder's thread to an event loop, which is woken once for all that comes before it looks."""

import asyncio
from collections import deque
from typing import Any


class Outbox:
    """What a thread has for the queues of one loop, in its order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._items: deque[tuple[asyncio.Queue[Any], Any]] = deque()
        self._is_woken = False

    def put(self, queue: asyncio.Queue[Any], item: Any) -> None:
        """From any thread. Raises RuntimeError when the loop is closed."""
        if self.loop.is_closed():
            raise RuntimeError("the event loop is closed")
        self._items.append((queue, item))
        if not self._is_woken:
            self._is_woken = True
            self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False  # first: what is put from here on wakes it again, or is still taken below
        while self._items:
            queue, item = self._items.popleft()
            queue.put_nowait(item)
