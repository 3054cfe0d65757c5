"""Desired deployments -> Ray Serve applications, over Serve's REST API.

Light on purpose (httpx only): the control plane imports this, and must not load ray or torch.

Facts this file stands on, measured with Ray 2.60: a PUT declares *all* applications and deletes what it omits; it
answers 200 before anything runs, so success is a later GET that says RUNNING; `http_options` are fixed once Serve runs;
changed `args` mean a rolling restart, and only `max_surge_percent: 100` starts the new replica before the old one goes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import httpx

from simpo.errors import ConfigError

State = Literal["PENDING", "READY", "FAILED"]

APPLICATIONS_PATH = "/api/serve/applications/"
IMPORT_PATH = "service.serving.app:build"
SERVE_DEPLOYMENT = "Model"
"""Name of the one Serve deployment inside each application; service/serving/app.py gives its class the same name."""

# An unknown word of a later Ray counts as PENDING: never READY by accident.
STATES: Mapping[str, State] = {"RUNNING": "READY", "DEPLOY_FAILED": "FAILED", "UNHEALTHY": "FAILED"}
"""Serve's application states in our words."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MODULES = re.compile(r"^(?:\w+\.)+(?=\w+: )")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_FIRST_SERVE_START_S = 60.0  # the first PUT starts controller and proxy before it answers (6 s on two idle cores)


class DeployerError(RuntimeError):
    """Serve's REST API cannot be reached, or did not do what it was asked. Worth another try later.

    `reason`: what happened, one sentence. `status`: the HTTP status, or None when there was no answer.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason, status)
        self.reason = reason
        self.status = status

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, kw_only=True)
class DesiredDeployment:
    """One named model that should answer."""

    id: str
    """Stable id of the deployment; also the name of its Serve application."""
    name: str
    """What clients put into `model`; also the last part of the route prefix `/d/<name>`. `[a-z0-9-]`, at most 63."""
    model_path: str
    """Checkpoint directory, as the Ray nodes see it."""
    revision: int = 1
    """Raise it to roll the deployment over to another model_path, or to load the same one again."""
    project: str | None = None
    """Whose it is: names are unique within a project. None: the default one's."""
    base: str | None = None
    """Directory of the base whose adapter `model_path` holds. What has one base in one project shares its replicas.
    None: it has its own."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"{self.name!r} is no deployment name; use 1-63 of a-z, 0-9 and inner -", "name")
        if not self.id:
            raise ConfigError("a deployment needs an id", "id")

    @property
    def route_prefix(self) -> str:
        """Path under which Serve answers for this deployment."""
        return route_prefix(self.name if self.base is None else f"~{_short(self.base)}", self.project)


@dataclass(frozen=True, kw_only=True)
class ObservedDeployment:
    """What Serve says about one deployment."""

    state: State
    """READY: answers requests. FAILED: does not, and will not without a change. PENDING: neither yet."""
    message: str = ""
    """For FAILED: the cause, one sentence."""
    revision: int | None = None
    """The revision that `state` speaks of; None when Serve does not say."""


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """What every deployment's Serve application is made of."""

    num_cpus: float = 0.5
    """Logical CPUs of a replica."""
    max_ongoing_requests: int = 32
    """Requests decoded together by a replica."""
    max_queued_requests: int = 128
    """Requests that wait; beyond them Serve answers 503."""
    max_adapters: int = 8
    """Adapters that stay loaded beside a base."""

    def applications(self, desired: Sequence[DesiredDeployment]) -> list[dict[str, Any]]:
        """All of them: one for each deployment, one for all that share a base."""
        sharing: dict[str, list[DesiredDeployment]] = {}
        for deployment in desired:
            if deployment.base is not None:
                sharing.setdefault(deployment.route_prefix, []).append(deployment)
        own = [self.application(deployment) for deployment in desired if deployment.base is None]
        return own + [self._shared(members) for members in sharing.values()]

    def application(self, deployment: DesiredDeployment) -> dict[str, Any]:
        """The application in the form of Serve's configuration."""
        return {
            "name": deployment.id,
            "route_prefix": deployment.route_prefix,
            "import_path": IMPORT_PATH,
            "args": {
                "name": deployment.name,
                "model_path": deployment.model_path,
                "revision": deployment.revision,
                "max_batch": self.max_ongoing_requests,
            },
            "deployments": [
                {
                    "name": SERVE_DEPLOYMENT,
                    "num_replicas": 1,
                    "max_ongoing_requests": self.max_ongoing_requests,
                    "max_queued_requests": self.max_queued_requests,
                    "max_surge_percent": 100,
                    "ray_actor_options": {"num_cpus": self.num_cpus},
                }
            ],
        }

    def _shared(self, members: Sequence[DesiredDeployment]) -> dict[str, Any]:
        application = self.application(members[0])
        name = f"base-{_short(application['route_prefix'])}"
        application["name"] = name
        application["args"] |= {
            "name": name,
            "model_path": members[0].base,
            "revision": 1,
            "max_adapters": self.max_adapters,
        }
        # A changed user_config reaches the replicas in place: nobody waits for a restart.
        models = {d.name: {"id": d.id, "path": d.model_path, "revision": d.revision} for d in members}
        application["deployments"][0]["user_config"] = {"models": models}
        return application


class Deployer(Protocol):
    """The one owner of a cluster's Serve configuration. Calls are serialised by the caller (the reconciler)."""

    def apply(self, desired: Sequence[DesiredDeployment]) -> None:
        """Make `desired` the whole set: add, roll over and delete as needed; nothing happens when nothing changed.

        Returns when the wish is accepted, not when it is fulfilled: ask `observe`.

        Raises:
            DeployerError: no answer, or a refusal.
            ConfigError: two deployments share a name or an id.
        """

    def observe(self) -> dict[str, ObservedDeployment]:
        """State by deployment id. An id that is absent does not run (any more).

        Raises:
            DeployerError: no answer.
        """


class ServeDeployer:
    """Deployer over the REST API of Ray's dashboard."""

    def __init__(
        self,
        dashboard_url: str,
        token: str | None = None,
        *,
        http_host: str = "127.0.0.1",
        http_port: int = 8000,
        num_cpus: float = 0.5,
        max_ongoing_requests: int = 32,
        max_queued_requests: int = 128,
        max_adapters: int = 8,
        timeout_s: float = 20.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Describe the cluster.

        Args:
            dashboard_url: Ray's dashboard, e.g. http://127.0.0.1:8265.
            token: Ray's shared token (RAY_AUTH_MODE=token), or None for a cluster without one.
            http_host: where Serve's proxies listen. Serve knows no keys: loopback, unless a network policy fences it.
            http_port: their port. Host and port hold only for the PUT that starts Serve.
            num_cpus: logical CPUs of a replica.
            max_ongoing_requests: requests decoded together by a replica.
            max_queued_requests: requests that wait; beyond them Serve answers 503.
            max_adapters: adapters that stay loaded beside a base.
            timeout_s: for each request to the dashboard.
            transport: for tests.
        """
        self._replicas = Replicas(
            num_cpus=num_cpus,
            max_ongoing_requests=max_ongoing_requests,
            max_queued_requests=max_queued_requests,
            max_adapters=max_adapters,
        )
        self._http_options = {"host": http_host, "port": http_port}
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # trust_env off: a proxy variable of the machine must not carry Ray's token away.
        self._client = httpx.Client(
            base_url=dashboard_url, headers=headers, timeout=timeout_s, transport=transport, trust_env=False
        )
        self._where = urlsplit(dashboard_url).netloc.rpartition("@")[2]  # people see it: no password
        self._answering: set[tuple[str, int]] = set()  # (id, revision) of members of a base that were seen READY

    def apply(self, desired: Sequence[DesiredDeployment]) -> None:
        refuse_duplicates(desired)
        wanted = {application["name"]: application for application in self._replicas.applications(desired)}
        if _configs(self._applications()) == wanted:
            return  # a PUT without a change would start Serve, or wake a failed application, for nothing
        body = {"http_options": self._http_options, "applications": list(wanted.values())}
        self._ask("PUT", json=body, timeout=_FIRST_SERVE_START_S)

    def observe(self) -> dict[str, ObservedDeployment]:
        found: dict[str, ObservedDeployment] = {}
        for app_id, details in self._applications().items():
            config = details.get("deployed_app_config") or {}
            state = STATES.get(details["status"], "PENDING")
            if members := _members(config):
                found |= self._seen_members(details, state, members)
                continue
            found[app_id] = ObservedDeployment(
                state=state,
                message=_cause(details) if state == "FAILED" else "",
                revision=config.get("args", {}).get("revision"),
            )
        return found

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _seen_members(
        self, details: Mapping[str, Any], state: State, members: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, ObservedDeployment]:
        """What shares a base. While another member comes or goes, those that were there answer on."""
        parts = (details.get("deployments") or {}).values()
        # UPDATING: told of the other member at this moment; requests wait for it.
        states = {replica.get("state") for part in parts for replica in part.get("replicas") or ()}
        running = bool(states & {"RUNNING", "UPDATING"})
        found = {}
        for member in members.values():
            one = (member["id"], member["revision"])
            if state == "READY":
                self._answering.add(one)
            answers_on = state == "PENDING" and running and one in self._answering
            found[member["id"]] = ObservedDeployment(
                state="READY" if answers_on else state,
                message=_cause(details) if state == "FAILED" else "",
                revision=member["revision"],
            )
        return found

    def _applications(self) -> dict[str, dict[str, Any]]:
        details = self._ask("GET").json()
        # An application on its way out is no longer anybody's: its id may be declared again at once.
        return {name: app for name, app in details["applications"].items() if app["status"] != "DELETING"}

    def _ask(self, method: str, **options: Any) -> httpx.Response:
        try:
            answer = self._client.request(method, APPLICATIONS_PATH, **options)
        except httpx.HTTPError as error:
            raise DeployerError(
                f"Ray Serve at {self._where} does not answer ({type(error).__name__}: {error})"
            ) from error
        if answer.status_code in (401, 403):
            raise DeployerError(
                f"Ray at {self._where} refuses the token; SIMPO_RAY_TOKEN must be the cluster's RAY_AUTH_TOKEN",
                answer.status_code,
            )
        if answer.status_code != httpx.codes.OK:
            reason = _last_sentence(answer.text) or answer.reason_phrase
            raise DeployerError(
                f"Ray Serve at {self._where} answered {answer.status_code}: {reason}", answer.status_code
            )
        return answer


def route_prefix(name: str, project: str | None = None) -> str:
    """Where Serve answers for a deployment. A project has a folder of its own; the default one has none."""
    return f"/d/{name}" if project is None else f"/d/{project}/{name}"


def project_of(prefix: str) -> str | None:
    """The inverse: whose deployment answers there."""
    return prefix.removeprefix("/d/").rpartition("/")[0] or None


def listen_address(serve_url: str) -> tuple[str, int]:
    """(host, port) on which Serve must listen to be reached at that URL.

    On loopback when the URL says so; a URL that names another machine or a Kubernetes service is no address to bind to:
    then every interface, fenced by the network (Serve knows no keys).
    """
    url = httpx.URL(serve_url)
    host = url.host if url.host in ("127.0.0.1", "::1", "localhost") else "0.0.0.0"
    return host, url.port or (443 if url.scheme == "https" else 80)


def refuse_duplicates(desired: Sequence[DesiredDeployment]) -> None:
    """Raises ConfigError where two share an id or a name."""
    names = [d.name if d.project is None else f"{d.project}/{d.name}" for d in desired]
    for field, values in (("id", [d.id for d in desired]), ("name", names)):
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise ConfigError(f"{', '.join(twice)} is used by more than one deployment; each needs its own", field)


def cause(texts: Sequence[str]) -> str:
    """The first that says something, in one sentence: the exception at the end of a traceback."""
    return next((sentence for text in texts if (sentence := _last_sentence(text))), "Ray Serve gave no reason")


def _members(config: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Name -> what is declared of it, of an application that is shared; {} of one that is not."""
    parts = config.get("deployments") or [{}]
    return (parts[0].get("user_config") or {}).get("models") or {}


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _configs(applications: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was declared before, in the form we declare it; the defaults that Serve adds are not ours to compare."""
    ours = ("name", "route_prefix", "import_path", "args", "deployments")
    configs = {name: details.get("deployed_app_config") or {} for name, details in applications.items()}
    return {name: {key: config[key] for key in ours if key in config} for name, config in configs.items()}


def _cause(details: Mapping[str, Any]) -> str:
    """The cause of a failure, out of Serve's messages; the replica's come first."""
    deployments = details.get("deployments") or {}
    return cause([d.get("message", "") for d in deployments.values()] + [details.get("message", "")])


def _last_sentence(text: str) -> str:
    """Last line of a traceback: the exception itself, without the modules before its name."""
    lines = [line.strip() for line in _ANSI.sub("", text).splitlines() if line.strip()]
    return _MODULES.sub("", lines[-1]) if lines else ""
