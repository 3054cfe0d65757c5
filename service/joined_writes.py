"""A transport that sends an answer's head together with what follows it: one system call and one segment, not two.

uvicorn writes the head, then the body, and its transports send each at once (uvicorn 0.54, uvloop 0.23). For an answer
of a few hundred bytes the second send was a tenth of what the API did, and woke its reader twice.
"""

import asyncio
from typing import Any, cast


class JoinedWrites:
    """Around a transport: holds what is written until something more is, or the event loop turns. Never two writes."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._held = b""
        self._turns = False  # whether `_turn` is to come

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send with what is held; hold it where nothing is."""
        if self._held:
            data, self._held = self._held + data, b""
            self._transport.write(data)
            return
        self._held = data
        if not self._turns:
            self._turns = True
            self._loop.call_soon(self._turn)

    def close(self) -> None:
        """Send what is held, and close."""
        self._send()
        self._transport.close()

    def _turn(self) -> None:
        self._turns = False
        self._send()

    def _send(self) -> None:
        data, self._held = self._held, b""
        if data and not self._transport.is_closing():
            self._transport.write(data)


def joined_writes(transport: asyncio.Transport) -> asyncio.Transport:
    """The transport, with its writes joined."""
    return cast(asyncio.Transport, JoinedWrites(transport))
