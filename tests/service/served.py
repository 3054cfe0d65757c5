"""The program that people start, `uvicorn service.app:factory`, as a process of its own with its lines in a file.

Or any application, in a thread of this one.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from service.local_process import free_ports
from service.settings import Settings


@dataclass(kw_only=True)
class Served:
    """One running process."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def ready(self) -> int | None:
        """Status of /readyz; None where nobody listens."""
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False, timeout=5).status_code
        except httpx.TransportError:
            return None

    def end(self, seconds: float = 120) -> int:
        """SIGTERM, and its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def in_thread(app: Any, **options: Any) -> Iterator[str]:
    """An application behind uvicorn in a thread of this process; its origin on loopback. `options`: uvicorn's."""
    listening = socket.socket()  # bound here, so that nobody else is given its port before the server has it
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, **{"log_level": "warning", **options}))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield "http://{}:{}".format(*listening.getsockname())
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def served(settings: Settings, log: Path, *, grace_s: int = 20) -> Iterator[Served]:
    """It, ready to answer; killed at the end if it still runs."""
    (port,) = free_ports(1)
    settings = replace(settings, bind_port=port)
    command = [sys.executable, "-m", "uvicorn", "service.app:factory", "--factory", f"--port={port}"]
    command += ["--http=service.http_head:BoundedHead", f"--timeout-graceful-shutdown={grace_s}"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SIMPO_")}
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=kept | settings.to_env(), stdout=file, stderr=file)
    found = Served(url=f"http://127.0.0.1:{port}", log=log, process=process)
    try:
        deadline = time.monotonic() + 300
        while found.ready() != 200:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield found
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait(120)
