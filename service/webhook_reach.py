"""How webhooks connect: every address of the host is looked at when the connection is made, and it goes to just these.

So a name that resolves to something else a moment later (DNS rebinding) gains nothing. No redirect is followed, no
proxy of the environment is used, and of an answer nothing but its status and `Retry-After` is looked at.
"""

import asyncio
import ipaddress
import socket
import ssl

import httpx

from service.webhook_url import is_loopback
from sweeps.judges_reach import NotPublic, Resolve, is_public

_TRIED = 3  # addresses of a host


class Checked(httpx.AsyncBaseTransport):
    """Connects to public addresses alone; with `loopback` to this machine too, and by plain http to nothing else."""

    def __init__(
        self, *, loopback: bool, resolve: Resolve | None = None, inner: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """`resolve`, `inner`: how names become addresses, and what connects to these; for tests."""
        self._loopback = loopback
        self._resolve = resolve or _resolve
        # A connection is used once: two names at one address must not share what one of them was checked for.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._inner = inner or httpx.AsyncHTTPTransport(limits=limits, trust_env=False, verify=_trusted())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises NotPublic before anything is sent; httpx.ConnectError when no address answers."""
        host, secure = request.url.raw_host.decode("ascii"), request.url.scheme == "https"
        addresses = await self._resolve(host, request.url.port or (443 if secure else 80))
        if not addresses or not all(self._allowed(address, secure) for address in addresses):
            raise NotPublic(f"{host} has no public address, or one that is not public")
        # The certificate is still checked for the name: TLS is told it, and the Host header holds it already.
        request.extensions = {**request.extensions, "sni_hostname": host}
        for last, address in enumerate(addresses[:_TRIED], start=1 - min(len(addresses), _TRIED)):
            request.url = request.url.copy_with(host=address)
            try:
                return await self._inner.handle_async_request(request)
            except httpx.ConnectError:
                if not last:
                    raise
        raise AssertionError("the last address answers or raises")

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _allowed(self, address: str, secure: bool) -> bool:
        local = self._loopback and is_loopback(address)
        return local or (secure and is_public(address))


def client(transport: httpx.AsyncBaseTransport, timeout_s: float) -> httpx.AsyncClient:
    """For POSTs of webhooks; `timeout_s` for each step: connecting, sending, the answer's head."""
    return httpx.AsyncClient(transport=transport, timeout=timeout_s, follow_redirects=False, trust_env=False)


def _trusted() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


async def _resolve(host: str, port: int) -> list[str]:
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
