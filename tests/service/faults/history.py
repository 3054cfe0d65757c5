"""What clients asked and were answered, in order: the record that the invariants are checked against."""

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

Json = dict[str, Any]

_ASK_AGAIN = {408, 429, 502, 503, 504}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request. `status` 0: nobody answered, so nobody knows whether it was heard."""

    method: str
    path: str
    key: str | None
    """Its Idempotency-Key."""
    body: Json | None
    status: int = 0
    answer: Json = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def acknowledged(self) -> bool:
        """The service has promised something."""
        return 200 <= self.status < 300

    @property
    def worth_another(self) -> bool:
        """Asking again may help: no answer, trouble behind, or the first request is still at work."""
        return self.status in {0, *_ASK_AGAIN} or (self.status == 409 and bool(self.answer.get("retryable")))


class History:
    """Clients of one service, on as many threads as a test likes."""

    def __init__(self, key: str) -> None:
        self.calls: list[Call] = []
        self.api_key = key
        self.watched: dict[str, list[str]] = {}
        """Sweep -> ids of the events that somebody heard."""
        self._lock = threading.Lock()

    def ask(
        self,
        url: str,
        method: str,
        path: str,
        *,
        key: str | None = None,
        body: Json | None = None,
        patience_s: float = 120,
    ) -> Call:
        """One request, recorded."""
        headers = {"authorization": f"Bearer {self.api_key}", **({"idempotency-key": key} if key else {})}
        if method == "DELETE":
            headers["if-match"] = "*"
        call = Call(method=method, path=path, key=key, body=body)
        try:
            answer = httpx.request(method, url + path, json=body, headers=headers, timeout=patience_s, trust_env=False)
            said = json.loads(answer.text) if answer.text else {}
            call = Call(**{**vars(call), "status": answer.status_code, "answer": said, "headers": dict(answer.headers)})
        except (httpx.HTTPError, ValueError):
            pass
        with self._lock:
            self.calls.append(call)
        return call

    def insist(
        self, url: str, method: str, path: str, *, key: str | None = None, body: Json | None = None, for_s: float = 1200
    ) -> Call:
        """The same request until somebody answers it for good, as our client does.

        On a machine with too much to do a killed API is back after a minute and more.
        """
        deadline = time.monotonic() + for_s
        while (call := self.ask(url, method, path, key=key, body=body)).worth_another:
            assert time.monotonic() < deadline, f"{method} {path}: {call.status} {call.answer}"
            time.sleep(0.1)
        return call

    def posts(self) -> dict[str, list[Call]]:
        """Acknowledged POSTs by Idempotency-Key."""
        found: dict[str, list[Call]] = {}
        for call in self.calls:
            if call.method == "POST" and call.key is not None and call.acknowledged:
                found.setdefault(call.key, []).append(call)
        return found
