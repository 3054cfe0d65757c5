"""A head has its time: who says nothing, or says it byte by byte, does not keep a connection; who is answered does."""

import asyncio
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest

from service.http_head import BoundedHead
from tests.service.served import in_thread

GET = b"GET /at-once HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /at-once HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n"
CHUNKED = b"POST /at-once HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
SLOW = {  # said at once, then again and again; and whether a 408 may tell of it
    "nothing": (b"", b"", False),
    "a head": (b"GET / HTTP/1.1\r\nhost: a\r\n", b"x", True),
    "the address": (b"GET /", b"a", True),
    "blank lines": (b"", b"\r\n", True),
    "a head that stands still": (b"GET / HTTP/1.1\r\n", b"", True),
    "a second head": (GET + b"GET /", b"a", True),
    "a blank line after an answer": (GET + b"\r\n", b"\r\n", True),
    "a body that is answered": (POST, b"x", False),
    "trailers of what is answered": (CHUNKED, b"x", True),
}


class HastyHead(BoundedHead):
    """With less time, so that the tests need less."""

    head_s = 2.0


async def answering(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once, or when the whole body is there and more than the time of a head has gone by."""
    if scope["path"] == "/patient":
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(1.5 * HastyHead.head_s)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a real server."""
    with in_thread(answering, http=HastyHead, lifespan="off") as origin:
        port = httpx.URL(origin).port
        assert port is not None
        yield port


def test_whoever_makes_us_wait_is_cut_off(port: int) -> None:
    with ThreadPoolExecutor(len(SLOW)) as pool:
        told = dict(zip(SLOW, pool.map(lambda way: _drip(port, *way[:2]), SLOW.values()), strict=True))
    for name, (start, _, spoken) in SLOW.items():
        answer = told[name]
        if start.startswith((GET, POST, CHUNKED)):
            assert answer.startswith(b"HTTP/1.1 200 "), name
            answer = answer.partition(b"\r\n\r\nok")[2]
        if not spoken:
            assert answer == b"", name
        elif name != "a head that stands still":  # a byte on its way when the connection ends can cost the last answer
            assert answer.startswith(b"HTTP/1.1 408 ") or answer == b"", (name, answer)
    head, _, body = told["a head that stands still"].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ") and head.lower().count(b"connection: close") == 1
    assert b'"code":"head_too_slow"' in body and b"within 2 s" in body


def test_what_is_slow_after_its_head_is_not_cut_off(port: int) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(6):
            yield b"x"
            time.sleep(HastyHead.head_s / 4)

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
        assert client.post("/patient", content=body()).text == "ok"
        assert client.get("/at-once").text == "ok"


def _drip(port: int, start: bytes, piece: bytes) -> bytes:
    """What was answered until the server ended the connection."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        until = time.monotonic() + 60
        connection.sendall(start)
        connection.settimeout(HastyHead.head_s / 20)
        while time.monotonic() < until:
            try:
                more = connection.recv(4096)
                if not more:
                    return answer
                answer += more
            except TimeoutError:
                pass
            except ConnectionResetError:
                return answer
            with suppress(ConnectionResetError, BrokenPipeError):  # the next look sees the end
                connection.sendall(piece)
    raise AssertionError(f"the connection is still there; answered: {answer!r}")
