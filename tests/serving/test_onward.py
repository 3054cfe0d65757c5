"""The gateway's way to Ray Serve, against a server that speaks bytes: what comes back, and what never goes out."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.serving import onward
from service.serving.onward import Answer, NoAnswer, NoWord, Onward, patience
from tests.service.certificates import self_signed

pytestmark = pytest.mark.quick

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def server(talk: Talk) -> AsyncIterator[tuple[Onward, list[str]]]:
    """The way to a server that handles each connection so, and the heads of the requests it got."""
    heads: list[str] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await _head(reader):
                heads.append(head)
                await talk(reader, writer)
        finally:
            writer.close()

    served = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with served, aclosing(Onward(f"http://127.0.0.1:{served.sockets[0].getsockname()[1]}")) as models:
        yield models, heads


async def _head(reader: asyncio.StreamReader) -> str:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    except (asyncio.IncompleteReadError, ConnectionError):
        return ""


def answers(text: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        await writer.drain()

    return talk


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await work()

    asyncio.run(bounded())


async def _all(answer: Answer) -> list[bytes]:
    async with aclosing(answer):
        return [piece async for piece in answer.pieces()]


@pytest.fixture
def nobody() -> Iterator[str]:
    """An origin at which nobody listens, and nobody can: the port is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_one_connection_serves_many_and_no_cookie_is_kept(monkeypatch: pytest.MonkeyPatch, nobody: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", nobody)
    monkeypatch.setattr(onward, "_KEPT_S", 600.0)  # a connection that rests for as long as the machine may

    async def work() -> None:
        text = b"HTTP/1.1 200 OK\r\nset-cookie: whose=first\r\ncontent-length: 2\r\n\r\nok"

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peers.add(writer.get_extra_info("peername"))
            await answers(text)(reader, writer)

        peers: set[Any] = set()
        async with server(talk) as (models, heads):
            for _ in range(3):
                answer = await models.ask("GET", "/d/m/v1/models")
                assert (answer.status, answer.headers["Content-Length"], await answer.whole()) == (200, "2", b"ok")
        assert len(heads) == 3 and len(peers) == 1
        assert heads[0].startswith("get /d/m/v1/models http/1.1") and not any("cookie" in head for head in heads)

    run(work)


def test_a_name_and_password_in_the_origin_are_sent_as_such() -> None:
    async def work() -> None:
        async with server(answers(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")) as (models, heads):
            origin = models._origin.replace("://", "://ann:secret@") + "/serve/"
            async with aclosing(Onward(origin)) as named:
                await (await named.ask("GET", "/d/m/v1/models")).whole()
        assert heads[0].startswith("get /serve/d/m/v1/models http/1.1")
        assert "authorization: basic yw5uonnly3jlda==" in heads[0], "as lower-case as the rest of the head"

    run(work)


def test_a_stream_comes_piece_by_piece() -> None:
    async def work() -> None:
        seen = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(CHUNKED + b"3\r\none\r\n")
            await seen.wait()  # for ever, if the client would wait for more
            writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

        async with server(talk) as (models, _):
            pieces = (await models.ask("GET", "/")).pieces()
            assert await anext(pieces) == b"one"
            seen.set()
            assert await anext(pieces) == b"two"

    run(work)


@pytest.mark.parametrize("begun", [True, False], ids=["in the stream", "before its head"])
def test_who_leaves_closes_the_connection(begun: bool) -> None:
    async def work() -> None:
        asked, left = asyncio.Event(), asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if begun:
                writer.write(CHUNKED + b"3\r\none\r\n")
            asked.set()
            await reader.read()
            left.set()

        async with server(talk) as (models, _):
            sending = asyncio.ensure_future(models.ask("GET", "/"))
            await asked.wait()
            if begun:
                await (await sending).aclose()
            else:
                sending.cancel()
            await left.wait()

    run(work)


@pytest.mark.parametrize(
    "text",
    [b"", b"HTTP/1.1 200 OK\r\ncon", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", CHUNKED + b"3\r\none\r\n"],
    ids=["nothing", "half a head", "half a body", "a stream without end"],
)
def test_an_answer_that_breaks_off_is_none(text: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answers(text)(reader, writer)
        writer.close()

    async def work() -> None:
        async with server(talk) as (models, _):
            with pytest.raises(NoAnswer):
                await (await models.ask("POST", "/", content=b"{}")).whole()
            with pytest.raises(NoAnswer):
                await _all(await models.ask("POST", "/", content=b"{}"))

    run(work)


def test_nobody_there_and_nobody_who_speaks(nobody: str) -> None:
    async def work() -> None:
        async with aclosing(Onward(nobody)) as models:
            with pytest.raises(NoAnswer, match="ClientConnectorError") as told:
                await models.ask("GET", "/")
            assert not isinstance(told.value, NoWord)

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with server(silent) as (models, _):
            with pytest.raises(NoWord):
                await models.ask("GET", "/", patience=patience(0.1))

        async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(CHUNKED + b"3\r\none\r\n")
            await reader.read()

        async with server(half) as (models, _):
            with pytest.raises(NoWord):
                await (await models.ask("GET", "/", patience=patience(0.1))).whole()
            with pytest.raises(NoWord):
                await _all(await models.ask("GET", "/", patience=patience(0.1)))

    run(work)


def test_what_is_sent_is_what_is_given_and_no_redirect_is_followed() -> None:
    async def work() -> None:
        bodies: list[bytes] = []

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            bodies.append(await reader.readexactly(2))
            head = b"HTTP/1.1 307 Go\r\nlocation: /elsewhere\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\n"
            writer.write(head + b"raw")

        async with server(talk) as (models, heads):
            answer = await models.ask("POST", "/a", content=b"{}", headers={"content-type": "application/json"})
            assert (answer.status, await answer.whole()) == (307, b"raw"), "bytes as they came"
        (head,) = heads
        assert bodies == [b"{}"] and "content-length: 2\r\n" in head and head.count("content-type") == 1

    run(work)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_certificates_are_checked_where_there_are_any(scheme: str, tmp_path: Path) -> None:
    async def work() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self_signed(tmp_path, "IP:127.0.0.1"))
        ready = answers(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _head(reader)
            await ready(reader, writer)
            writer.close()

        served = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context if scheme == "https" else None)
        port = served.sockets[0].getsockname()[1]
        async with served, aclosing(Onward(f"{scheme}://127.0.0.1:{port}")) as models:
            if scheme == "http":
                assert await (await models.ask("GET", "/")).whole() == b""
            else:
                with pytest.raises(NoAnswer, match="certificate"):
                    await models.ask("GET", "/")

    run(work)
