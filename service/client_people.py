"""Keys, projects and the audit log through the client: `Client.keys`, `Client.projects`, `Client.audit`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

Json = dict[str, Any]
Post = Callable[[str, Json | None], Json]
Call = Callable[[str, str], Json]
Pages = Callable[[str, dict[str, str]], Iterator[Json]]
Stream = Callable[..., httpx.Response]


class Keys:
    """API keys. All methods raise `ApiError`: 403 for rights that one's own key lacks, 404 for what is not there."""

    def __init__(self, post: Post, call: Call, pages: Pages) -> None:
        self._post = post
        self._call = call
        self._pages = pages

    def me(self) -> Json:
        """Who is asking: `key_id`, `project`, `role`, `scopes`."""
        return self._call("GET", "/v1/me")

    def create(
        self,
        name: str,
        *,
        role: str | None = None,
        scopes: Sequence[str] | None = None,
        project: str | None = None,
        expires_at: str | None = None,
        limits: Mapping[str, int | None] | None = None,
    ) -> Json:
        """A new key; `key` is the secret, shown this once. `expires_at`: RFC 3339 with a zone.

        `limits`: what it may ask of models, any of requests_per_minute, tokens_per_minute, tokens_per_day.
        """
        body: Json = {"name": name, "role": role, "scopes": None if scopes is None else list(scopes)}
        return self._post(
            "/v1/keys", {**body, "project": project, "expires_at": expires_at, "limits": dict(limits or {})}
        )

    def iterate(self, **filters: str) -> Iterator[Json]:
        """Keys of the project, newest first; filters: state, name, project."""
        yield from self._pages("/v1/keys", {"limit": "200", **filters})

    def get(self, key_id: str) -> Json:
        """One by its id."""
        return self._call("GET", f"/v1/keys/{quote(key_id, safe='')}")

    def rotate(self, key_id: str, *, grace_s: float = 24 * 3600.0) -> Json:
        """A new secret in `key`, shown this once; the one before goes on for `grace_s` seconds."""
        return self._post(f"/v1/keys/{quote(key_id, safe='')}/rotate", {"grace_s": grace_s})

    def limit(self, key_id: str, **limits: int | None) -> Json:
        """Change the limits that are given (`create` names them); None lifts one."""
        return self._post(f"/v1/keys/{quote(key_id, safe='')}/limits", dict(limits))

    def revoke(self, key_id: str) -> Json:
        """End a key for good."""
        return self._post(f"/v1/keys/{quote(key_id, safe='')}/revoke", None)


class Projects:
    """Projects, for operators."""

    def __init__(self, post: Post, call: Call, pages: Pages) -> None:
        self._post = post
        self._call = call
        self._pages = pages

    def create(self, name: str) -> Json:
        """A new one. Raises `ApiError` 409 when the name is taken."""
        return self._post("/v1/projects", {"name": name})

    def iterate(self, **filters: str) -> Iterator[Json]:
        """Projects, newest first; filters: state, name."""
        yield from self._pages("/v1/projects", {"limit": "200", **filters})

    def get(self, project_id: str) -> Json:
        """One by its id."""
        return self._call("GET", f"/v1/projects/{quote(project_id, safe='')}")

    def find(self, reference: str) -> Json | None:
        """One by its name or id; None where there is none."""
        for state in ("ACTIVE", "ARCHIVED"):
            for found in self.iterate(state=state):
                if reference in (found["id"], found["name"]):
                    return found
        return None

    def archive(self, project_id: str) -> Json:
        """Close it: its keys open nothing any more."""
        return self._post(f"/v1/projects/{quote(project_id, safe='')}/archive", None)


class Audit:
    """The audit log of a project."""

    def __init__(self, send: Stream, pages: Pages) -> None:
        self._send = send
        self._pages = pages

    def iterate(self, *, limit: int = 200, **filters: str) -> Iterator[Json]:
        """Rows, newest first; filters: actor, target, action, outcome, request_id, since, until, project, order."""
        yield from self._pages("/v1/audit", {"limit": str(limit), **filters})

    def export(self, **filters: str) -> Iterator[str]:
        """The same as lines of JSON, the oldest first."""
        answer = self._send("GET", "/v1/audit", params={"order": "asc", **filters, "format": "jsonl"})
        yield from answer.iter_lines()
