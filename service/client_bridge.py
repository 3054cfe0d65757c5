"""How code that blocks is awaited: it runs in a greenlet, which hands what it waits for to the event loop.

`Facade(object)` has every method of the object; in them, `wait_for` is the only way to wait, and `AwaitedHttp` is what
they see of httpx. Works as SQLAlchemy's asyncio extension does.
"""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import greenlet
import httpx


class Facade:
    """Everything public of an object that blocks by `wait_for` alone, to be awaited."""

    def __init__(self, blocking: object) -> None:
        self._blocking = blocking

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._blocking, name)
        if inspect.isgeneratorfunction(found):
            return functools.wraps(found)(lambda *given, **named: _iterate(found(*given, **named)))
        if inspect.ismethod(found):
            return functools.wraps(found)(lambda *given, **named: _run(found, *given, **named))
        # A topic, like `datasets`; anything else is a plain value.
        return Facade(found) if type(found).__module__.startswith("service.client") else found


class AwaitedHttp:
    """What `Client` uses of an httpx.Client, over an AsyncClient. Only inside a greenlet of `_run`."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    def request(self, method: str, path: str, **request: Any) -> httpx.Response:
        response: httpx.Response = wait_for(self._http.request(method, path, **_sendable(request)))
        return response

    @contextmanager
    def stream(self, method: str, path: str, **request: Any) -> Iterator["_AwaitedResponse"]:
        timeout = {"timeout": request.pop("timeout")} if "timeout" in request else {}
        onward = self._http.build_request(method, path, **request, **timeout)
        response = _AwaitedResponse(wait_for(self._http.send(onward, stream=True)))
        try:
            yield response
        finally:
            response.close()

    def close(self) -> None:
        wait_for(self._http.aclose())


def wait_for(awaitable: Awaitable[Any]) -> Any:
    """What it comes to, or raises. Only inside a call of a `Facade`."""
    parent = greenlet.getcurrent().parent
    assert parent is not None, "only inside a call of an AsyncClient"
    return parent.switch(awaitable)


class _AwaitedResponse:
    """What `Client` uses of an httpx.Response that streams."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)

    def read(self) -> bytes:
        body: bytes = wait_for(self._response.aread())
        return body

    def iter_lines(self) -> Iterator[str]:
        lines = self._response.aiter_lines()
        while True:
            try:
                yield wait_for(anext(lines))
            except StopAsyncIteration:
                return

    def close(self) -> None:
        wait_for(self._response.aclose())


def _sendable(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """With a body that an asynchronous client takes: a file is read piece by piece off the loop, anew at each try."""
    pieces: Any = request.get("content")
    if not hasattr(pieces, "__iter__") or isinstance(pieces, bytes | str):
        return request

    async def read() -> AsyncIterator[bytes]:
        waiting = iter(pieces)
        while (piece := await asyncio.to_thread(next, waiting, None)) is not None:
            yield piece

    return {**request, "content": read()}


async def _run(blocking: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """The result of a function that blocks by `wait_for` alone. What it raises is raised here, and a cancel in it."""
    worker = greenlet.greenlet(lambda: blocking(*given, **named))
    worker.gr_context = greenlet.getcurrent().gr_context
    found = worker.switch()
    while not worker.dead:
        try:
            answer = await found
        except BaseException as error:
            found = worker.throw(error)
        else:
            found = worker.switch(answer)
    return found


async def _iterate(blocking: Iterator[Any]) -> AsyncIterator[Any]:
    ended = object()
    try:
        while (item := await _run(next, blocking, ended)) is not ended:
            yield item
    finally:
        await _run(blocking.close)  # type: ignore[attr-defined]  # a generator: it ends its stream
