"""The part of a Kubernetes API server that we use, over real HTTP: custom objects of ray.io/v1, kept in memory.

It answers as the real apiextensions-apiserver was measured to (test_kube_double.py is that table, and can be replayed
against a real server): resourceVersions, generations, server-side apply with conflicts by manager, preconditions,
finalizers, pages that expire, watches with bookmarks and 410. Nothing reconciles here: kuberay_double.py plays KubeRay.
Beside it, faults on demand. Structure is validated only as far as that table goes; tests/k8s has the CRDs themselves.
"""

import copy
import json
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.service import kube_fields as fields
from tests.service.kube_rules import KINDS, Refusal, admitted, fill_defaults, selects

Json = dict[str, Any]
Key = tuple[str, str, str]  # plural, namespace, name

TOKEN = "kube-token"
NAMESPACE = "simpo"
PREFIX = "/apis/ray.io/v1/"


class KubeDouble:
    """`with KubeDouble() as kube`: `kube.url` is its origin. `speed`: seconds of its clock in a real second.

    With 0 it moves by `skip` alone.
    """

    def __init__(self, speed: float = 1.0, tls: ssl.SSLContext | None = None) -> None:
        self.objects: dict[Key, Json] = {}
        self.calls: list[tuple[str, str, str]] = []
        """(verb, resource, name) of every request, in the words of a Role."""
        self.faults: list[tuple[int, str, float | None]] = []
        """Answers of the next requests: (status, reason, Retry-After or None); status 0: as it should be."""
        self.quota: dict[str, int] = {}
        """Objects of a kind at most; one more is 403."""
        self.rules: list[Json] | None = None
        """Rules of the Role that the caller has; None: everything is allowed."""
        self.lists_are_stale = False
        """Lists show what was when this was set; gets do not."""
        self.version = 100
        self.compacted = 0
        """Versions up to this one are forgotten."""
        self.history: list[tuple[int, str, Key, Json]] = []
        self.changed = threading.Condition(threading.RLock())
        self._owners: dict[Key, fields.Owners] = {}
        self._frozen: dict[Key, Json] | None = None
        self._speed, self._began, self._skipped = speed, time.monotonic(), 0.0
        double = self

        class Handler(_Handler):
            kube = double

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"
        if tls:
            # Shaken hands in the thread of the connection: one that does not believe us must not stop the others.
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)

    def __enter__(self) -> "KubeDouble":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    # -- what tests and the doubles of operators do

    def now(self) -> datetime:
        """Time by this server's clock."""
        passed = (time.monotonic() - self._began) * self._speed + self._skipped
        return datetime(2026, 9, 1, 9, 30, tzinfo=UTC) + timedelta(seconds=passed)

    def skip(self, seconds: float) -> None:
        """This server's clock moves on at once."""
        self._skipped += seconds

    def stamp(self) -> str:
        """`now` as Kubernetes writes it."""
        return self.now().strftime("%Y-%m-%dT%H:%M:%SZ")

    def all(self, plural: str) -> list[Json]:
        """Copies of all objects of a kind."""
        with self.changed:
            return [copy.deepcopy(thing) for (kind, _, _), thing in self.objects.items() if kind == plural]

    def put(self, plural: str, thing: Json, manager: str = "kubectl") -> Json:
        """Make or replace an object, as somebody with another client would."""
        name = thing["metadata"]["name"]
        with self.changed:
            key = (plural, thing["metadata"].setdefault("namespace", NAMESPACE), name)
            if key in self.objects:
                return self._replace(key, copy.deepcopy(thing), manager, "Update")
            return self._create(key, copy.deepcopy(thing), manager, "Update")

    def edit(self, plural: str, name: str, change: Callable[[Json], None], manager: str = "kubectl-edit") -> Json:
        """`kubectl edit` by a human, or an operator's update."""
        with self.changed:
            thing = copy.deepcopy(self.objects[plural, NAMESPACE, name])
            change(thing)
            return self.put(plural, thing, manager)

    def set_status(self, plural: str, name: str, status: Json) -> None:
        """What an operator writes to the status subresource."""
        with self.changed:
            key = (plural, NAMESPACE, name)
            if self.objects[key].get("status") != status:
                self._store(key, {**self.objects[key], "status": copy.deepcopy(status)}, "MODIFIED")

    def remove(self, plural: str, name: str) -> None:
        """DELETE, as a human would."""
        with self.changed:
            self.delete((plural, NAMESPACE, name), {})

    def freeze_lists(self) -> None:
        """From now on lists are out of date, as from a server that lags behind."""
        with self.changed:
            self._frozen, self.lists_are_stale = copy.deepcopy(self.objects), True

    def compact(self) -> None:
        """Forget all history: watches and page tokens from before are expired."""
        with self.changed:
            self.compacted = self.version
            self.history.clear()

    # -- the API

    def get(self, key: Key) -> Json:
        """The object. Raises Refusal 404."""
        if key not in self.objects:
            raise Refusal(404, "NotFound", f'{key[0]}.ray.io "{key[2]}" not found')
        return self.objects[key]

    def create(self, key: Key, body: Json, manager: str, strict: bool) -> Json:
        """POST."""
        admitted(key[0], body, strict)
        if key in self.objects:
            raise Refusal(409, "AlreadyExists", f'{key[0]}.ray.io "{key[2]}" already exists')
        if sum(kind == key[0] for kind, _, _ in self.objects) >= self.quota.get(key[0], 1 << 30):
            words = f'{key[0]}.ray.io "{key[2]}" is forbidden: exceeded quota: simpo, requested: '
            raise Refusal(403, "Forbidden", f"{words}count/{key[0]}.ray.io=1")
        return self._create(key, body, manager, "Update")

    def replace(self, key: Key, body: Json, manager: str, strict: bool, subresource: str) -> Json:
        """PUT, on the object or on its status."""
        old = self.get(key)
        asked = body["metadata"].get("resourceVersion")
        if asked not in (None, old["metadata"]["resourceVersion"]):
            words = "the object has been modified; please apply your changes to the latest version and try again"
            raise Refusal(409, "Conflict", _cannot(key, words))
        if subresource == "status":
            return self._store(key, {**old, "status": body.get("status", {})}, "MODIFIED")
        admitted(key[0], body, strict, old)
        return self._replace(key, body, manager, "Update")

    def apply(self, key: Key, body: Json, manager: str, force: bool, strict: bool) -> tuple[Json, int]:
        """Server-side apply: (object, 200 or 201)."""
        uid = body["metadata"].get("uid")
        if key not in self.objects:
            if uid is not None:
                words = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                raise Refusal(409, "Conflict", _cannot(key, words))
            admitted(key[0], body, strict)
            return self._create(key, body, manager, "Apply"), 201
        old = self.objects[key]
        if uid not in (None, old["metadata"]["uid"]):
            words = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {old['metadata']['uid']}"
            raise Refusal(409, "Conflict", _cannot(key, words))
        owners = copy.deepcopy(self._owners[key])
        merged, conflicts = fields.merge(old, body, owners, manager, force)
        if conflicts:
            raise Refusal(409, "Conflict", *fields.told(conflicts))
        admitted(key[0], merged, strict, old)
        fill_defaults(key[0], merged)
        if merged == old and owners == self._owners[key]:
            return old, 200
        self._owners[key] = owners
        return self._store(key, merged, "MODIFIED", (manager, "Apply")), 200

    def merge_patch(self, key: Key, patch: Json, manager: str, strict: bool) -> Json:
        """RFC 7396."""
        body = fields.merged(self.get(key), patch)
        admitted(key[0], body, strict, self.objects[key])
        return self._replace(key, body, manager, "Update")

    def delete(self, key: Key, options: Json) -> Json:
        """DELETE."""
        old = self.get(key)
        for name, mine in (options.get("preconditions") or {}).items():
            if mine != old["metadata"].get(name):
                words = f"Precondition failed: {name.upper()} in precondition: {mine}, {name.upper()} in object meta: "
                raise Refusal(409, "Conflict", _cannot(key, words + str(old["metadata"].get(name))))
        if old["metadata"].get("finalizers"):
            if "deletionTimestamp" not in old["metadata"]:
                metadata = {**old["metadata"], "deletionTimestamp": self.stamp()}
                return self._store(key, {**old, "metadata": metadata}, "MODIFIED")
            return old
        self._gone(key)
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def page(self, plural: str, namespace: str, query: Mapping[str, str]) -> Json:
        """LIST."""
        source = self._frozen if self.lists_are_stale and self._frozen is not None else self.objects
        found = [t for (kind, space, _), t in sorted(source.items()) if (kind, space) == (plural, namespace)]
        found = [thing for thing in found if selects(query, thing)]
        start, at = 0, self.version
        if query.get("continue"):
            at, start = (int(part) for part in query["continue"].split("."))
            if at < self.compacted:
                words = "The provided continue parameter is too old to display a consistent list result"
                raise Refusal(410, "Expired", words)
        limit = int(query.get("limit") or len(found) or 1)
        metadata: Json = {"resourceVersion": str(at)}
        if start + limit < len(found):
            metadata["continue"] = f"{at}.{start + limit}"
        kind = f"{KINDS[plural]}List"
        return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "items": found[start : start + limit]}

    def watch(self, plural: str, namespace: str, query: Mapping[str, str]) -> Iterator[Json]:
        """Events after a version, until the time is up."""
        since = int(query.get("resourceVersion") or 0)
        deadline = time.monotonic() + float(query.get("timeoutSeconds") or 60)
        while True:
            with self.changed:
                if since < self.compacted:
                    words = f"too old resource version: {since} ({self.version})"
                    yield {"type": "ERROR", "object": Refusal(410, "Expired", words).status()}
                    return
                fresh = [event for event in self.history if event[0] > since]
                if not fresh and not self.changed.wait(max(0.0, min(0.5, deadline - time.monotonic()))):
                    if time.monotonic() < deadline:
                        continue
                    if query.get("allowWatchBookmarks") == "true":
                        mark: Json = {"apiVersion": "ray.io/v1", "kind": KINDS[plural]}
                        mark["metadata"] = {"resourceVersion": str(self.version)}
                        yield {"type": "BOOKMARK", "object": mark}
                    return
            for version, kind, key, thing in fresh:
                since = version
                if key[:2] == (plural, namespace) and selects(query, thing):
                    yield {"type": kind, "object": thing}

    # -- storage

    def _create(self, key: Key, body: Json, manager: str, operation: str) -> Json:
        self._owners[key] = fields.owned_by(body, manager, operation)
        fill_defaults(key[0], body)
        body.pop("status", None)
        body["metadata"].update(uid=str(uuid.uuid4()), generation=1, creationTimestamp=self.stamp())
        return self._store(key, body, "ADDED", (manager, operation))

    def _replace(self, key: Key, body: Json, manager: str, operation: str) -> Json:
        old = self.objects[key]
        fill_defaults(key[0], body)
        kept = ("uid", "creationTimestamp", "generation", "resourceVersion", "deletionTimestamp", "managedFields")
        body["metadata"].update({name: old["metadata"][name] for name in kept if name in old["metadata"]})
        if "status" in old:
            body["status"] = old["status"]
        else:
            body.pop("status", None)
        fields.updated(old, body, self._owners[key], manager, operation)
        if body["metadata"].get("deletionTimestamp") and not body["metadata"].get("finalizers"):
            self._gone(key)
            return body
        return old if body == old else self._store(key, body, "MODIFIED", (manager, operation))

    def _store(self, key: Key, thing: Json, event: str, actor: tuple[str, str] | None = None) -> Json:
        thing, old = copy.deepcopy(thing), self.objects.get(key)
        self.version += 1
        metadata = thing["metadata"]
        if old is not None and old["spec"] != thing["spec"]:
            metadata["generation"] = old["metadata"]["generation"] + 1
        metadata["resourceVersion"] = str(self.version)
        before = old["metadata"]["managedFields"] if old is not None else []
        metadata["managedFields"] = fields.shown(self._owners[key], self.stamp(), before, actor)
        self.objects[key] = thing
        self._note(event, key, thing)
        return thing

    def _gone(self, key: Key) -> None:
        self.version += 1
        self._note("DELETED", key, self.objects.pop(key))
        self._owners.pop(key)

    def _note(self, event: str, key: Key, thing: Json) -> None:
        self.history.append((self.version, event, key, copy.deepcopy(thing)))
        self.changed.notify_all()


def _cannot(key: Key, why: str) -> str:
    return f'Operation cannot be fulfilled on {key[0]}.ray.io "{key[2]}": {why}'


class _Handler(BaseHTTPRequestHandler):
    kube: KubeDouble
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        raw = self.rfile.read(length)
        try:
            self._answer(*self._route(raw))
        except Refusal as refusal:
            self._answer(refusal.code, refusal.status(), refusal.retry_after)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _route(self, raw: bytes) -> tuple[int, Any]:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        if self.headers.get("authorization", "").lower() != f"bearer {TOKEN}":
            raise Refusal(401, "Unauthorized", "Unauthorized")
        parts = [unquote(part) for part in url.path.removeprefix(PREFIX).split("/")]
        if not url.path.startswith(PREFIX) or parts[0] != "namespaces" or len(parts) < 3 or parts[2] not in KINDS:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        namespace, plural, *rest = parts[1:]
        name, subresource = rest[0] if rest else "", rest[1] if len(rest) > 1 else ""
        kube = self.kube
        verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
        verb = verbs.get(self.command) or ("watch" if query.get("watch") == "true" else "get" if name else "list")
        resource = f"{plural}/{subresource}" if subresource else plural
        with kube.changed:
            kube.calls.append((verb, resource, name))
            if kube.faults:
                status, reason, retry_after = kube.faults.pop(0)
                if status:
                    raise Refusal(status, reason, f"made to fail: {reason}", retry_after=retry_after)
            self._authorise(verb, resource, name)
            if len(raw) > 1_572_864:
                raise Refusal(500, "InternalError", "etcdserver: request is too large")
            if verb == "watch":
                return 200, kube.watch(plural, namespace, query)
            body = json.loads(raw) if raw else {}
            return self._change(verb, (plural, namespace, name), subresource, body, query)

    def _change(self, verb: str, key: Key, subresource: str, body: Json, query: Mapping[str, str]) -> tuple[int, Any]:
        kube, strict = self.kube, query.get("fieldValidation") == "Strict"
        manager = query.get("fieldManager", "unknown")
        if verb == "list":
            return 200, kube.page(key[0], key[1], query)
        if verb == "get":
            return 200, kube.get(key)
        if verb == "delete":
            return 200, kube.delete(key, body)
        body.setdefault("metadata", {}).setdefault("namespace", key[1])
        if verb == "create":
            return 201, kube.create((*key[:2], str(body["metadata"].get("name", ""))), body, manager, strict)
        if verb == "update":
            return 200, kube.replace(key, body, manager, strict, subresource)
        if self.headers.get("content-type") == "application/apply-patch+yaml":
            thing, status = kube.apply(key, body, manager, query.get("force") in ("true", "True"), strict)
            return status, thing
        return 200, kube.merge_patch(key, body, manager, strict)

    def _authorise(self, verb: str, resource: str, name: str) -> None:
        for rule in self.kube.rules or []:
            names = rule.get("resourceNames")
            if verb in rule["verbs"] and resource in rule["resources"] and (not names or name in names):
                return
        if self.kube.rules is not None:
            who = 'User "system:serviceaccount:simpo:simpo-reconciler" cannot'
            words = f'{resource}.ray.io "{name}" is forbidden: {who} {verb} resource "{resource}"'
            raise Refusal(403, "Forbidden", words)

    def _answer(self, status: int, body: Any, retry_after: float | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        if retry_after is not None:
            self.send_header("retry-after", f"{retry_after:g}")
        if isinstance(body, dict):
            text = json.dumps(body).encode()
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in body:
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def date_time_string(self, timestamp: float | None = None) -> str:
        return format_datetime(self.kube.now(), usegmt=True)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
