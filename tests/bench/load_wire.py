"""The load generator: a process of its own that speaks HTTP/1.1 over streams. `python -m tests.bench.load_wire`.

A client library costs more than the server that it asks (httpx: about 1 ms a request), so requests are bytes made
beforehand and answers are cut by their Content-Length. It reads a job as JSON and writes figures as JSON.
"""

import asyncio
import json
import os
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import uvloop

Figures = dict[str, Any]


def main() -> None:
    """Do the job that stdin describes: `kind` ask or watch."""
    job = json.load(sys.stdin)
    work: Any = {"ask": ask, "watch": watch}[job.pop("kind")]
    figures: Figures = uvloop.run(work(**job))
    cpu = os.times()
    json.dump({**figures, "generator": "uvloop", "generator_cpu_s": round(cpu.user + cpu.system, 2)}, sys.stdout)


async def ask(
    host: str,
    ports: Sequence[int],
    key: str,
    paths: Sequence[str],
    connections: int,
    seconds: float,
    body: Mapping[str, Any] | None = None,
    warm_s: float = 1.0,
) -> Figures:
    """Closed loop: each connection asks again as soon as it was answered.

    Args:
        host: of the API.
        ports: of the API's processes, which the connections share.
        key: API key.
        paths: asked in random order.
        connections: at once.
        seconds: of measured time.
        body: None: GET; else POST of this with a name and an Idempotency-Key of its own each time.
        warm_s: before measuring.

    Returns:
        Figures: requests, seconds, statuses, p50_ms, p95_ms, p99_ms, bytes (mean of an answer's body).
    """
    make = _gets(key, paths) if body is None else _posts(key, paths[0], body)
    begin = time.monotonic() + warm_s
    end = begin + seconds
    times: list[float] = []
    statuses: Counter[int] = Counter()
    size = 0

    async def one(number: int) -> None:
        nonlocal size
        reader, writer = await asyncio.open_connection(host, ports[number % len(ports)], limit=2**20)
        while (sent := time.monotonic()) < end:
            writer.write(make())
            status, length = await _answer(reader)
            done = time.monotonic()
            if sent >= begin:
                times.append(done - sent)
                statuses[status] += 1
                size += length
        writer.close()

    await asyncio.gather(*(one(number) for number in range(connections)))
    return {
        "requests": len(times),
        "seconds": seconds,
        "statuses": {str(status): number for status, number in statuses.items()},
        "p50_ms": round(1000 * quantile(times, 0.5), 2),
        "p95_ms": round(1000 * quantile(times, 0.95), 2),
        "p99_ms": round(1000 * quantile(times, 0.99), 2),
        "bytes": size // max(len(times), 1),
    }


async def watch(host: str, ports: Sequence[int], key: str, path: str, watchers: int, seconds: float) -> Figures:
    """Server-sent events, many at once: from `data.sent` (Unix seconds) of an event to its arrival here.

    Returns:
        Figures: events (arrived, over all watchers), p50_ms, p95_ms, gaps (events that a watcher missed or got twice).
    """
    delays: list[float] = []
    gaps = 0
    head = f"GET {path} HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\nauthorization: Bearer {key}\r\n\r\n"

    async def one() -> None:
        nonlocal gaps
        reader, writer = await asyncio.open_connection(host, ports[0], limit=2**20)
        writer.write(head.encode())
        last = None
        while line := await reader.readline():
            if line.startswith(b"id: evt_"):
                number = int(line[8:])
                gaps += last is not None and number != last + 1
                last = number
            elif line.startswith(b'data: {"id"'):
                sent = json.loads(line[6:])["data"].get("sent")
                if sent is not None:
                    delays.append(time.time() - sent)

    tasks = [asyncio.create_task(one()) for _ in range(watchers)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    broken = sum(not isinstance(each, asyncio.CancelledError) for each in ended)
    return {
        "events": len(delays),
        "gaps": gaps,
        "broken": broken,
        "p50_ms": round(1000 * quantile(delays, 0.5), 1),
        "p95_ms": round(1000 * quantile(delays, 0.95), 1),
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie; NaN of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def _gets(key: str, paths: Sequence[str]) -> Callable[[], bytes]:
    ready = [f"GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n".encode() for path in paths]
    chosen = random.Random(0)
    return lambda: chosen.choice(ready)


def _posts(key: str, path: str, body: Mapping[str, Any]) -> Callable[[], bytes]:
    def make() -> bytes:
        name = f"load-{secrets.token_hex(8)}"
        text = json.dumps({**body, "name": name}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\nidempotency-key: {name}\r\n"
        return f"{head}content-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n".encode() + text

    return make


async def _answer(reader: asyncio.StreamReader) -> tuple[int, int]:
    """(status, length of the body), the body read to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    lowered = head.lower()
    if b"transfer-encoding: chunked" in lowered:
        return int(head[9:12]), await _chunks(reader)
    at = lowered.index(b"content-length:") + 15
    length = int(lowered[at : lowered.index(b"\r", at)])
    await reader.readexactly(length)
    return int(head[9:12]), length


async def _chunks(reader: asyncio.StreamReader) -> int:
    """Length of a body that comes in chunks, read to its end."""
    length = 0
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
        length += size
    await reader.readline()
    return length


if __name__ == "__main__":
    main()
