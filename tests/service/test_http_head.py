"""What comes before a body has a limit: at the application where it is whole, at the server where it never ends."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from service.auth import create_key
from service.gate import MAX_HEAD, MAX_HEADERS
from service.settings import Settings
from service.store import Store
from tests.house import REPO
from tests.service.conftest import Plane
from tests.service.served import Served, served

MIB = 1 << 20
PIECE = 64 * 1024
START = b"POST /v1/sweeps HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
ENDLESS = {
    "one header": (b"GET /healthz HTTP/1.1\r\nhost: a\r\nx-long: ", b"a" * PIECE),
    "a header's name": (b"GET /healthz HTTP/1.1\r\nhost: a\r\nx-", b"a" * PIECE),
    "many headers": (b"GET /healthz HTTP/1.1\r\nhost: a\r\n", b"x-one: two\r\n" * (PIECE // 12)),
    "the address": (b"GET /healthz?", b"a" * PIECE),
    "trailers": (START + b"1\r\na\r\n0\r\n", b"x-one: two\r\n" * (PIECE // 12)),
    "a chunk's extension": (START + b"1;", b"a" * PIECE),
}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Served]:
    """The program that people start."""
    home = tmp_path_factory.mktemp("head")
    (home / "simpo.db").write_bytes(migrated.read_bytes())
    settings = Settings(database_url=f"sqlite:///{home / 'simpo.db'}", store=home / "store", reconcile=False)
    with served(settings, home / "log") as found:
        yield found


@pytest.fixture
def client(api: Served) -> Iterator[httpx.Client]:
    """With a key."""
    store = Store(f"sqlite:///{api.log.parent / 'simpo.db'}")
    key = create_key(store, "tests")
    store.close()
    with httpx.Client(
        base_url=api.url, headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=60
    ) as client:
        yield client


def test_what_people_send_is_let_in(client: httpx.Client) -> None:
    lines = {f"x-h{n}": "v" for n in range(MAX_HEADERS - 10)}
    for headers in ({}, lines, {"x-long": "a" * (MAX_HEAD - 2048)}):
        assert client.get("/v1/sweeps", headers=headers).status_code == 200
    row = b'{"prompt": "%d", "chosen": "a", "rejected": "b"}\n'
    pieces = (row % n * (PIECE // 40) for n in range(4 * MIB // PIECE))  # a body is none of it, however long
    sent = client.post("/v1/datasets?name=long", content=pieces, headers={"content-type": "application/jsonl"})
    assert sent.status_code == 201, sent.text
    for _ in range(3):  # one connection, many requests: nothing adds up
        assert client.get("/v1/sweeps", headers={"x-long": "a" * (MAX_HEAD // 2)}).status_code == 200


@pytest.mark.parametrize("way", ENDLESS)
def test_a_head_that_never_ends_is_refused_and_kept_nowhere(api: Served, client: httpx.Client, way: str) -> None:
    start, piece = ENDLESS[way]
    before = psutil.Process(api.process.pid).memory_info().rss
    for _ in range(4):
        answer, sent = _pour(api, start, piece, most=128 * MIB)
        assert sent < 128 * MIB, "the connection ended"
        assert not answer or answer.split(b"\r\n")[0].split()[1] in (b"431", b"401"), answer[:100]
    grown = psutil.Process(api.process.pid).memory_info().rss - before
    assert grown < 32 * MIB, f"{grown} bytes"
    assert client.get("/v1/sweeps").status_code == 200


def test_a_refusal_says_what_is_wrong(api: Served) -> None:
    start, piece = ENDLESS["one header"]
    answer, _ = _pour(api, start, piece, most=MAX_HEAD)  # and its start: too much. Nothing more is on its way
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ") and b"application/problem+json" in head
    assert b'"code":"headers_too_large"' in body
    assert "a request was refused" in api.log.read_text()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/sweeps", {"x-long": "a" * MAX_HEAD}),
        ("/v1/sweeps", {f"x-h{n}": "v" for n in range(MAX_HEADERS)}),
        ("/v1/sweeps?limit=" + "1" * (MAX_HEAD // 2), {"x-long": "a" * (MAX_HEAD // 2)}),
        ("/healthz", {"authorization": "Bearer " + "a" * MAX_HEAD}),
        ("/v1/models", {"cookie": "a" * MAX_HEAD}),
    ],
)
def test_a_whole_head_that_is_too_large_is_a_431(plane: Plane, path: str, headers: dict[str, str]) -> None:
    answer = plane.client.get(path, headers=headers)
    assert answer.status_code == 431 and answer.headers["connection"] == "close"
    told = answer.json()
    assert told.get("code", told.get("error", {}).get("code")) == "headers_too_large"
    assert plane.client.get("/v1/sweeps").status_code == 200


@pytest.mark.quick
@pytest.mark.parametrize(
    "place", ["k8s/base/api.yaml", "k8s/base/reconciler.yaml", "k8s/images/service.Containerfile", "service/local.py"]
)
def test_whoever_starts_the_service_starts_it_with_the_limit(place: str) -> None:
    text = (REPO / place).read_text()
    assert text.count("--http=service.http_head:BoundedHead") == text.count("--factory")


def _pour(api: Served, start: bytes, piece: bytes, *, most: int) -> tuple[bytes, int]:
    """(what was answered, if it came through; bytes sent until the server had enough, or all of them)."""
    where = urlsplit(api.url)
    with socket.create_connection((where.hostname, where.port), timeout=60) as connection:
        sent = 0
        try:
            connection.sendall(start)
            while sent < most:
                connection.sendall(piece)
                sent += len(piece)
        except (ConnectionResetError, BrokenPipeError):
            return b"", sent
        answer = b""
        try:
            while more := connection.recv(PIECE):
                answer += more
        except ConnectionResetError:
            pass
        return answer, sent


def test_an_answer_is_one_segment_and_its_request_one_line(api: Served) -> None:
    """Which only the whole server shows: its transports, and its own logger for access."""
    where = urlsplit(api.url)
    with socket.create_connection((where.hostname, where.port), timeout=60) as asking:
        asking.sendall(b"GET /v1/nowhere?q=mine HTTP/1.1\r\nhost: a\r\nx-request-id: one-line\r\n\r\n")
        head, _, body = asking.recv(1 << 16).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ") and json.loads(body)["request_id"] == "one-line"
    while '"path": "/v1/nowhere"' not in api.log.read_text():  # ours comes after the answer, uvicorn's before it
        time.sleep(0.01)
    asked = [line for line in api.log.read_text().splitlines() if "/v1/nowhere" in line]
    assert len(asked) == 1 and json.loads(asked[0])["request_id"] == "one-line" and "mine" not in asked[0]
