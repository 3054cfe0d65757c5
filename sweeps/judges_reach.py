"""Where a judge's requests may go. A spec is written by anybody, and a driver stands inside a network.

With `public_only`, every address of the host is checked at the moment of connecting and the connection is made to just
that address, so that a name which resolves to something else a moment later (DNS rebinding) gains nothing. Redirects
are never followed.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import httpx

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) -> addresses."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that is handed out; ::1.2.3.4 and fec0:: lie outside
# IPv4 addresses in the clothes of global IPv6 ones.
_TUNNELS = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))


class NotPublic(RuntimeError):
    """The host has an address on a private network, on this machine, or none."""


def client(url: str, *, public_only: bool, timeout_s: float, connections: int) -> httpx.AsyncClient:
    """A client for this base URL: no redirects; the environment's proxies only where private addresses are allowed."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    timeout = httpx.Timeout(timeout_s, pool=None)
    if public_only:
        inner = httpx.AsyncHTTPTransport(limits=limits, trust_env=False)
        return httpx.AsyncClient(transport=PublicOnly(inner), timeout=timeout, trust_env=False)
    trusts = urlsplit(url).hostname not in _LOOPBACK
    return httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=trusts)


class PublicOnly(httpx.AsyncBaseTransport):
    """Connects to public addresses alone, and to the very address that was checked."""

    def __init__(self, inner: httpx.AsyncBaseTransport, resolve: Resolve | None = None) -> None:
        self._inner = inner
        self._resolve = resolve or _resolve

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises NotPublic before anything is sent."""
        host = request.url.host
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(is_public, addresses)):
            raise NotPublic(f"{host} has no public address, or one that is not public")
        # The certificate is still checked for the name: TLS is told it, and the Host header holds it already.
        request.url = request.url.copy_with(host=addresses[0])
        request.extensions = {**request.extensions, "sni_hostname": host}
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def is_public(address: str) -> bool:
    """Whether this is an address of the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.version == 6 and ip not in _UNICAST:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in net for net in _TUNNELS if net.version == ip.version)


async def _resolve(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(address[0]) for *_, address in found]
