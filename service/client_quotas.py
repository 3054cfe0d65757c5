"""Quotas and capacity through the client: `Client.quotas`."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx

Json = dict[str, Any]
Call = Callable[[str, str], Json]
Send = Callable[..., httpx.Response]


class Quotas:
    """What projects may take, and what they take. All methods raise `ApiError`."""

    def __init__(self, call: Call, send: Send) -> None:
        self._call = call
        self._send = send

    def get(self, project: str | None = None) -> Json:
        """`limits`, `used`, `left` and the `queue` of one's own project, or by id of another: for operators (403)."""
        return self._call("GET", "/v1/quotas" if project is None else _path(project))

    def set(self, project: str, *, if_match: str = "*", **quotas: Any) -> Json:
        """Change the quotas that are given: a number, "unlimited", or None for the installation's default.

        concurrent_sweeps, concurrent_trials, accelerator_hours; period: month or total; of what is asked of models,
        requests_per_minute, tokens_per_minute, tokens_per_day. `if_match`: the ETag of what was read, where nothing
        must have changed since (412). For operators.
        """
        headers = {"If-Match": if_match}
        body: Json = self._send("PATCH", _path(project), json=quotas, headers=headers).json()
        return body

    def capacity(self) -> Json:
        """How full the installation is: `sweeps` running, waiting and at most; `trials`; `project`: one's own share."""
        return self._call("GET", "/v1/capacity")


def _path(project: str) -> str:
    return f"/v1/projects/{quote(project, safe='')}/quotas"
