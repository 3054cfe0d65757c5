"""The only place where an error meets an HTTP status: a table found by class, and two shapes chosen by route prefix.

Native routes answer RFC 9457 problem+json; the OpenAI-compatible ones answer OpenAI's shape, because its clients show
a person nothing else.
"""

import http
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.orm.exc import StaleDataError
from starlette.responses import JSONResponse, Response

from service.serving.deployer import DeployerError
from simpo.errors import SimPOError

OPENAI_PREFIXES = ("/v1/chat", "/v1/completions", "/v1/models", "/v1/files", "/v1/fine_tuning")


class ServiceError(Exception):
    """An answer that is not success.

    `detail`: one sentence for a person. `errors`: (JSON pointer, message) per fault. `facts`: further members.
    """

    status = 500
    code = "internal"
    retryable = False

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        errors: Sequence[tuple[str, str]] = (),
        facts: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or type(self).code
        self.errors = tuple(errors)
        self.facts = dict(facts or {})
        self.headers = dict(headers or {})


class BadRequest(ServiceError):
    """400: what OpenAI's clients expect of a request that is not understood."""

    status, code = 400, "invalid_request"


class Unauthorized(ServiceError):
    status, code = 401, "unauthorized"


class Forbidden(ServiceError):
    """The key is good, and not for this."""

    status, code = 403, "missing_scope"


class NotFound(ServiceError):
    status, code = 404, "not_found"


class Conflict(ServiceError):
    """A conflict that asking again cannot heal: the header stops OpenAI's client, which retries 409 by itself."""

    status, code = 409, "conflict"

    def __init__(self, detail: str, **kw: Any) -> None:
        super().__init__(detail, **kw)
        self.headers = {"x-should-retry": "false", **self.headers}


class InFlight(ServiceError):
    """The first request with this Idempotency-Key is still at work: asking again soon will do."""

    status, code, retryable = 409, "idempotency_key_in_flight", True


class Stale(ServiceError):
    status, code = 412, "etag_mismatch"


class TooSlow(ServiceError):
    """The body, or the head before it, did not come: the connection is for others."""

    status, code, retryable = 408, "body_too_slow", True

    def __init__(self, detail: str, **kw: Any) -> None:
        super().__init__(detail, **kw)
        self.headers = {"connection": "close", **self.headers}


class TooLarge(ServiceError):
    status, code = 413, "body_too_large"


class UnsupportedType(ServiceError):
    status, code = 415, "unsupported_media_type"


class Invalid(ServiceError):
    status, code = 422, "validation"


class PreconditionRequired(ServiceError):
    status, code = 428, "if_match_required"


class TooMany(ServiceError):
    """A limit of the caller's; its headers say which, and when to ask again."""

    status, code, retryable = 429, "rate_limit_exceeded", True


class HeadTooLarge(ServiceError):
    """Of a request whose headers go on and on. The connection is for others."""

    status, code = 431, "headers_too_large"

    def __init__(self, detail: str, **kw: Any) -> None:
        super().__init__(detail, **kw)
        self.headers = {"connection": "close", **self.headers}


class Unavailable(ServiceError):
    """Something behind us does not answer; later it may."""

    status, code, retryable = 503, "unavailable", True

    def __init__(self, detail: str, **kw: Any) -> None:
        super().__init__(detail, **kw)
        self.headers = {"retry-after": "2", **self.headers}


_PAST: Mapping[str, str] = {
    "abort": "aborted",
    "add_point": "given a point",
    "approve": "approved",
    "cancel": "cancelled",
    "clone_trial": "asked to clone a trial",
    "delete": "deleted",
    "enable": "enabled",
    "extend": "extended",
    "limit": "given other limits",
    "pause": "paused",
    "resume": "resumed",
    "retry": "tried again",
    "rollback": "rolled back",
    "rotate": "given a new secret",
    "scale": "told when to sleep",
    "space": "given another space",
    "stop": "stopped",
    "stop_trial": "asked to stop a trial",
    "test": "tested",
}


def illegal_transition(kind: str, state: str, verb: str, allowed: list[str]) -> Conflict:
    """409 with what is allowed instead, from the transition table."""
    return Conflict(
        f"A {state} {kind} cannot be {_PAST[verb]}.",
        code="illegal_transition",
        facts={"current_state": state, "allowed": allowed},
    )


def as_service_error(error: Exception) -> ServiceError:
    """Any exception as an answer. What is not in the table is 500 and says nothing of its inside."""
    if isinstance(error, ServiceError):
        return error
    for cls in type(error).__mro__:
        if cls in _TABLE:
            return _TABLE[cls](error)
    return ServiceError("The service made a mistake. The request id leads to it in the log.")


def render(error: ServiceError, path: str, request_id: str) -> Response:
    """The answer in the shape of the route's prefix."""
    if path.startswith(OPENAI_PREFIXES):
        return _openai(error)
    body: dict[str, Any] = {
        "type": f"/errors/{error.code}",
        "title": _title(error.status),
        "status": error.status,
        "detail": error.detail,
        "instance": path,
        "code": error.code,
        "request_id": request_id,
        "retryable": error.retryable,
        **error.facts,
    }
    if error.errors:
        body["errors"] = [{"pointer": pointer, "message": message} for pointer, message in error.errors]
    return JSONResponse(body, error.status, error.headers, media_type="application/problem+json")


def pointer_of(parts: Sequence[object]) -> str:
    """JSON pointer (RFC 6901) of a path of keys and indices."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def invalid(faults: Sequence[tuple[str, str]]) -> Invalid:
    """422 with one pointer per fault; the detail repeats them for people who read one line."""
    words = (f"{pointer[1:].replace('/', '.')}: {text}" if pointer else text for pointer, text in faults)
    return Invalid("; ".join(words), errors=faults)


def _users_mistake(error: Exception) -> ServiceError:
    assert isinstance(error, SimPOError)
    pointer = pointer_of(error.field.split(".")) if error.field else ""
    return invalid([(pointer, getattr(error, "message", str(error)))])


def _database_trouble(error: Exception) -> ServiceError:
    return Unavailable("The database does not answer.", code="database_unavailable")


def _unstorable(error: Exception) -> ServiceError:
    """PostgreSQL takes no NUL in a text and no number beyond a column: the request's fault, not the database's."""
    return Invalid("The request holds a character or a number that cannot be stored: NUL, or one that is too large.")


def _serve_trouble(error: Exception) -> ServiceError:
    return Unavailable(str(error), code="serve_unavailable")


def _lost_race(error: Exception) -> ServiceError:
    return InFlight("Another request changed the same thing at the same moment: try again.", code="conflict")


_TABLE: Mapping[type, Callable[[Exception], ServiceError]] = {
    SimPOError: _users_mistake,
    IntegrityError: _lost_race,
    StaleDataError: _lost_race,
    DataError: _unstorable,
    DBAPIError: _database_trouble,
    NoConnection: _database_trouble,
    DeployerError: _serve_trouble,
}


def _openai(error: ServiceError) -> Response:
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    pointer = error.errors[0][0].strip("/") if error.errors else ""
    body = {"message": error.detail, "type": kind, "param": pointer.replace("/", ".") or None, "code": error.code}
    # OpenAI knows no 422: what is wrong with a request is a 400.
    status = 400 if error.status == 422 else error.status
    return JSONResponse({"error": body}, status, error.headers)


def _title(status: int) -> str:
    return http.HTTPStatus(status).phrase
