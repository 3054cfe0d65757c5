"""Work for a client who may leave: who ends it, and what is left afterwards."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.requests import Request

from service.serving.disconnect import ClientGone, unless_gone

pytestmark = pytest.mark.quick


class Client:
    """One that leaves when the test says so; what it sent has been read."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.request = Request({"type": "http"}, self._receive)

    async def _receive(self) -> dict[str, Any]:
        await self.leaves.wait()
        return {"type": "http.disconnect"}


def play(scene: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    """Run it, and see that no task stays behind."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scene(Client())
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        current = asyncio.current_task()
        assert current is not None and current.cancelling() == 0

    asyncio.run(bounded())


@pytest.mark.parametrize("takes_s", [0, 0.1], ids=["at once", "while it is watched"])
def test_a_result_and_an_error_come_through(takes_s: float) -> None:
    async def work(fails: bool) -> str:
        await asyncio.sleep(takes_s)
        if fails:
            raise KeyError("broken")
        return "done"

    async def scene(client: Client) -> None:
        assert await unless_gone(client.request, work(False)) == "done"
        with pytest.raises(KeyError, match="broken"):
            await unless_gone(client.request, work(True))

    play(scene)


def test_who_leaves_ends_the_work_which_gives_back_what_it_holds() -> None:
    async def scene(client: Client) -> None:
        held = ["a connection"]

        async def work() -> None:
            try:
                client.leaves.set()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)  # also what takes a moment
                held.clear()

        with pytest.raises(ClientGone):
            await unless_gone(client.request, work())
        assert held == []

    play(scene)


def test_what_was_done_all_the_same_is_not_lost() -> None:
    async def stubborn(client: Client) -> str:
        client.leaves.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done"

    async def converting(client: Client) -> None:
        client.leaves.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise KeyError("broken") from None

    async def scene(client: Client) -> None:
        assert await unless_gone(client.request, stubborn(client)) == "done"
        client.leaves.clear()
        with pytest.raises(KeyError, match="broken"):
            await unless_gone(client.request, converting(client))

    play(scene)


@pytest.mark.parametrize("leaves", [False, True], ids=["the client waits", "the client leaves too"])
def test_who_is_cancelled_from_outside_stays_cancelled(leaves: bool) -> None:
    async def scene(client: Client) -> None:
        task: asyncio.Task[None] | None = None

        async def work() -> None:
            try:
                if leaves:
                    client.leaves.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if leaves:
                    assert task is not None
                    task.cancel()
                raise

        task = asyncio.ensure_future(unless_gone(client.request, work()))
        await asyncio.sleep(0.1)
        if not leaves:
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    play(scene)
