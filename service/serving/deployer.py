"""Desired deployments -> Ray Serve applications, over Serve's REST API.

Light on purpose (httpx only): the control plane imports this, and must not load ray or torch.

Facts this file stands on, measured with Ray 2.60: a PUT declares *all* applications and deletes what it omits; it
answers 200 before anything runs, so success is a later GET that says RUNNING; `http_options` are fixed once Serve runs;
changed `args` mean a rolling restart, and only `max_surge_percent: 100` starts the new replica before the old one goes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import httpx

from service.serving.declared import DesiredDeployment, Replicas, idle_of, refuse_duplicates

State = Literal["PENDING", "READY", "FAILED"]
Rest = Literal["", "ASLEEP", "WAKING"]

APPLICATIONS_PATH = "/api/serve/applications/"

# An unknown word of a later Ray counts as PENDING: never READY by accident.
STATES: Mapping[str, State] = {"RUNNING": "READY", "DEPLOY_FAILED": "FAILED", "UNHEALTHY": "FAILED"}
"""Serve's application states in our words."""
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
class ObservedDeployment:
    """What Serve says about one deployment."""

    state: State
    """READY: answers requests. FAILED: does not, and will not without a change. PENDING: neither yet."""
    message: str = ""
    """For FAILED: the cause, one sentence."""
    revision: int | None = None
    """The revision that `state` speaks of; None when Serve does not say."""
    idle_s: int | None = None
    """As it was declared."""
    rest: Rest = ""
    """Of a READY one whose replicas may leave: ASLEEP (none is there) or WAKING (one starts, requests wait for it)."""


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
        replicas: Replicas | None = None,
        timeout_s: float = 20.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Describe the cluster.

        Args:
            dashboard_url: Ray's dashboard, e.g. http://127.0.0.1:8265.
            token: Ray's shared token (RAY_AUTH_MODE=token), or None for a cluster without one.
            http_host: where Serve's proxies listen. Serve knows no keys: loopback, unless a network policy fences it.
            http_port: their port. Host and port hold only for the PUT that starts Serve.
            replicas: what every application is made of.
            timeout_s: for each request to the dashboard.
            transport: for tests.
        """
        self._replicas = replicas or Replicas()
        self._http_options = {"host": http_host, "port": http_port}
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # trust_env off: a proxy variable of the machine must not carry Ray's token away.
        self._client = httpx.Client(
            base_url=dashboard_url, headers=headers, timeout=timeout_s, transport=transport, trust_env=False
        )
        self._where = urlsplit(dashboard_url).netloc.rpartition("@")[2]  # people see it: no password
        self._answering: set[tuple[str, int]] = set()  # (id, revision) of members of a base that were seen READY
        self._alone: dict[str, int | None] = {}  # id -> revision that was seen READY last, of what has its own replicas

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
            revision = config.get("args", {}).get("revision")
            # A PUT of any application shows all of them as DEPLOYING, and one that returns to what its replicas are as
            # without replicas until it is built: what answered before answers on.
            idle_s = idle_of(config)
            there = _runs(details) or not details.get("deployments") or idle_s is not None
            if state == "PENDING" and there and revision is not None and self._alone.get(app_id) == revision:
                state = "READY"
            if state == "READY":
                self._alone[app_id] = revision
            message = _cause(details) if state == "FAILED" else ""
            rest = _rest(details) if state == "READY" and idle_s is not None else ""
            found[app_id] = ObservedDeployment(
                state=state, message=message, revision=revision, idle_s=idle_s, rest=rest
            )
        self._alone = {
            app_id: seen for app_id, seen in self._alone.items() if app_id in found
        }  # a restarted Serve has none
        return found

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _seen_members(
        self, details: Mapping[str, Any], state: State, members: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, ObservedDeployment]:
        """What shares a base. While another member comes or goes, those that were there answer on."""
        sleeps = idle_of(details.get("deployed_app_config") or {}) is not None
        running, found = _runs(details) or sleeps, {}
        for member in members.values():
            one = (member["id"], member["revision"])
            if state == "READY":
                self._answering.add(one)
            answers_on = state == "PENDING" and running and one in self._answering
            found[member["id"]] = ObservedDeployment(
                state="READY" if answers_on else state,
                message=_cause(details) if state == "FAILED" else "",
                revision=member["revision"],
                idle_s=member.get("idle_s"),
                rest=_rest(details) if sleeps and (answers_on or state == "READY") else "",
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


def listen_address(serve_url: str) -> tuple[str, int]:
    """(host, port) on which Serve must listen to be reached at that URL.

    On loopback when the URL says so; a URL that names another machine or a Kubernetes service is no address to bind to:
    then every interface, fenced by the network (Serve knows no keys).
    """
    url = httpx.URL(serve_url)
    host = url.host if url.host in ("127.0.0.1", "::1", "localhost") else "0.0.0.0"
    return host, url.port or (443 if url.scheme == "https" else 80)


def cause(texts: Sequence[str]) -> str:
    """The first that says something, in one sentence: the exception at the end of a traceback."""
    return next((sentence for text in texts if (sentence := _last_sentence(text))), "Ray Serve gave no reason")


def _members(config: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Name -> what is declared of it, of an application that is shared; {} of one that is not."""
    parts = config.get("deployments") or [{}]
    return (parts[0].get("user_config") or {}).get("models") or {}


def _runs(details: Mapping[str, Any]) -> bool:
    """Whether a replica answers. UPDATING: told of something at this moment; requests wait for it."""
    return bool(_states(details) & {"RUNNING", "UPDATING"})


def _rest(details: Mapping[str, Any]) -> Rest:
    """Whether a replica is there, of an application that may have none."""
    states = _states(details)
    if states & {"RUNNING", "UPDATING"}:
        return ""
    return "WAKING" if states - {"STOPPING"} else "ASLEEP"


def _states(details: Mapping[str, Any]) -> set[str]:
    """Of its replicas."""
    parts = (details.get("deployments") or {}).values()
    return {replica.get("state", "") for part in parts for replica in part.get("replicas") or ()}


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
