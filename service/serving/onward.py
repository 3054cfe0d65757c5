"""How the gateway asks Ray Serve: over aiohttp's connections, each request for itself.

What is sent is what is given: no cookies, no redirects, no proxy of the environment. None of one user's may go out with
the next one's request, and a client library that looks for such things costs as much as the answer does
(`tests/bench/serving_gateway.py`).
"""

from collections.abc import AsyncIterator, Mapping
from functools import lru_cache
from typing import Protocol

import aiohttp
from yarl import URL

MOST = 1000
"""Requests under way at once; hundreds may stream."""
_CONNECT_S = 5.0
_KEPT_S = 5.0  # less than Serve keeps a connection that rests, so that it is not found closed


class NoAnswer(Exception):
    """Nobody listens, or the connection broke before the answer was whole."""


class NoWord(NoAnswer):
    """Nothing came for as long as was to be waited."""


class Answer(Protocol):
    """The head of an answer, and the way to its body. Who asked for it reads all of that, or closes it."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """By names in any case."""

    async def whole(self) -> bytes:
        """The body; closed where it does not come to its end or nobody waits any more: the replica then stops.

        Raises NoAnswer.
        """

    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises NoAnswer."""

    async def aclose(self) -> None:
        """Nobody reads on: the replica stops."""


def patience(read_s: float, *, connect_s: float = _CONNECT_S) -> aiohttp.ClientTimeout:
    """How long to wait for a connection, and then for each next piece."""
    return aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=read_s)


PATIENCE = patience(600.0)
"""A long answer on a slow machine takes minutes."""


class Onward:
    """The way to one origin. For one event loop."""

    def __init__(self, origin: str) -> None:
        """Nothing is opened before the first request."""
        self._origin = origin.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        patience: aiohttp.ClientTimeout = PATIENCE,
    ) -> Answer:
        """The head of the answer; who asks reads it or closes it. Raises NoAnswer."""
        session = self._session or self._open()
        try:
            answer = await session.request(
                method,
                _url(self._origin + path),
                data=None if content is None else aiohttp.BytesPayload(content),  # else it looks for what fits
                headers=headers,
                timeout=patience,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _named(error) from error
        return _Received(answer)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=MOST, keepalive_timeout=_KEPT_S)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )
        return self._session


class _Received:
    """aiohttp's answer, whose errors are ours."""

    __slots__ = ("_answer", "headers", "status")

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self.status = answer.status
        self.headers: Mapping[str, str] = answer.headers

    async def whole(self) -> bytes:
        try:
            return await self._answer.read()  # which closes where it fails
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _named(error) from error

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._answer.content.iter_any():
                yield piece
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _named(error) from error

    async def aclose(self) -> None:
        self._answer.close()


def _named(error: Exception) -> NoAnswer:
    # One that comes while nobody was connected yet says that nobody listens, not that somebody is slow.
    slow = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError)
    return (NoWord if slow else NoAnswer)(f"{type(error).__name__}: {error}")


_url = lru_cache(maxsize=1024)(URL)  # parsing one takes as long as sending it
