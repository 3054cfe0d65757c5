"""A receiver of webhooks on this machine: notes what comes, answers as a test says. And how signatures are verified."""

import base64
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sqlalchemy import func, select

from service.models_webhooks import WebhookDelivery
from tests.service.conftest import Plane

Answer = Callable[[int, "Message"], tuple[int, dict[str, str]]]
"""(how many came before, what came) -> status and headers."""
PATIENCE_S = 300.0
"""How long a delivery may take, and a test waits for one, where its time is not what is looked at."""
BODY = b"what a receiver answers is nobody's business"


@dataclass(frozen=True, kw_only=True)
class Message:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def type(self) -> str:
        """Of the event."""
        return str(self.json["type"])


@dataclass(kw_only=True)
class Receiver:
    """What came so far."""

    url: str
    answer: Answer = lambda number, message: (200, {})
    messages: list[Message] = field(default_factory=list)
    slow_s: float = 0.0
    """Before each answer."""
    endless: bool = False
    """The answer's body never ends."""
    ending: threading.Event = field(default_factory=threading.Event)

    @property
    def types(self) -> list[str]:
        """Of all that came."""
        return [message.type for message in self.messages]

    def wait(self, number: int, seconds: float = PATIENCE_S) -> list[Message]:
        """Until so many came."""
        deadline = time.monotonic() + seconds
        while len(self.messages) < number:
            assert time.monotonic() < deadline, f"{self.types} came, not {number}"
            time.sleep(0.01)
        return self.messages


@contextmanager
def receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """One at work, by https where there is a context for it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            message = Message(path=self.path, headers=headers, body=body)
            number = len(found.messages)
            found.messages.append(message)
            status, more = found.answer(number, message)
            found.ending.wait(found.slow_s)
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.end_headers()
            while found.endless and not found.ending.wait(0.01):
                self.wfile.write(BODY * 1000)
            self.wfile.write(BODY)

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # who asked has what he wanted and left
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    found = Receiver(url=f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/hook?a=b")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield found
    finally:
        found.ending.set()
        server.shutdown()
        thread.join()
        server.server_close()


def settle(plane: Plane) -> None:
    """Until nothing is on its way and nothing is due: no delivery was tried in two passes, however fast they are."""
    deadline = time.monotonic() + PATIENCE_S
    tried, quiet = _tried(plane), 0
    while quiet < 2:
        plane.reconciler.run_once()
        while plane.reconciler.delivering:
            assert time.monotonic() < deadline
            time.sleep(0.005)
            plane.reconciler.run_once()
        before, tried = tried, _tried(plane)
        quiet = quiet + 1 if tried == before else 0


def _tried(plane: Plane) -> int:
    with plane.store.read() as session:
        return session.scalar(select(func.sum(WebhookDelivery.attempts))) or 0


def is_signed(message: Message, secret: str) -> bool:
    """As standardwebhooks.com says, written anew: the signature fits id, time and body."""
    key = base64.b64decode(secret[len("whsec_") :])
    signed = b".".join(
        [message.headers["webhook-id"].encode(), message.headers["webhook-timestamp"].encode(), message.body]
    )
    expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return f"v1,{expected}" in message.headers["webhook-signature"].split(" ")
