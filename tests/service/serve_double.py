"""Ray Serve's place, taken by one of httpx's transports. The real way is tested in `tests/serving/test_onward.py`."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager

import aiohttp
import httpx

from service.serving.onward import PATIENCE, Answer, NoAnswer, NoWord, Onward


class ServeDouble(Onward):
    """The way to whatever the transport says. What it raises of httpx's is raised in the gateway's words."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        super().__init__("http://serve.test")
        self._transport = transport

    async def ask(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        patience: aiohttp.ClientTimeout = PATIENCE,
    ) -> Answer:
        request = httpx.Request(method, f"http://serve.test{path}", content=content, headers=headers)
        with _in_our_words():
            return _Said(await self._transport.handle_async_request(request))


class _Said:
    def __init__(self, answer: httpx.Response) -> None:
        self._answer = answer
        self.status = answer.status_code
        self.headers: Mapping[str, str] = answer.headers

    async def whole(self) -> bytes:
        try:
            with _in_our_words():
                return await self._answer.aread()
        finally:
            await self._answer.aclose()

    async def pieces(self) -> AsyncIterator[bytes]:
        with _in_our_words():
            async for piece in self._answer.aiter_raw():
                yield piece

    async def aclose(self) -> None:
        await self._answer.aclose()


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise (NoWord if isinstance(error, httpx.ReadTimeout) else NoAnswer)(str(error)) from error
