"""The edge of the application: request id, size limit, API key and its scope, the last catch. All passes through here.

Default deny by construction: what is not on the short list below needs a key, whatever routes are added later.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.audit import Asked, plain_path
from service.bearers import Authenticates
from service.errors import (
    Forbidden,
    HeadTooLarge,
    ServiceError,
    TooLarge,
    TooSlow,
    Unauthorized,
    as_service_error,
    render,
)
from service.scopes import allows, scope_of
from service.uploads import too_large

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json", "/try"})
MAX_BODY = 4 * 1024 * 1024
MAX_HEAD = 64 * 1024
"""Bytes of a request's address and headers. `service.http_head` holds those to it that are not whole yet."""
MAX_HEADERS = 100
UPLOADS = frozenset({"/v1/datasets", "/v1/files"})
"""POSTs whose bodies are files: passed on as they come, under a limit of their own, never held whole."""
_FORM = 64 * 1024  # what the form around a file may take
_SLOWEST = 1024  # bytes a second, of a file from its beginning on
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Authenticates,
        max_upload: int = MAX_BODY,
        refused: Callable[[Asked], None] = lambda asked: None,
        patience_s: float = 30.0,
    ) -> None:
        """`max_upload`: bytes of a file. `refused`: told of requests that lack a right.

        `patience_s`: for a whole body, and for each next piece of an upload, whose pieces must make 1 KiB a second.
        """
        self._patience_s = patience_s
        self._app = app
        self._authenticator = authenticator
        self._max_upload = max_upload
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        if "request_id" not in state:  # else `service.observe` stands around this
            state["request_id"] = request_id_of(scope)
        request_id = state["request_id"]
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                ours = ((b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff"))
                message["headers"] = [*message.get("headers", ()), *ours]  # nothing inside sets these
            await send(message)

        try:
            _check_head(scope)
            if scope["path"] not in OPEN_PATHS:
                await self._admit(scope)
            if scope["method"] in ("GET", "HEAD", "OPTIONS"):
                body = receive
            elif scope["method"] == "POST" and scope["path"] in UPLOADS:
                body = self._upload(_length(scope), receive)
            else:
                try:
                    async with asyncio.timeout(self._patience_s):
                        body = await _whole_body(_length(scope), receive)
                except TimeoutError:
                    raise _too_slow() from None
            await self._app(scope, body, send_with_id)
        except Exception as error:
            answer = as_service_error(error)
            if answer.status == 403 and "caller" in scope["state"]:
                await run_in_threadpool(self._note, scope)
            if answer.status >= 500:
                # What we raise ourselves explains itself; the rest needs its traceback.
                trace = None if isinstance(error, ServiceError) else error
                log.error("%s: %s %s: %s", request_id, scope["method"], scope["path"], answer.code, exc_info=trace)
            if started:
                raise  # too late for words: the connection breaks, which is what the client must see
            await render(answer, scope["path"], request_id)(scope, receive, send_with_id)

    def _upload(self, length: int, receive: Receive) -> Receive:
        """The body as it comes; raises TooLarge where it passes the limit, at once where it says so beforehand."""
        if length > self._max_upload + _FORM:
            raise too_large(self._max_upload, "as sent")
        come, more = 0, True
        clock = asyncio.get_running_loop().time
        began = clock()

        async def counted() -> Message:
            nonlocal come, more
            left = self._patience_s + come / _SLOWEST - (clock() - began)
            try:
                async with asyncio.timeout(min(self._patience_s, left) if more else None):
                    message = await receive()
            except TimeoutError:
                raise _too_slow() from None
            more = bool(message.get("more_body"))
            come += len(message.get("body", b""))
            if come > self._max_upload + _FORM:
                raise too_large(self._max_upload, "as sent")
            return message

        return counted

    async def _admit(self, scope: Scope) -> None:
        given = header_of(scope, b"authorization")
        caller = self._authenticator.remembered(given) or await run_in_threadpool(self._authenticator.caller, given)
        if caller is None:
            raise Unauthorized(
                "Send `Authorization: Bearer <API key>` with a key of this service.",
                headers={"www-authenticate": "Bearer"},
            )
        needed = scope_of(scope["method"], scope["path"])
        scope["state"] |= {"caller": caller, "scope": needed}
        if not allows(caller.scopes, needed):
            raise Forbidden(f"This key lacks the scope {needed!r}: use a key that has it.", facts={"scope": needed})

    def _note(self, scope: Scope) -> None:
        state, path = scope["state"], scope["path"]
        asked = Asked(
            caller=state["caller"],
            scope=state["scope"],
            action=f"{scope['method']} {plain_path(path)}",
            named=tuple(path.split("/")[3:4]),
            request_id=state["request_id"],
        )
        try:
            self._refused(asked)
        except DBAPIError as error:
            log.error("%s: a refusal could not be noted: %s", state["request_id"], type(error).__name__)


def header_of(scope: Scope, name: bytes) -> str | None:
    """The first header of that name, which is in lower case, as those of a scope are."""
    for each, value in scope["headers"]:
        if each == name:
            return str(value, "latin-1")
    return None


def request_id_of(scope: Scope) -> str:
    """The caller's own, if it is of a harmless form, else a new one."""
    given = header_of(scope, b"x-request-id")
    return given if given and _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def head_too_large() -> HeadTooLarge:
    """What is said of a head that is over a limit."""
    limits = f"more than {MAX_HEAD // 1024} KiB, or more than {MAX_HEADERS} headers"
    return HeadTooLarge(f"Address and headers are too large: {limits}.")


def _check_head(scope: Scope) -> None:
    """Raises HeadTooLarge. `name: value` and the end of the line are counted, as they were sent."""
    headers = scope["headers"]
    size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if len(headers) > MAX_HEADERS or size + sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEAD:
        raise head_too_large()


async def _whole_body(length: int, receive: Receive) -> Receive:
    """The body, read up to the limit and given on at once; raises TooLarge beyond it."""
    if length > MAX_BODY:
        raise _too_large()
    chunks: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return _first(message, receive)
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
        if sum(map(len, chunks)) > MAX_BODY:
            raise _too_large()
    return _first({"type": "http.request", "body": b"".join(chunks), "more_body": False}, receive)


def _too_slow() -> TooSlow:
    """Whoever sends a byte a minute holds nothing of ours for long."""
    return TooSlow("The body did not come in time: send it faster, or in one piece.")


def _length(scope: Scope) -> int:
    """As said beforehand; 0 where nothing, or nothing sensible, was said: bytes are counted as they come."""
    said = header_of(scope, b"content-length") or ""
    return int(said[:20]) if said.isdecimal() else 0


def _first(message: Message, receive: Receive) -> Receive:
    waiting = [message]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


def _too_large() -> TooLarge:
    return TooLarge(f"The body is larger than {MAX_BODY // 1024} KiB.")
