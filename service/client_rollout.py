"""Roll-outs through the client: `Client.rollout`."""

from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import quote

import httpx

Json = dict[str, Any]
Post = Callable[..., Json]
Call = Callable[[str, str], Json]
Send = Callable[..., httpx.Response]


class Rollout:
    """A candidate beside the champion of a deployment, by the deployment's id. All methods raise `ApiError`."""

    def __init__(self, post: Post, call: Call, send: Send) -> None:
        self._post = post
        self._call = call
        self._send = send

    def start(self, id: str, *, idempotency_key: str | None = None, **wish: Any) -> Json:
        """Put a candidate beside the champion.

        `sweep` and `checkpoint`, or `model` and `model_version`; `weight` in percent, `sticky`, `guard`.
        """
        return self._post(f"{_path(id)}/canary", wish, key=idempotency_key)

    def get(self, id: str) -> Json:
        """The newest candidate, over or not: its state, `figures` of both versions, the `verdict` that ended it."""
        return self._call("GET", f"{_path(id)}/canary")

    def set(self, id: str, *, if_match: str = "*", **share: Any) -> Json:
        """Change `weight` (percent) or `sticky`. `if_match`: the deployment's ETag, where nothing may have changed."""
        body: Json = self._send("PATCH", _path(id), json=share, headers={"If-Match": if_match}).json()
        return body

    def promote(self, id: str) -> Json:
        """Let the candidate become the champion."""
        return self._post(f"{_path(id)}/promote", None)

    def abort(self, id: str) -> Json:
        """Take the candidate away."""
        return self._post(f"{_path(id)}/abort", None)

    def roll_back(self, id: str, *, revision: int | None = None) -> Json:
        """Go back, whatever is going on; the answer is the deployment. `revision`: of an earlier champion."""
        return self._post(f"{_path(id)}/rollback", None if revision is None else {"revision": revision})

    def scale(self, id: str, *, min_replicas: Literal[0, 1], idle_s: int | None = None) -> Json:
        """Whether it may sleep: 0, after `idle_s` (600) seconds without a request, or 1. Answers the deployment."""
        wish: Json = {"min_replicas": min_replicas} | ({} if idle_s is None else {"idle_s": idle_s})
        return self._post(f"{_path(id)}/scaling", wish)


def _path(id: str) -> str:
    return f"/v1/deployments/{quote(id, safe='')}"
