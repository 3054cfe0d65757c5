"""Webhooks through the client: `Client.webhooks`; and `verified`, for the program that receives them."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from service.client_errors import WaitTimeout

Json = dict[str, Any]
Post = Callable[[str, Json | None], Json]
Call = Callable[[str, str], Json]
Pages = Callable[[str, dict[str, str]], Iterator[Json]]
Send = Callable[..., httpx.Response]


class Webhooks:
    """Of one's project. Every method raises `ApiError`: 404 for what is not there, 409 for what its state forbids."""

    def __init__(
        self,
        post: Post,
        call: Call,
        pages: Pages,
        send: Send,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self._post = post
        self._call = call
        self._pages = pages
        self._send = send
        self._sleep = sleep
        self._clock = clock

    def create(self, url: str, events: Sequence[str], *, description: str = "") -> Json:
        """Subscribe an address to types of events (`job.succeeded`, `trial.*`, `*`). `secret` is shown this once."""
        return self._post("/v1/webhooks", {"url": url, "events": list(events), "description": description})

    def iterate(self, **filters: str) -> Iterator[Json]:
        """All that are not deleted, newest first; filter: state."""
        yield from self._pages("/v1/webhooks", {"limit": "200", **filters})

    def get(self, id: str) -> Json:
        """One by its id."""
        return self._call("GET", _path(id))

    def delete(self, id: str) -> Json:
        """End it; what is deleted is what was seen."""
        etag = self._send("GET", _path(id)).headers.get("etag")
        deleted: Json = self._send("DELETE", _path(id), headers={"If-Match": etag} if etag else {}).json()
        return deleted

    def enable(self, id: str) -> Json:
        """Tell a DISABLED one of events again."""
        return self._post(f"{_path(id)}/enable", None)

    def rotate(self, id: str, *, grace_s: float = 24 * 3600.0) -> Json:
        """A new `secret`, shown this once; for `grace_s` seconds messages are signed with the one before too."""
        return self._post(f"{_path(id)}/rotate", {"grace_s": grace_s})

    def test(self, id: str) -> Json:
        """Send it `webhook.test`; the answer is the delivery, which `wait` follows."""
        return self._post(f"{_path(id)}/test", None)

    def deliveries(self, id: str, **filters: str) -> Iterator[Json]:
        """What it was told, newest first; filters: state, type."""
        yield from self._pages(f"{_path(id)}/deliveries", {"limit": "200", **filters})

    def retry(self, id: str, delivery_id: str) -> Json:
        """Try a DEAD delivery again."""
        return self._post(f"{_path(id)}/deliveries/{quote(delivery_id, safe='')}/retry", None)

    def wait(self, id: str, delivery_id: str, *, timeout_s: float = 30.0, poll_s: float = 0.5) -> Json:
        """The delivery after its first attempt, however that went. Raises `WaitTimeout`."""
        deadline = self._clock() + timeout_s
        while True:
            found = next((row for row in self.deliveries(id) if row["id"] == delivery_id), None)
            if found is not None and found["attempts"]:
                return found
            if self._clock() >= deadline:
                raise WaitTimeout("webhooks", id, "PENDING", "", timeout_s)
            self._sleep(poll_s)


def verified(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_s: float = 300.0,
    now: Callable[[], float] = time.time,
) -> Json:
    """The message that a receiver got, if it is this service's and fresh; `headers` in lower case.

    Drop what repeats a `webhook-id`. Raises ValueError for anything that must not be believed.
    """
    try:
        id, seconds, given = (headers[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
        age_s = abs(now() - int(seconds))
    except (KeyError, ValueError) as error:
        raise ValueError(f"this is no webhook of standardwebhooks.com's form: {error}") from None
    if age_s > tolerance_s:
        raise ValueError(f"this webhook is {age_s:.0f} s off: a replay, or a clock that is wrong")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.digest(key, f"{id}.{seconds}.".encode() + body, hashlib.sha256)).decode()
    signatures = [each.removeprefix("v1,") for each in given.split(" ") if each.startswith("v1,")]
    if not any(hmac.compare_digest(each.encode(), expected.encode()) for each in signatures):
        raise ValueError("the signature of this webhook is not by this secret")
    message: Json = json.loads(body)
    return message


def _path(id: str) -> str:
    return f"/v1/webhooks/{quote(id, safe='')}"
