"""The client by which the gateway passes requests on to Ray Serve: httpx's manners over aiohttp's connections.

httpx's own pool walks all its connections for each request and parses in Python, which at 64 at once is most of what a
request costs (`tests/bench/serving_gateway.py`).
"""

from http.cookiejar import CookieJar, DefaultCookiePolicy

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

MOST = 1000
"""Requests under way at once; hundreds may stream."""
_PATIENCE = httpx.Timeout(600.0, connect=5.0)  # a long answer on a slow machine takes minutes
_KEPT_S = 5.0  # less than Serve keeps a connection that rests, so that it is not found closed


def to_serve(url: str) -> httpx.AsyncClient:
    """A client to the origin `url`. No proxy for the outside world sees what people ask their models."""
    # Certificates are read (40 ms) only where they are needed.
    transport = AiohttpTransport(verify=url.startswith("https:"), trust_env=False)

    def session() -> aiohttp.ClientSession:
        """Called with the first request, in its event loop."""
        connector = aiohttp.TCPConnector(limit=MOST, keepalive_timeout=_KEPT_S, ssl=transport.ssl_context)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    transport.client = session
    none = CookieJar(DefaultCookiePolicy(allowed_domains=()))  # one user's cookies are not for the next
    return httpx.AsyncClient(base_url=url, timeout=_PATIENCE, transport=transport, cookies=none, trust_env=False)
