"""Requests for a model that may sleep: they wait for a replica, so many of them and so long.

Serve starts a replica for the first request in its queue, and would let a request wait for it for ever. So the gateway
first asks for the model's name, which any replica tells at once, and passes requests on when that is answered. It asks
once for all that wait, and not while answers come.
"""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

from service.clock import Clock
from service.errors import Unavailable
from service.serving.onward import NoAnswer, NoWord, Onward, patience

_TRUSTED_S = 1.0  # after a sign of life; a replica leaves later than that
_AGAIN_S = "5"


@dataclass(kw_only=True)
class _Door:
    """One deployment's."""

    awake_until: float = float("-inf")
    waiting: int = 0
    asking: asyncio.Task[str] | None = None
    """Its result: what is wrong; empty when a replica is there."""


class Waking:
    """Who waits for which model in this process. For one event loop."""

    def __init__(self, models: Onward, clock: Clock, *, most: int, wait_s: float) -> None:
        """Nobody waits yet.

        Args:
            models: to Ray Serve.
            clock: time.
            most: requests that wait for one model.
            wait_s: how long each of them may.
        """
        self._models = models
        self._clock = clock
        self._most = most
        self._wait_s = wait_s
        self._doors: dict[str, _Door] = {}

    def saw(self, deployment_id: str) -> None:
        """A replica has answered just now."""
        door = self._doors.setdefault(deployment_id, _Door())
        door.awake_until = self._clock.monotonic() + _TRUSTED_S

    async def wait(self, deployment_id: str, name: str, prefix: str) -> None:
        """Until a replica is there. `prefix`: where Serve answers for the model.

        Raises:
            Unavailable: 503, too many wait already, or it takes too long, or Serve has no such model now.
        """
        door = self._doors.setdefault(deployment_id, _Door())
        if self._clock.monotonic() < door.awake_until:
            return
        if door.waiting >= self._most:
            raise _starting(name, f"{door.waiting} requests wait for it already")
        if door.asking is None or door.asking.done():
            door.asking = asyncio.get_running_loop().create_task(self._ask(name, prefix))
        asking = door.asking
        door.waiting += 1
        try:
            done, _ = await asyncio.wait({asking}, timeout=self._wait_s)
        finally:
            door.waiting -= 1
        if not done:
            raise _starting(name, f"no replica came within {self._wait_s:.0f} s")
        if trouble := asking.result():
            raise _starting(name, trouble)
        self.saw(deployment_id)

    async def close(self) -> None:
        """Ask for no model any more."""
        asked = [door.asking for door in self._doors.values() if door.asking is not None]
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    async def _ask(self, name: str, prefix: str) -> str:
        waits = patience(self._wait_s, connect_s=10.0)
        try:
            answer = await self._models.ask("GET", f"{prefix}/v1/models/{name}", patience=waits)
            await answer.whole()
        except NoWord:
            return f"no replica came within {self._wait_s:.0f} s"
        except NoAnswer:
            return "Ray Serve does not answer"
        return "" if answer.status == HTTPStatus.OK else "Ray Serve has no place for it now"


def _starting(name: str, why: str) -> Unavailable:
    text = f"The model {name!r} slept and does not answer yet: {why}; ask again."
    return Unavailable(text, code="model_starting", headers={"retry-after": _AGAIN_S})
