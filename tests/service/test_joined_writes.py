"""What one answer writes goes out together, in order and whole."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.joined_writes import joined_writes

pytestmark = pytest.mark.quick


class Wire(asyncio.Transport):
    """Notes what is sent."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def play(scene: Callable[[Wire, asyncio.Transport], Coroutine[Any, Any, None]]) -> Wire:
    wire = Wire()

    async def run() -> None:
        await scene(wire, joined_writes(wire))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(run())
    return wire


def test_a_head_and_its_body_are_one_write() -> None:
    async def scene(wire: Wire, joined: asyncio.Transport) -> None:
        joined.write(b"head")
        assert wire.sent == []
        joined.write(b"body")
        assert wire.sent == [b"headbody"], "at once: what is held is never more than one write"

    assert play(scene).sent == [b"headbody"]


def test_what_comes_alone_goes_out_with_the_next_turn_of_the_loop() -> None:
    async def scene(wire: Wire, joined: asyncio.Transport) -> None:
        for number in range(3):
            joined.write(b"%d" % number)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(wire.sent) == number + 1

    assert play(scene).sent == [b"0", b"1", b"2"]


def test_nothing_is_lost_or_turned_round_however_it_is_written() -> None:
    async def scene(wire: Wire, joined: asyncio.Transport) -> None:
        for number in range(100):
            joined.write(b"%02d" % number)
            if number % 7 == 0:
                await asyncio.sleep(0)
        joined.close()

    wire = play(scene)
    assert b"".join(wire.sent) == b"".join(b"%02d" % number for number in range(100)) and wire.closed


def test_what_is_held_for_somebody_who_has_left_is_dropped() -> None:
    async def scene(wire: Wire, joined: asyncio.Transport) -> None:
        joined.write(b"head")
        wire.close()
        assert joined.is_closing() and joined.get_extra_info("peername") == ("127.0.0.1", 1)

    assert play(scene).sent == []
