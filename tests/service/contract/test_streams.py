"""Event streams under odd requests and rude clients: no answer is a 500, and every stream ends and is let go."""

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.auth import create_key
from service.client import Client
from service.sse import read_sse
from service.store import Store
from tests.service.contract.asking import serving

BOUND_S = 120.0
"""By when a stream of something that is over has ended; on a quiet machine it takes milliseconds."""
ROUNDS = 150
CURSORS: tuple[Any, ...] = (
    *(None, None, "evt_00000001", "evt_00000003", "evt_2", "evt_99999999", "evt_999999999999999", "evt_0", ""),
    *("evt_", "evt_-1", "evt_1.5", "evt_" + "9" * 40, "evt_00000001, evt_00000002", "x" * 6000, "../..", "%00", "null"),
    *("\u0663".encode("latin-1", "replace"), b"evt_\xb2", b"\xff\xfe", "' OR 1=1 --", "EVT_1", "0x1"),
)
ACCEPTS = (
    *(None, "*/*", "application/json", "text/event-stream", "text/event-stream", "text/event-stream;q=0.1, */*"),
    *("TEXT/EVENT-STREAM", "text/event-stream, text/event-stream", "", b"\xe9", "text/*", "," * 200),
)
QUERIES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("stream", (None, None, "true", "true", "false", "1", "maybe", "", "TRUE", ["true", "false"])),
    ("after", (None, None, None, *(each for each in CURSORS if not isinstance(each, bytes)), "evt_\u0663", "\x00")),
    ("limit", (None, None, None, "1", "0", "-1", "x", "9" * 30)),
    ("order", (None, None, None, "asc", "desc", "up")),
    ("nothing", (None, None, None, None, "1")),
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A service with something over and something that goes on."""

    url: str
    key: str
    meter: str
    """Key for the figures."""
    over: tuple[str, ...]
    """Paths of what is over."""
    live: str
    """Path of what is not."""

    @property
    def head(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def watchers(self) -> float:
        """Streams that the service holds open."""
        head = {"Authorization": f"Bearer {self.meter}"}
        told = httpx.get(f"{self.url}/metrics", headers=head, trust_env=False, timeout=BOUND_S).text
        return next(float(line.split()[1]) for line in told.splitlines() if line.startswith("simpo_sse_watchers "))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("streams")
    with serving(directory, trial_s=3600.0) as (url, key), Client(url, key) as client:
        run = client.create("runs", {"name": "run", "learning_rate": 1e-4})
        ended = client.create("sweeps", {"name": "ended"})
        both = client.create("comparisons", {"name": "both", "methods": ["simpo", "dpo"]})
        for kind, made in (("runs", run), ("sweeps", ended), ("comparisons", both)):
            client.cancel(kind, made.id)  # type: ignore[arg-type]
            client.wait(kind, made.id, timeout_s=BOUND_S)  # type: ignore[arg-type]
        live = client.create("sweeps", {"name": "live"})
        store = Store(f"sqlite:///{directory / 'simpo.db'}")
        meter = create_key(store, "meter", scopes=["metrics"])
        store.close()
        paths = (f"/v1/runs/{run.id}", f"/v1/sweeps/{ended.id}", f"/v1/comparisons/{both.id}")
        yield Place(url=url, key=key, meter=meter, over=paths, live=f"/v1/sweeps/{live.id}")


def test_odd_requests_are_answered_and_streams_of_what_is_over_end(place: Place) -> None:
    draw = random.Random(20261126)
    streamed = 0
    with httpx.Client(base_url=place.url, headers=place.head, trust_env=False, timeout=BOUND_S) as http:
        for _ in range(ROUNDS):
            path = draw.choice([*place.over, *place.over, "/v1/sweeps/swp_nobody", "/v1/promotions/prm_nobody"])
            headers, params = _odd(draw)
            asked = f"{path} {headers} {params}"
            begun = time.monotonic()
            with http.stream("GET", f"{path}/events", headers=headers, params=params) as answer:
                text = b"".join(answer.iter_raw()).decode()
            assert time.monotonic() - begun < BOUND_S, asked
            assert answer.status_code in (200, 404, 422, 431), f"{asked}\n{answer.status_code} {text}"
            if answer.headers["content-type"].startswith("text/event-stream"):
                streamed += 1
                *told, done = read_sse(text.split("\n"))
                ids = [int(event.id.removeprefix("evt_")) for event in told]
                assert done.event == "done" and ids == sorted(set(ids)), asked
            elif answer.status_code != 200:
                assert answer.headers["content-type"] == "application/problem+json", asked
    assert streamed > 20, "the fuzz met streams"
    _let_go(place)


def test_clients_that_leave_in_any_way_are_let_go(place: Place) -> None:
    draw = random.Random(7)
    host, port = urlsplit(place.url).hostname, urlsplit(place.url).port
    line_ends = ("Host: x", f"Authorization: Bearer {place.key}", "", "")
    whole = "\r\n".join((f"GET {place.live}/events?stream=true HTTP/1.1", *line_ends)).encode()
    for _ in range(40):
        with socket.create_connection((host, port), timeout=BOUND_S) as line:
            line.sendall(whole if draw.random() < 0.7 else whole[: draw.randrange(1, len(whole))])
            if draw.random() < 0.5:
                line.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    line.recv(draw.choice([1, 100, 100_000]))
            manner = draw.choice(["close", "reset", "half"])
            if manner == "reset":
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif manner == "half":
                line.shutdown(socket.SHUT_WR)
    _let_go(place)
    shown = httpx.get(f"{place.url}{place.live}", headers=place.head, trust_env=False, timeout=BOUND_S)
    assert shown.status_code == 200


def test_streams_end_with_what_they_watch(place: Place) -> None:
    """Last in this file: it ends what the others watch."""
    heard: list[str] = []

    def watch(headers: dict[str, str]) -> None:
        told = httpx.get(f"{place.url}{place.live}/events", headers=headers, trust_env=False, timeout=2 * BOUND_S)
        heard.append(told.text)

    cursors = ("evt_00000001", "evt_00000002", "evt_99999999", "")
    asks = [{**place.head, "accept": "text/event-stream", **({"last-event-id": c} if c else {})} for c in cursors]
    watching = [threading.Thread(target=watch, args=(each,)) for each in asks]
    for each in watching:
        each.start()
    _until(lambda: place.watchers() == len(watching))
    asked = httpx.post(f"{place.url}{place.live}/cancel", headers=place.head, trust_env=False, timeout=BOUND_S)
    asked.raise_for_status()
    for each in watching:
        each.join(2 * BOUND_S)
    assert len(heard) == len(watching) and all(text.endswith("event: done\ndata: {}\n\n") for text in heard), heard
    _let_go(place)


def _odd(draw: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    last, accept = draw.choice(CURSORS), draw.choice(ACCEPTS)
    headers = {name: value for name, value in (("last-event-id", last), ("accept", accept)) if value is not None}
    params = {name: value for name, values in QUERIES if (value := draw.choice(values)) is not None}
    if "text/event-stream" in str(headers.get("accept")) and draw.random() < 0.5:
        # Else nearly every request is refused for one oddity before it comes to the stream.
        return {**headers, "last-event-id": draw.choice(CURSORS[2:8])}, {}
    return headers, params


def _let_go(place: Place) -> None:
    _until(lambda: place.watchers() == 0)


def _until(what: Any) -> None:
    deadline = time.monotonic() + BOUND_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)
