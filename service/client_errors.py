"""What can go wrong between a client and the service. Each error's text is one sentence for a person.

ClientError
  ApiError             the service refused or failed; carries the code, the faults and the request id
  ServiceUnreachable   nobody answered
  WaitTimeout          the thing waited for did not happen in time
"""

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Base of everything that `service.client` raises on purpose."""


class ApiError(ClientError):
    """The service said no. Native routes answer in RFC 9457's shape, OpenAI-compatible ones in OpenAI's: one error."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        pointers: tuple[tuple[str, str], ...] = (),
        request_id: str = "",
        retryable: bool = False,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(status, code, detail, pointers, request_id, retryable, retry_after_s)
        self.status = status
        self.code = code
        self.detail = detail
        self.pointers = pointers
        """(JSON pointer, message) per fault."""
        self.request_id = request_id
        self.retryable = retryable
        self.retry_after_s = retry_after_s

    @property
    def users_mistake(self) -> bool:
        """True for 4xx: asking again with the same words cannot help."""
        return 400 <= self.status < 500

    def __str__(self) -> str:
        faults = "; ".join(
            f"{_dotted(pointer)}: {message}" if pointer else message for pointer, message in self.pointers
        )
        if self.status == 401:
            return f"{faults or self.detail}. Give the key that `simpo up` printed (SIMPO_API_KEY or --key)"
        text = faults or self.detail or f"HTTP {self.status}"
        return text if self.users_mistake or not self.request_id else f"{text} (request {self.request_id})"


class ServiceUnreachable(ClientError):
    """No answer from the service: not started, wrong address, or gone for longer than the caller's patience."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return f"no answer from {self.url} ({self.reason}): start the service with `simpo up`, or correct SIMPO_URL"


class WaitTimeout(ClientError):
    """A resource did not reach the wanted state in time."""

    def __init__(self, kind: str, id: str, state: str, reason: str, timeout_s: float) -> None:
        super().__init__(kind, id, state, reason, timeout_s)
        self.kind = kind
        self.id = id
        self.state = state
        self.reason = reason
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.id} is still {self.state}{why} after {self.timeout_s:.0f} s"


def error_from_response(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None) -> ApiError:
    """An `ApiError` from either of the service's two JSON shapes, or from a body that is neither."""
    headers = headers or {}
    nested = body.get("error")
    pointers: tuple[tuple[str, str], ...]
    if isinstance(nested, Mapping):  # OpenAI's shape
        code, detail = str(nested.get("code") or nested.get("type") or ""), str(nested.get("message") or "")
        pointers = ((f"/{nested['param']}" if nested.get("param") else "", detail),)
    else:
        code, detail = str(body.get("code") or ""), str(body.get("detail") or body.get("title") or "")
        pointers = tuple((str(e.get("pointer") or ""), str(e.get("message") or "")) for e in body.get("errors") or ())
    retry_after = headers.get("retry-after", "")
    return ApiError(
        status,
        code or f"http_{status}",
        detail,
        pointers,
        str(body.get("request_id") or headers.get("x-request-id") or ""),
        bool(body.get("retryable", False)),
        float(retry_after) if retry_after.isdigit() else 0.0,
    )


def _dotted(pointer: str) -> str:
    """/space/beta/low -> space.beta.low, the form a person writes."""
    return pointer.strip("/").replace("/", ".").replace("~1", "/").replace("~0", "~")
