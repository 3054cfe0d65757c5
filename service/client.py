"""The Python client of the service: `Client(url, key)` speaks the public API and nothing else.

Blocking, over httpx. Reads are retried; so is a POST, because each carries an `Idempotency-Key` of its own and the
service answers a repeated key with the first outcome. Errors are `ClientError`s: one sentence for a person each.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import quote, urlsplit

import httpx

from service.client_errors import ApiError, ServiceUnreachable, WaitTimeout, error_from_response
from service.client_topics import Topics
from service.sse import ServerSentEvent, read_sse
from service.states import TERMINAL

Json = dict[str, Any]
Kind = Literal["sweeps", "runs", "evaluations", "comparisons", "promotions", "deployments"]
Told = Literal["sweeps", "runs", "evaluations", "comparisons", "promotions"]
"""Kinds whose events end."""
Wish = Literal["approve", "abort", "rollback"]

_RETRIED_STATUSES = frozenset({429, 502, 503, 504})
_HEARTBEAT_S = 15.0  # the service sends a comment at least this often on an open event stream
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One sweep, run, trial, evaluation, promotion or deployment as the service described it."""

    id: str
    """Opaque, prefixed: swp_, run_, trl_, evl_, prm_, dep_."""
    name: str
    """Chosen by the person who made it; empty where the resource has none (trials, promotions)."""
    state: str
    """PENDING, RUNNING, SUCCEEDED ... ; deployments: PENDING, READY, FAILED, DELETING."""
    reason: str
    """Why it is in that state, for states that wait or failed; else empty."""
    body: Json
    """The whole JSON object."""

    @property
    def stale_since(self) -> str | None:
        """While the cluster does not answer: since when (RFC 3339) the state may be older than the facts."""
        since = self.body.get("stale_since")
        return None if since is None else str(since)

    @classmethod
    def parse(cls, body: Json) -> Self:
        """From the JSON of any resource; fields this client does not know stay in `body`."""
        return cls(
            id=str(body.get("id", "")),
            name=str(body.get("name") or ""),
            state=str(body.get("state") or ""),
            reason=str(body.get("reason") or ""),
            body=body,
        )


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened to a sweep, run, evaluation or promotion."""

    id: str
    """Position in its parent's history: the place to resume from."""
    type: str
    """E.g. trial.created, trial.rung, best.updated."""
    level: str
    """info, warn or error."""
    created_at: str
    """RFC 3339."""
    message: str
    """One sentence for a person."""
    data: Json
    """The facts, by type."""

    @classmethod
    def parse(cls, body: Json) -> Self:
        """From the JSON of one event."""
        return cls(
            id=str(body.get("id", "")),
            type=str(body.get("type", "")),
            level=str(body.get("level") or "info"),
            created_at=str(body.get("created_at") or ""),
            message=str(body.get("message") or ""),
            data=dict(body.get("data") or {}),
        )


class Client(Topics):
    """A connection to one service. Use as a context manager, or call `close`."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout_s: float = 30.0,
        attempts: int = 4,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        connect: Callable[..., Any] = httpx.Client,
    ) -> None:
        """`url`: origin of the service, without /v1. `attempts`: tries per call, 0.25 s, 0.5 s, 1 s ... apart."""
        self.url = url.rstrip("/")
        self._attempts = attempts
        self._sleep = sleep
        self._clock = clock
        self._http = connect(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 5.0)),
            transport=transport,
            # A proxy set for the outside world must not catch calls to this machine.
            trust_env=urlsplit(self.url).hostname not in _LOOPBACK,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections."""
        self._http.close()

    # -- sweeps and runs: one set of verbs, because a run is the one-point sweep

    def create(
        self, kind: Kind, body: Json, *, idempotency_key: str | None = None, priority: str | None = None
    ) -> Resource:
        """POST a spec. `priority`: low, normal or high. Raises `ApiError` with one pointer per fault (422)."""
        said = "" if priority is None else f"?priority={quote(priority, safe='')}"
        return Resource.parse(self._post(f"/v1/{kind}{said}", body, key=idempotency_key))

    def get(self, kind: Kind, id: str) -> Resource:
        """One resource by id. Raises `ApiError` (404)."""
        return Resource.parse(self._call("GET", f"/v1/{kind}/{_segment(id)}"))

    def iterate(self, kind: Kind, *, limit: int = 20, **filters: str) -> Iterator[Resource]:
        """All of them, newest first, page by page as they are consumed; `filters` are the API's (state=, method=)."""
        yield from map(Resource.parse, self._pages(f"/v1/{kind}", {"limit": str(limit), **filters}))

    def find(self, kind: Kind, name_or_id: str) -> Resource:
        """By id, or else the newest of that name. Raises `ApiError` (404) naming the kind."""
        try:
            return self.get(kind, name_or_id)
        except ApiError as error:
            if error.status != 404:
                raise
            for resource in self.iterate(kind, name=name_or_id):
                return self.get(kind, resource.id)  # lists leave out results
            raise

    def cancel(self, kind: Literal["sweeps", "runs", "comparisons"], id: str) -> Resource:
        """Ask for the end of a sweep or run; the answer shows CANCELLING. Raises `ApiError` (409) when it is over."""
        return Resource.parse(self._post(f"/v1/{kind}/{_segment(id)}/cancel", None))

    def plan(self, kind: Literal["sweeps", "runs", "comparisons"], body: Json) -> Json:
        """Every check of `create` without making anything: {"spec": with all defaults, "plan": counts}."""
        return self._post(f"/v1/{kind}?validate_only=true", body)

    def create_sweep(self, spec: Json, *, idempotency_key: str | None = None) -> Resource:
        """POST /v1/sweeps."""
        return self.create("sweeps", spec, idempotency_key=idempotency_key)

    def create_run(self, spec: Json, *, idempotency_key: str | None = None) -> Resource:
        """POST /v1/runs."""
        return self.create("runs", spec, idempotency_key=idempotency_key)

    def trials(self, sweep_id: str) -> list[Json]:
        """Every trial of a sweep, in order of number."""
        return [*self._pages(f"/v1/sweeps/{_segment(sweep_id)}/trials", {"limit": "200"})]

    def leaderboard(self, sweep_id: str) -> list[Json]:
        """The ranked trials of a sweep, best first; empty before the first one is done."""
        body = self._call("GET", f"/v1/sweeps/{_segment(sweep_id)}/leaderboard")
        return [*body.get("data", [])]

    # -- deployments

    def deploy(
        self,
        name: str,
        *,
        sweep: str | None = None,
        checkpoint: str = "winner",
        model: str | None = None,
        comparison: str | None = None,
        method: str | None = None,
        engine: Literal["transformers", "vllm"] | None = None,
        idle_s: int | None = None,
    ) -> Resource:
        """Ask for a deployment: of a sweep's `checkpoint` (winner, base, or the id of a trial), of the winner of a
        comparison's `method` (None: the one that leads), or of MODEL@ALIAS. `idle_s`: see `rollout.scale`."""
        source: Json = {"model": model} if model is not None else {"sweep": sweep, "checkpoint": checkpoint}
        if comparison is not None:
            source = {"comparison": comparison, "method": method}
        source |= {} if engine is None else {"engine": engine}
        source |= {} if idle_s is None else {"min_replicas": 0, "idle_s": idle_s}
        return self.create("deployments", {"name": name, **source})

    def promote(
        self,
        model: str,
        *,
        sweep: str | None = None,
        checkpoint: str = "winner",
        comparison: str | None = None,
        method: str | None = None,
        version: int | None = None,
        gate: Any = "default",
        approval: Literal["manual", "auto"] = "manual",
        idempotency_key: str | None = None,
    ) -> Resource:
        """Ask that a sweep's checkpoint, a comparison's winner or a version take the champion's place; see `deploy`."""
        source: Json = {"version": version} if version is not None else {"sweep": sweep, "checkpoint": checkpoint}
        if comparison is not None:
            source = {"comparison": comparison, "method": method}
        body = {"model": model, **source, "gate": gate, "approval": approval}
        return self.create("promotions", body, idempotency_key=idempotency_key)

    def promotion(self, id: str, verb: Wish) -> Resource:
        """Approve, abort or roll back a promotion. Raises `ApiError` (409) for what its state does not allow."""
        return Resource.parse(self._post(f"/v1/promotions/{_segment(id)}/{verb}", None))

    def evaluate(
        self, name: str, *, sweep: str, checkpoint: str = "winner", against: str | None = None, gate: Any = "default"
    ) -> Resource:
        """Ask for a comparison with MODEL@ALIAS, or with the sweep's base; it promotes nobody."""
        body = {"name": name, "sweep": sweep, "checkpoint": checkpoint, "against": against, "gate": gate}
        return self.create("evaluations", body)

    def registered_models(self) -> Iterator[Json]:
        """Models of the registry, with their aliases."""
        yield from self._pages("/v1/registry/models", {"limit": "200", "order": "asc"})

    def registered_model(self, name: str) -> Json:
        """One of them. Raises `ApiError` (404)."""
        return self._call("GET", f"/v1/registry/models/{_segment(name)}")

    def model_versions(self, name: str) -> Iterator[Json]:
        """Its versions, newest first."""
        yield from self._pages(f"/v1/registry/models/{_segment(name)}/versions", {"limit": "200"})

    def delete_deployment(self, id: str) -> None:
        """Take a deployment away. The ETag is read first: what is deleted is what was seen."""
        path = f"/v1/deployments/{_segment(id)}"
        etag = self._send("GET", path).headers.get("etag")
        self._send("DELETE", path, headers={"If-Match": etag} if etag else {})

    # -- waiting

    def wait(
        self,
        kind: Kind,
        id: str,
        *,
        until: frozenset[str] = TERMINAL,
        timeout_s: float = 600.0,
        poll_s: float = 1.0,
    ) -> Resource:
        """Poll until the state is one of `until`. Raises `WaitTimeout`, which carries the last state and its reason."""
        deadline = self._clock() + timeout_s
        while True:
            resource = self.get(kind, id)
            if resource.state in until:
                return resource
            if self._clock() >= deadline:
                raise WaitTimeout(kind, id, resource.state, resource.reason, timeout_s)
            self._sleep(poll_s)

    def events(self, kind: Told, id: str, *, after: str | None = None, patience_s: float = 120.0) -> Iterator[Event]:
        """Every event once, in order, until the sweep or run is over.

        A broken stream is taken up again after the last event seen. Raises `ServiceUnreachable` when nothing was heard
        for `patience_s`, and `ApiError` when the service refuses.
        """
        path = f"/v1/{kind}/{_segment(id)}/events"
        last, heard_at, pause_s = after, self._clock(), 0.25
        while True:
            try:
                for event in self._stream_once(path, last):
                    heard_at, pause_s = self._clock(), 0.25
                    if event.event == "done":
                        return
                    last = event.id or last
                    yield Event.parse(event.json())
            except httpx.HTTPError as error:
                if self._clock() - heard_at >= patience_s:
                    raise ServiceUnreachable(self.url, str(error) or type(error).__name__) from error
            except ApiError as error:
                if error.status not in _RETRIED_STATUSES or self._clock() - heard_at >= patience_s:
                    raise
            self._sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)

    def past_events(self, kind: Told, id: str) -> Iterator[Event]:
        """The events so far, oldest first, without waiting for more."""
        yield from map(Event.parse, self._pages(f"/v1/{kind}/{_segment(id)}/events", {"limit": "200", "order": "asc"}))

    # -- inference

    def chat(self, model: str, messages: Sequence[Mapping[str, str]], **options: Any) -> Iterator[str]:
        """The answer, piece by piece. `options` are OpenAI's (max_tokens, temperature, top_p, seed). Never retried."""
        for choice in self._stream_choices("/v1/chat/completions", {"model": model, "messages": messages, **options}):
            yield from filter(None, [choice["delta"].get("content")])

    def complete(self, model: str, prompt: str, **options: Any) -> Iterator[str]:
        """The continuation of a plain text, piece by piece. Options as for `chat`. Never retried."""
        for choice in self._stream_choices("/v1/completions", {"model": model, "prompt": prompt, **options}):
            yield from filter(None, [choice["text"]])

    def models(self) -> list[str]:
        """Names that `chat` accepts now."""
        return [str(model["id"]) for model in self._call("GET", "/v1/models").get("data", [])]

    # -- transport

    def _post(self, path: str, body: Json | None, *, key: str | None = None) -> Json:
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return _object(self._send("POST", path, json=body, headers=headers))

    def _call(self, method: str, path: str, params: Mapping[str, str] | None = None) -> Json:
        return _object(self._send(method, path, params=params))

    def _pages(self, path: str, params: dict[str, str]) -> Iterator[Json]:
        while True:
            page = self._call("GET", path, params)
            yield from page.get("data", [])
            if not page.get("has_more"):
                return
            params = {**params, "after": str(page["next"])}

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """One call, repeated while it may help. Every method that comes here is safe to repeat."""
        for attempt in range(1, self._attempts + 1):
            pause_s = 0.25 * 2 ** (attempt - 1)
            try:
                response: httpx.Response = self._http.request(method, path, **request)
                _raise_for_status(response)
                return response
            except httpx.TransportError as error:
                if attempt == self._attempts:
                    raise ServiceUnreachable(self.url, str(error) or type(error).__name__) from error
            except ApiError as error:
                if attempt == self._attempts or not (error.status in _RETRIED_STATUSES or error.retryable):
                    raise
                pause_s = max(pause_s, error.retry_after_s)
            self._sleep(pause_s)
        raise AssertionError("attempts is at least 1")

    def _stream_choices(self, path: str, body: Json) -> Iterator[Json]:
        try:
            with self._http.stream("POST", path, json={**body, "stream": True}) as response:
                _raise_for_status(response)
                for event in read_sse(response.iter_lines()):
                    if event.data == "[DONE]":
                        return
                    chunk = event.json()
                    if "error" in chunk:
                        raise error_from_response(500, chunk, None)
                    yield from chunk.get("choices", [])
        except httpx.HTTPError as error:
            raise ServiceUnreachable(self.url, str(error) or type(error).__name__) from error

    def _stream_once(self, path: str, last: str | None) -> Iterator[ServerSentEvent]:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        timeout = httpx.Timeout(5.0, read=3 * _HEARTBEAT_S)
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            _raise_for_status(response)
            yield from read_sse(response.iter_lines())


def _segment(id: str) -> str:
    return quote(id, safe="")


def _object(response: httpx.Response) -> Json:
    body = response.json()
    return body if isinstance(body, dict) else {"data": body}


def _raise_for_status(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    try:
        body = response.json()
    except ValueError:
        body = {}
    raise error_from_response(response.status_code, body if isinstance(body, dict) else {}, response.headers)
