"""Work for a client who may leave: an ASGI server says so, but ends nothing by itself."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for it; nobody reads that answer."""
ResultT = TypeVar("ResultT")


class ClientGone(Exception):
    """The client closed its connection before it had an answer: nobody is there to read one."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of `work`, which is cancelled as soon as the client leaves. Raises ClientGone then.

    The body of the request must have been read.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, watching):
            task.cancel()
        # Cancellation is waited for: what `work` holds is given back before anybody goes on.
        await asyncio.gather(working, watching, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
