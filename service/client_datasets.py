"""Datasets through the client: `Client.datasets`. Uploads are read from disk piece by piece, and may be repeated."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

Json = dict[str, Any]
Send = Callable[..., httpx.Response]
Pages = Callable[[str, dict[str, str]], Iterator[Json]]

_PIECE = 1 << 20
_UPLOAD_TIMEOUT = httpx.Timeout(300.0, connect=5.0)


class Datasets:
    """Rows that were uploaded to one service."""

    def __init__(self, send: Send, pages: Pages) -> None:
        self._send = send
        self._pages = pages

    def upload(self, path: Path, *, name: str | None = None) -> Json:
        """Upload JSON lines, plain or .gz; the dataset of the same bytes is answered again. Raises `ApiError`."""
        params = {"filename": path.name, **({"name": name} if name is not None else {})}
        headers = {
            "Content-Type": "application/gzip" if path.suffix == ".gz" else "application/jsonl",
            "Content-Length": str(path.stat().st_size),
            "Idempotency-Key": str(uuid.uuid4()),
        }
        return _json(
            self._send(
                "POST", "/v1/datasets", params=params, headers=headers, content=_Pieces(path), timeout=_UPLOAD_TIMEOUT
            )
        )

    def iterate(self, **filters: str) -> Iterator[Json]:
        """All of them, newest first; `filters` are the API's (name=, sha256=, state=)."""
        yield from self._pages("/v1/datasets", {"limit": "200", **filters})

    def get(self, id: str) -> Json:
        """One by its id. Raises `ApiError` (404)."""
        return _json(self._send("GET", _path(id)))

    def find(self, name_or_id: str) -> Json:
        """By name, or else by id. Raises `ApiError` (404)."""
        return next(self.iterate(name=name_or_id), None) or self.get(name_or_id)

    def preview(self, id: str, *, limit: int = 5) -> list[Json]:
        """Its first rows: [{line, values}]."""
        return [*_json(self._send("GET", f"{_path(id)}/preview", params={"limit": str(limit)}))["data"]]

    def validate(self, id: str, *, eval: str | None = None, base_model: str | None = None) -> Json:
        """Ask for the doctor's report; `get` shows in `validation.state` when it is there."""
        body = {"eval": eval, "base_model": base_model}
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return _json(self._send("POST", f"{_path(id)}/validate", json=body, headers=headers))

    def report(self, id: str) -> Json:
        """The doctor's newest report. Raises `ApiError` (404) where there is none yet."""
        return _json(self._send("GET", f"{_path(id)}/report"))

    def delete(self, id: str) -> Json:
        """Delete it; what is deleted is what was seen. Raises `ApiError` (409) while something reads it."""
        etag = self._send("GET", _path(id)).headers.get("etag")
        return _json(self._send("DELETE", _path(id), headers={"If-Match": etag} if etag else {}))


class _Pieces:
    """A file as the body of a request, read anew at each try."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece


def _path(id: str) -> str:
    return f"/v1/datasets/{quote(id, safe='')}"


def _json(response: httpx.Response) -> Json:
    body: Mapping[str, Any] = response.json()
    return dict(body)
