"""An S3 double (moto's server) behind a proxy that fails on demand: refuses, is slow, cuts off, loses answers."""

import contextlib
import http.client
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Kind = Literal["503", "409", "slow", "cut upload", "cut answer", "lost answer", "ignores conditions"]


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with requests of a kind."""

    kind: Kind
    method: str = ".*"
    """Regular expression over the method."""
    path: str = ""
    """Regular expression that is looked for in path and query."""
    times: float = 1
    """So often; math.inf: always."""
    every: int = 1
    """Of those that match only each n-th."""
    seconds: float = 1.0
    """Of a slow answer."""
    seen: int = 0
    """Requests that matched."""
    done: int = 0
    """Faults made."""


class S3Double:
    """Its address, its faults, and what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str]] = []
        """(method, path with query) of each request that came in."""
        self._buckets = 0
        self._lock = threading.Lock()

    def environment(self) -> dict[str, str]:
        """What boto3 finds its way by."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "a-secret-that-no-log-may-hold",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def bucket(self) -> str:
        """A new one."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        self.client().create_bucket(Bucket=name)
        return name

    def client(self) -> Any:
        """The official one, to look behind the store's back."""
        import boto3  # noqa: PLC0415  # lazy: quick tests are collected with those that need it

        keys = {"aws_access_key_id": "tester", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.url, **keys)

    def fail(self, kind: Kind, **how: Any) -> Fault:
        """From now on."""
        fault = Fault(kind=kind, **how)
        self.faults.append(fault)
        return fault

    def due(self, method: str, path: str) -> Fault | None:
        """The fault of this request, if it is to have one."""
        with self._lock:
            self.asked.append((method, path))
            for fault in self.faults:
                if re.fullmatch(fault.method, method) and re.search(fault.path, path) and fault.done < fault.times:
                    fault.seen += 1
                    if fault.seen % fault.every == 0:
                        fault.done += 1
                        return fault
        return None


@contextlib.contextmanager
def s3_double(host: str = "127.0.0.1") -> Iterator[S3Double]:
    """Both servers, on free ports; moto's on loopback. host: the address at which it is asked."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415  # lazy: the same

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    upstream = moto.get_host_and_port()

    class Handler(_Proxy):
        place = upstream

    server = _Server((host, 0), Handler)
    double = Handler.double = S3Double(f"http://{host}:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()
        moto.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is what some tests are about."""


class _Proxy(BaseHTTPRequestHandler):
    """Passes a request on as it is, but for its fault."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    place: tuple[str, int]
    double: S3Double

    def answer(self) -> None:
        """One request."""
        fault = self.double.due(self.command, self.path)
        kind = None if fault is None else fault.kind
        if fault is not None and kind == "slow":
            time.sleep(fault.seconds)
        length = int(self.headers.get("Content-Length") or 0)
        if kind == "cut upload":
            self.rfile.read(length // 2)
            self._cut()
            return
        body = self.rfile.read(length)
        if kind in ("503", "409"):
            code = {"503": "SlowDown", "409": "ConditionalRequestConflict"}[kind]
            self._send(int(kind), [], f"<Error><Code>{code}</Code><Message>-</Message></Error>".encode())
            return
        headers = dict(self.headers.items())
        if kind == "ignores conditions":
            headers = {name: value for name, value in headers.items() if name.lower() != "if-none-match"}
        with contextlib.closing(http.client.HTTPConnection(*self.place, timeout=60)) as upstream:
            upstream.request(self.command, self.path, body=body, headers=headers)
            with upstream.getresponse() as answer:
                content = answer.read()
        if kind == "lost answer":
            self._cut()
            return
        named = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OURS]
        if self.command == "HEAD":
            named.append(("Content-Length", answer.getheader("Content-Length") or "0"))
        self._send(answer.status, named, content, cut=kind == "cut answer")

    def handle_expect_100(self) -> bool:
        """Out at once: botocore waits a second for it before it sends a body on its own."""
        go_on = super().handle_expect_100()
        self.wfile.flush()
        return go_on

    def finish(self) -> None:
        """The client may have been killed before it had its answer."""
        with contextlib.suppress(OSError):
            super().finish()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False) -> None:
        with contextlib.suppress(OSError):  # the client has not waited
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.wfile.flush()
        if cut:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


_OURS = ("content-length", "transfer-encoding", "connection", "server", "date")
