"""Requests for a model that may sleep: who waits, how many, how long, and what they are told."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from service.errors import Unavailable
from service.serving.waking import Waking
from tests.fakes import FakeClock
from tests.service.serve_double import ServeDouble

pytestmark = pytest.mark.quick


class Replica:
    """Serve in front of a replica that comes when the test says so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.comes = asyncio.Event()
        self.status = 200
        self.fault: Exception | None = None

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.method} {request.url.path}")
        await self.comes.wait()
        if self.fault is not None:
            raise self.fault
        return httpx.Response(self.status, json={})


def play(act: Callable[[Replica, Waking, FakeClock], Awaitable[None]], **limits: Any) -> None:
    """Run a scene with a gateway of these limits."""

    async def scene() -> None:
        replica, clock = Replica(), FakeClock()
        models = ServeDouble(httpx.MockTransport(replica))
        waking = Waking(models, clock, **{"most": 3, "wait_s": 60.0, **limits})
        await act(replica, waking, clock)
        await waking.close()

    asyncio.run(scene())


def test_all_that_wait_ask_once_and_go_on_together() -> None:
    async def act(replica: Replica, waking: Waking, clock: FakeClock) -> None:
        waiting = [asyncio.ensure_future(waking.wait("dep_1", "m", "/d/m")) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert not any(each.done() for each in waiting)
        with pytest.raises(Unavailable, match=r"'m' slept .*: 3 requests wait for it already; ask again") as told:
            await waking.wait("dep_1", "m", "/d/m")
        assert (told.value.code, told.value.headers["retry-after"]) == ("model_starting", "5")
        replica.comes.set()
        await asyncio.gather(*waiting)
        assert replica.asked == ["GET /d/m/v1/models/m"]
        await waking.wait("dep_1", "m", "/d/m")
        assert len(replica.asked) == 1, "a replica answered just now"
        clock.advance(2)
        await waking.wait("dep_1", "m", "/d/m")
        assert len(replica.asked) == 2, "it may have left"
        clock.advance(2)
        waking.saw("dep_1")
        await waking.wait("dep_1", "m", "/d/m")
        assert len(replica.asked) == 2

    play(act)


def test_models_wait_apart() -> None:
    async def act(replica: Replica, waking: Waking, clock: FakeClock) -> None:
        waiting = [asyncio.ensure_future(waking.wait(f"dep_{n}", f"m{n}", f"/d/m{n}")) for n in (1, 2)]
        await asyncio.sleep(0.01)
        assert sorted(replica.asked) == ["GET /d/m1/v1/models/m1", "GET /d/m2/v1/models/m2"]
        replica.comes.set()
        await asyncio.gather(*waiting)

    play(act, most=1)


def test_who_leaves_makes_room_and_takes_nobody_along() -> None:
    async def act(replica: Replica, waking: Waking, clock: FakeClock) -> None:
        first = asyncio.ensure_future(waking.wait("dep_1", "m", "/d/m"))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        second = asyncio.ensure_future(waking.wait("dep_1", "m", "/d/m"))
        await asyncio.sleep(0.01)
        replica.comes.set()
        await second
        assert len(replica.asked) == 1

    play(act, most=1)


def test_nobody_waits_for_ever() -> None:
    async def act(replica: Replica, waking: Waking, clock: FakeClock) -> None:
        with pytest.raises(Unavailable, match="no replica came within 0 s; ask again"):
            await waking.wait("dep_1", "m", "/d/m")

    play(act, wait_s=0.01)


@pytest.mark.parametrize(
    ("status", "fault", "words"),
    [
        (503, None, "Ray Serve has no place for it now"),
        (404, None, "Ray Serve has no place for it now"),
        (200, httpx.ConnectError("refused"), "Ray Serve does not answer"),
        (200, httpx.ReadTimeout("slow"), "no replica came within 60 s"),
    ],
)
def test_what_serve_cannot_do_is_told_and_asked_again(status: int, fault: Exception | None, words: str) -> None:
    async def act(replica: Replica, waking: Waking, clock: FakeClock) -> None:
        replica.status, replica.fault = status, fault
        replica.comes.set()
        with pytest.raises(Unavailable, match=words):
            await waking.wait("dep_1", "m", "/d/m")
        replica.status, replica.fault = 200, None
        await waking.wait("dep_1", "m", "/d/m")

    play(act)
