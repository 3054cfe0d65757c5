"""The client for asyncio: `AsyncClient(url, key)` has every method of `Client`, to be awaited, with the same errors.

Nothing is written twice. A method of `Client` runs as it stands, in a greenlet of the event loop's own thread; where it
would wait (for an answer, the next line of a stream, a pause) it hands the awaitable to the loop (`client_bridge`). No
thread is held, and cancelling a task reaches the call.

    async with AsyncClient("http://127.0.0.1:8080", key) as client:
        sweep = await client.create_sweep({"name": "first"})
        async for event in client.events("sweeps", sweep.id):
            print(event.message)

The types of its methods stand in `client_async.pyi`, made from `Client` by `python -m tests.async_stub --write`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import httpx

from service.client import Client
from service.client_bridge import AwaitedHttp, Facade, wait_for


class AsyncClient(Facade):
    """A connection to one service. Use as an async context manager, or await `close`."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout_s: float = 30.0,
        attempts: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """As `Client`'s."""

        def pause(seconds: float) -> None:
            wait_for(sleep(seconds))

        def connect(**settings: Any) -> AwaitedHttp:
            return AwaitedHttp(httpx.AsyncClient(**{**settings, "transport": transport}))

        blocking = Client(url, key, timeout_s=timeout_s, attempts=attempts, sleep=pause, clock=clock, connect=connect)
        super().__init__(blocking)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
