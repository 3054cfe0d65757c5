"""The Kubernetes API as the control plane uses it: five calls on custom objects of ray.io, each with a time-out.

The official client is used, because it alone of those on PyPI offers in its public calls all that is needed here:
server-side apply, uid preconditions, page tokens, and the headers of an answer. The first call loads it.

No call is repeated in here. A server that says Retry-After is left alone for so long, whoever asks: the calls fail at
once until then. Everything else is for the caller to pause about.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import urllib3

from service.settings import Settings
from simpo.errors import ConfigError

log = logging.getLogger(__name__)

Json = dict[str, Any]

GROUP, VERSION = "ray.io", "v1"
API_VERSION = f"{GROUP}/{VERSION}"
MANAGER = "simpo"
"""Our field manager: what we apply is ours, and nobody's else without a conflict."""

_APPLY = "application/apply-patch+yaml"
_PAGE = 500
_LONGEST_WAIT_S = 300.0
_RELISTS = 3  # of a list whose page token expired in the middle
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class KubeError(Exception):
    """No clear yes from the API server.

    `reason`: one sentence. `status`: HTTP status, None without an answer. `word`: the server's own, e.g. AlreadyExists.
    """

    def __init__(self, reason: str, status: int | None = None, word: str = "") -> None:
        super().__init__(reason, status, word)
        self.reason = reason
        self.status = status
        self.word = word

    def __str__(self) -> str:
        return self.reason

    @property
    def unreachable(self) -> bool:
        """Nobody answered, or the server is busy or does not know us: the same call may work later."""
        return self.status is None or self.status in (401, 429) or self.status >= 500


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An object, and when it was so by the API server's own clock."""

    thing: Json
    """The object."""
    at: datetime
    """The server's time of the answer, whole seconds."""


class KubeApi:
    """Custom objects of ray.io/v1 in one namespace. For one thread at a time."""

    def __init__(
        self,
        *,
        namespace: str | None = None,
        kubeconfig: Path | str | None = None,
        timeout_s: float = 10.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe the cluster; nothing is read or opened before the first call.

        Args:
            namespace: of every object; None: the pod's own, or that of the kubeconfig's context.
            kubeconfig: a file as kubectl has it; None: the pod's own ServiceAccount.
            timeout_s: for each call.
            monotonic: time, for what Retry-After forbids.
        """
        self._namespace = namespace
        self._kubeconfig = kubeconfig
        self._timeout_s = timeout_s
        self._monotonic = monotonic
        self._quiet_until = 0.0
        self._objects: Any = None
        self._refused: Any = KubeError

    @property
    def namespace(self) -> str:
        """Namespace of every object. Raises ConfigError where none is told."""
        self._open()
        assert self._namespace is not None
        return self._namespace

    def get(self, plural: str, name: str) -> Seen | None:
        """The object as it is now, or None."""
        try:
            thing, headers = self._ask("get", plural, name)
        except KubeError as error:
            if error.status == 404:
                return None
            raise
        at = parsedate_to_datetime(headers["Date"]) if "Date" in headers else datetime.now(UTC)
        return Seen(thing=thing, at=at)

    def find(self, plural: str, labels: str) -> list[Json]:
        """All objects with these labels, as they are now (not from the server's cache), in pages of 500."""
        for _ in range(_RELISTS):
            found: list[Json] = []
            token: str | None = None
            try:
                while True:
                    page, _headers = self._ask("list", plural, label_selector=labels, limit=_PAGE, _continue=token)
                    found += page["items"]
                    token = page["metadata"].get("continue")
                    if not token:
                        return found
            except KubeError as error:
                if error.status != 410 or token is None:
                    raise
                # The token outlived its version: half a list is no list, so again from the beginning.
        raise KubeError(f"the list of {plural} expired {_RELISTS} times before it was read", 410, "Expired")

    def create(self, plural: str, body: Json) -> Json:
        """A new object. Raises KubeError, word AlreadyExists, where the name is taken: nothing is changed then."""
        thing: Json
        thing, _ = self._ask("create", plural, body=body, field_manager=MANAGER, field_validation="Strict")
        return thing

    def apply(self, plural: str, name: str, body: Json, *, force: bool = False) -> Json:
        """Server-side apply of our fields. Raises KubeError 409 where a field has another manager and not `force`."""
        thing: Json
        thing, _ = self._ask(
            "patch",
            plural,
            name,
            body=body,
            field_manager=MANAGER,
            force=force,
            field_validation="Strict",
            _content_type=_APPLY,
        )
        return thing

    def delete(self, plural: str, name: str, uid: str) -> None:
        """Delete this very object; fine where it is gone. Raises KubeError 409 where another has the name now."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}}
        try:
            self._ask("delete", plural, name, body=body, propagation_policy="Background")
        except KubeError as error:
            if error.status != 404:
                raise

    def close(self) -> None:
        """Close the connections."""
        if self._objects is not None:
            self._objects.api_client.close()

    def _ask(self, verb: str, plural: str, name: str | None = None, **options: Any) -> tuple[Any, Any]:
        """(body, headers) of an answer that is a yes."""
        self._open()
        left = self._quiet_until - self._monotonic()
        if left > 0:
            raise KubeError(f"the Kubernetes API asked to be left alone for {left:.0f} s more", 429, "TooManyRequests")
        call = getattr(self._objects, f"{verb}_namespaced_custom_object_with_http_info")
        place = [GROUP, VERSION, self._namespace, plural, *([name] if name else [])]
        options = {key: value for key, value in options.items() if value is not None}
        try:
            body, _status, headers = call(*place, _request_timeout=self._timeout_s, **options)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            kind = type(error).__name__
            raise KubeError(f"the Kubernetes API does not answer ({kind}: {error})"[:500]) from error
        except AttributeError as error:
            # Its client trips over TLS errors of its own making, which have no body.
            if not isinstance(error.__context__, self._refused):
                raise
            reason = str(error.__context__.reason).strip()
            raise KubeError(f"the Kubernetes API does not answer ({reason})"[:500]) from error
        except self._refused as error:
            raise self._refusal(error, f"{verb} {plural}{f' {name}' if name else ''}") from error
        if not isinstance(body, dict):
            raise KubeError(f"the Kubernetes API answered {verb} {plural} with something that is no object")
        return body, headers

    def _refusal(self, error: Any, what: str) -> KubeError:
        try:
            told = json.loads(error.body or "{}")
        except ValueError:
            told = {}
        wait = (error.headers or {}).get("Retry-After", "")
        if error.status in (429, 500, 503) and wait.isdigit():
            self._quiet_until = self._monotonic() + min(float(wait), _LONGEST_WAIT_S)
        message = str(told.get("message") or error.reason or "no reason")
        if not error.status:  # the client's word for a connection that came to nothing, e.g. over a certificate
            return KubeError(f"the Kubernetes API does not answer ({' '.join(message.split())})"[:500])
        return KubeError(
            f"the Kubernetes API answered {error.status} to {what}: {' '.join(message.split())[:500]}",
            int(error.status),
            str(told.get("reason") or ""),
        )

    def _open(self) -> None:
        if self._objects is not None:
            return
        try:
            from kubernetes import client, config  # noqa: PLC0415  # lazy: 0.3 s, and only clusters need it
        except ImportError:
            raise ConfigError("needs the extra: pip install 'simpo[kubernetes]'", "SIMPO_DEPLOY_BY") from None
        settings = client.Configuration()
        try:
            if self._kubeconfig is not None:
                path = str(self._kubeconfig)
                config.load_kube_config(config_file=path, client_configuration=settings, persist_config=False)
                context = config.list_kube_config_contexts(config_file=path)[1]
                own = context["context"].get("namespace", "default")
            else:
                config.load_incluster_config(client_configuration=settings)
                own = _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
        except (config.ConfigException, OSError) as error:
            raise ConfigError(
                f"no way to the Kubernetes API ({error}); a pod needs its token mounted, others a file",
                "SIMPO_KUBECONFIG",
            ) from error
        self._namespace = self._namespace or own
        settings.retries = False  # else urllib3 sleeps through a Retry-After, and repeats what is not ours to repeat
        settings.proxy = None  # a proxy variable of the machine must not carry the token away
        self._objects, self._refused = client.CustomObjectsApi(client.ApiClient(settings)), client.ApiException


def cluster_api(settings: Settings) -> KubeApi:
    """The API server of the settings."""
    return KubeApi(namespace=settings.kube_namespace, kubeconfig=settings.kubeconfig)


def managed_at(thing: Json) -> datetime | None:
    """When we last applied a change to it, by the server's clock; None when never."""
    for entry in thing["metadata"].get("managedFields") or []:
        if entry.get("manager") == MANAGER and entry.get("operation") == "Apply":
            return when(entry.get("time"))
    return None


def when(text: str | None) -> datetime | None:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(text) if text else None
