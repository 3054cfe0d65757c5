"""The outermost layer of the application: counts and times requests, and writes a line for each. Never their bodies.

Routes are named by their templates, so that no id becomes a label of a metric; what met no route is `unmatched`.
"""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.gate import header_of, request_id_of
from service.logs import FIELDS, of_request
from service.metrics import Metrics

log = logging.getLogger(__name__)

TOLD = "told"
"""In a request's state: more facts for its line. Counts and names, never what somebody wrote."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds: counted, not written down."""


class Observed:
    """ASGI middleware around the gate."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status: int | None = None

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start" and status is None:
                status = message["status"]
                self._count(scope, status, time.perf_counter() - began)
            await send(message)

        with of_request(request_id, header_of(scope, b"traceparent")):
            self._metrics.in_flight.inc()
            try:
                await self._app(scope, receive, seen)
            finally:
                self._metrics.in_flight.dec()
                if status is None:  # who asked has left
                    self._count(scope, None, time.perf_counter() - began)
                self._write(scope, status, time.perf_counter() - began)

    def _count(self, scope: Scope, status: int | None, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = _route(scope)
        self._metrics.answered(method, route, str(status or "none"), seconds)

    def _write(self, scope: Scope, status: int | None, seconds: float) -> None:
        if scope["path"] in _QUIET or not log.isEnabledFor(logging.INFO):
            return
        caller = scope["state"].get("caller")
        facts = {
            "method": scope["method"],
            "route": _route(scope),
            "path": scope["path"],  # without its query
            "status": status,
            "seconds": round(seconds, 4),
            "key": getattr(caller, "key_id", None),
            "project": getattr(caller, "project", None),
            **scope["state"].get(TOLD, {}),
        }
        # Not by `log.info`, which looks for the place in the code that it was called from.
        record = logging.LogRecord(log.name, logging.INFO, "", 0, "request", (), None)
        setattr(record, FIELDS, facts)
        log.handle(record)


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "unmatched"))
