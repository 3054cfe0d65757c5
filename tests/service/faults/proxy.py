"""A TCP proxy that a test turns into a bad network: refusing, swallowing, deaf in one direction, slow or late."""

import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Literal

Manner = Literal["open", "refuse", "swallow", "one-way", "slow", "late"]
_BIT = 65536


class Proxy:
    """`with Proxy(target) as proxy`: what connects to `proxy.port` reaches the target, in the manner of the moment.

    refuse: connections end at once. swallow: they stand, and nothing passes (half-open). one-way: what is asked
    arrives, the answer does not. slow: every bit of a request waits for `delay_s`. late: a request arrives when who
    asked has given up. open: what stood meanwhile is reset, as by a network that has forgotten its connections.
    """

    def __init__(self, target: tuple[str, int] | Path, *, delay_s: float = 2.0) -> None:
        """`target`: address of a TCP server, or path of a Unix socket."""
        self._target = target
        self._delay_s = delay_s
        self._manner: Manner = "open"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._closed = False

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._reset()

    def become(self, manner: Manner) -> None:
        """From now on, for standing connections too."""
        self._manner = manner
        if manner in ("open", "refuse"):
            self._reset()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self._manner == "refuse":
            _close(client)
            return
        try:
            server = self._connect()
        except OSError:
            _close(client)
            return
        with self._lock:
            self._pairs.append((client, server))
        for source, sink, asks in ((client, server, True), (server, client, False)):
            threading.Thread(target=self._carry, args=(source, sink, asks), daemon=True).start()

    def _connect(self) -> socket.socket:
        if isinstance(self._target, Path):
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._target))
            return server
        return socket.create_connection(self._target, timeout=None)

    def _carry(self, source: socket.socket, sink: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while bit := source.recv(_BIT):
                if self._manner == "swallow" or (self._manner == "one-way" and not asks):
                    continue
                if self._manner == "slow" and asks:
                    time.sleep(self._delay_s)
                if self._manner == "late" and asks:
                    bit += b"".join(iter(lambda: source.recv(_BIT), b""))
                sink.sendall(bit)
        _close(source)
        _close(sink)

    def _reset(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                _close(end)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
