"""Work for a client who may leave: an ASGI server says so, but ends nothing by itself."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for it; nobody reads that answer."""
_AT_ONCE_S = 0.02  # who leaves earlier is missed so much later; what is done by then needs no task to watch for it
ResultT = TypeVar("ResultT")


class ClientGone(Exception):
    """The client closed its connection before it had an answer: nobody is there to read one."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of `work`, which is cancelled as soon as the client leaves. Raises ClientGone then.

    The body of the request must have been read. What `work` holds is given back before anybody goes on: it runs in the
    caller's own task, which is cancelled and then set free again, as `asyncio.timeout` does it.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelled_before = task.cancelling()
    watching: asyncio.Task[None] | None = None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    def begin() -> None:
        nonlocal watching
        watching = loop.create_task(watch())

    loop = asyncio.get_running_loop()
    timer = loop.call_later(_AT_ONCE_S, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.cancelling() == cancelled_before + 1:  # else somebody else wants an end too
            raise ClientGone from None
        raise
    finally:
        timer.cancel()
        if watching is not None:
            watching.cancel()
        if gone:
            task.uncancel()
