"""How the gateway asks Ray Serve: httpx's requests and answers over aiohttp's connections.

httpx's own pool walks all its connections for each request and parses in Python, which with 64 at once was most of what
a request cost; its client looks for redirects, cookies and credentials besides, and none of one user's may go out with
the next one's request (`tests/bench/serving_gateway.py`).
"""

from collections.abc import Mapping
from functools import lru_cache

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

MOST = 1000
"""Requests under way at once; hundreds may stream."""
PATIENCE = httpx.Timeout(600.0, connect=5.0)
"""A long answer on a slow machine takes minutes."""
_KEPT_S = 5.0  # less than Serve keeps a connection that rests, so that it is not found closed


class Onward:
    """The way to one origin. What is sent is what is given: no cookies, no redirects, no proxy of the environment."""

    def __init__(self, origin: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`transport`: the connections; default: aiohttp's."""
        self._origin = origin.rstrip("/")
        self._transport = transport or _connections(origin)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        patience: httpx.Timeout = PATIENCE,
    ) -> httpx.Response:
        """The head of the answer; who asks reads it or closes it. Raises httpx.TransportError."""
        request = httpx.Request(
            method,
            _url(self._origin + path),
            content=content,
            headers=headers,
            extensions={"timeout": patience.as_dict()},
        )
        answer = await self._transport.handle_async_request(request)
        answer.request = request
        return answer

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


async def whole(answer: httpx.Response) -> httpx.Response:
    """It, read to its end; closed also where that fails or nobody waits any more: the replica then stops."""
    try:
        await answer.aread()
    finally:
        await answer.aclose()
    return answer


def _connections(origin: str) -> AiohttpTransport:
    # Certificates are read (40 ms) only where they are needed.
    transport = AiohttpTransport(verify=origin.startswith("https:"), trust_env=False)

    def session() -> aiohttp.ClientSession:
        """Called with the first request, in its event loop."""
        connector = aiohttp.TCPConnector(limit=MOST, keepalive_timeout=_KEPT_S, ssl=transport.ssl_context)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    transport.client = session
    return transport


_url = lru_cache(maxsize=1024)(httpx.URL)  # parsing one takes as long as sending it
