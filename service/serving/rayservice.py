"""Desired deployments -> the `serveConfigV2` of a KubeRay RayService, over the Kubernetes API.

The RayService itself - pods, images, sizes - is the platform's, by `kubectl apply -k`. Ours are one field of it and one
annotation, by server-side apply under a manager of our own; so a new image and a new model never touch each other.

Facts this file stands on, read in KubeRay 1.7 (controllers/ray/rayservice_controller.go):
* one pass first reads Serve's states and *then* puts a changed configuration, and calls its generation observed: for
  two seconds an observed generation shows the states of the one before. So a state is believed some seconds later, by
  the API server's clock alone (its Date, and the time of our apply in managedFields);
* a changed rayClusterConfig makes a second cluster, the *pending* one. While both are there, only the pending one gets
  the configuration, and the states of the active one, which answers, are not shown at all;
* the traffic moves when every application of the pending cluster is RUNNING.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import yaml

from service.kube import API_VERSION, Json, KubeApi, KubeError, Seen, managed_at, when
from service.serving.declared import (
    TRANSFORMERS,
    DesiredDeployment,
    Replicas,
    idle_of,
    project_of,
    refuse_duplicates,
    variant_of,
)
from service.serving.deployer import STATES, DeployerError, ObservedDeployment, State, cause

log = logging.getLogger(__name__)

PLURAL = "rayservices"
APPLIED = "simpo/applied"
"""Annotation, JSON: the `generation` that our last change made, and which revisions were `answering` before, by id."""
EDITED = -1
"""Revision shown for an application that is not as we declare it: somebody edited it, or took it out."""
SETTLE_S = 10.0  # five passes of KubeRay, which looks every 2 s

_REFUSED = {
    "ValidationFailed": "KubeRay refuses the RayService",
    "InitializingTimeout": "KubeRay gave the RayService up",
}


class RayServiceDeployer:
    """Deployer over a RayService that is there already."""

    def __init__(
        self,
        kube: KubeApi,
        name: str,
        *,
        http_host: str = "0.0.0.0",
        http_port: int = 8000,
        replicas: Replicas | None = None,
        force: bool = False,
        settle_s: float = SETTLE_S,
    ) -> None:
        """Describe it.

        Args:
            kube: the Kubernetes API.
            name: of the RayService.
            http_host: where Serve's proxies listen; fenced by a network policy.
            http_port: their port.
            replicas: what a deployment is made of.
            force: take the field back from whoever else has set it. Else that is told, and left to people.
            settle_s: so long after a change KubeRay may still show what was before, by the API server's clock.
        """
        self._kube = kube
        self._name = name
        self._http_options = {"host": http_host, "port": http_port}
        self._replicas = replicas or Replicas()
        self._force = force
        self._settle = timedelta(seconds=settle_s)

    def apply(self, desired: Sequence[DesiredDeployment]) -> None:
        refuse_duplicates(desired)
        seen = self._get()
        thing = seen.thing
        wanted = [self._replicas.application(d) for d in desired]
        config = {"http_options": self._http_options, "applications": wanted}
        if _config(thing) == config or not (wanted or _applications(thing)):
            return
        ready = {id: shown.revision for id, shown in self._look(seen).items() if shown.state == "READY"}
        answering = {**_applied(thing).get("answering", {}), **ready}
        note = {
            "generation": thing["metadata"]["generation"] + 1,
            "answering": {d.id: answering[d.id] for d in desired if d.id in answering},
        }
        wish = {
            "apiVersion": API_VERSION,
            "kind": "RayService",
            "metadata": {
                "name": self._name,
                "namespace": self._kube.namespace,
                # Of this very object: one that is gone, or made anew meanwhile, is refused instead of created.
                "uid": thing["metadata"]["uid"],
                "annotations": {APPLIED: json.dumps(note, sort_keys=True)},
            },
            "spec": {"serveConfigV2": json.dumps(config, sort_keys=True, indent=1)},
        }
        try:
            self._kube.apply(PLURAL, self._name, wish, force=self._force)
        except KubeError as error:
            if error.status == 409 and not self._force:
                hint = "put the field back as it was, or set SIMPO_KUBE_FORCE=1 to take it"
                words = f"RayService {self._name} was edited by somebody else ({error}); {hint}"
                raise DeployerError(words, 409) from error
            raise DeployerError(str(error), error.status) from error

    def observe(self) -> dict[str, ObservedDeployment]:
        return self._look(self._get())

    def close(self) -> None:
        """Close the connections."""
        self._kube.close()

    def _get(self) -> Seen:
        try:
            seen = self._kube.get(PLURAL, self._name)
        except KubeError as error:
            raise DeployerError(str(error), error.status) from error
        if seen is None:
            remedy = "kubectl apply -k of your overlay makes it, and the models are declared again by themselves"
            raise DeployerError(f"there is no RayService {self._name}; {remedy}", 404)
        metadata = seen.thing["metadata"]
        if "deletionTimestamp" in metadata:
            held = ", ".join(metadata.get("finalizers") or []) or "its pods"
            words = f"RayService {self._name} is being deleted, and held by {held}; apply it again afterwards"
            raise DeployerError(words, 410)
        return seen

    def _look(self, seen: Seen) -> dict[str, ObservedDeployment]:
        view = _View.of(seen, self._settle)
        found = {}
        for id, config in view.declared.items():
            args = config.get("args") or {}
            state, message = view.state(id, args.get("revision"))
            revision = args.get("revision") if self._is_ours(config) else EDITED
            found[id] = ObservedDeployment(state=state, message=message, revision=revision, idle_s=idle_of(config))
        for id, status in view.active.items():
            if id not in found and status.get("status") != "DELETING":
                found[id] = ObservedDeployment(state="PENDING", message="Is taken away.", revision=EDITED)
        return found

    def _is_ours(self, config: Json) -> bool:
        """True when the application is as we would declare it."""
        args = config.get("args") or {}
        try:
            wish = DesiredDeployment(
                id=config["name"],
                name=args["name"],
                model_path=args["model_path"],
                revision=args["revision"],
                project=project_of(config["route_prefix"]),
                variant=variant_of(config["route_prefix"]),
                engine=args.get("engine", TRANSFORMERS),
                idle_s=idle_of(config),
            )
        except (KeyError, TypeError, ValueError):
            return False
        return self._replicas.application(wish) == config


@dataclass(frozen=True, kw_only=True)
class _View:
    """What one look at the RayService says."""

    declared: dict[str, Json]
    """Applications of the configuration by name."""
    active: Mapping[str, Json]
    """Serve's states in the cluster that answers; empty while another one is being prepared."""
    pending: Mapping[str, Json]
    """The same in the cluster that shall take over."""
    upgrading: bool
    """Two clusters are there."""
    since_upgrade: bool
    """Our last change came after the second cluster: it is not in the first."""
    settled: bool
    """The states shown are those of this configuration."""
    answering: Mapping[str, Any]
    refused: str
    """Why KubeRay does nothing with it; empty when it does."""
    closed: str
    """Why nothing answers; empty when something does."""

    @classmethod
    def of(cls, seen: Seen, settle: timedelta) -> "_View":
        thing = seen.thing
        status = thing.get("status") or {}
        conditions = {c["type"]: c for c in status.get("conditions") or []}
        active, pending = status.get("activeServiceStatus") or {}, status.get("pendingServiceStatus") or {}
        applied = managed_at(thing)
        begun = when(conditions.get("UpgradeInProgress", {}).get("lastTransitionTime"))
        upgrading = bool(active.get("rayClusterName") and pending.get("rayClusterName"))
        ready = conditions.get("Ready", {})
        note = _applied(thing)
        taken_up = status.get("observedGeneration", 0) >= note.get("generation", thing["metadata"]["generation"])
        refused = _REFUSED.get(ready.get("reason", ""), "")
        why = ready.get("message") or "KubeRay has not looked at it yet"
        if thing["spec"].get("suspend"):
            why = "the RayService is suspended"
        return cls(
            declared={app["name"]: app for app in _applications(thing)},
            active=active.get("applicationStatuses") or {},
            pending=pending.get("applicationStatuses") or {},
            upgrading=upgrading,
            since_upgrade=upgrading and (applied is None or begun is None or applied >= begun),
            settled=taken_up and applied is not None and seen.at - applied >= settle,
            answering=note.get("answering", {}),
            refused=f"{refused}: {why}" if refused else "",
            closed="" if ready.get("status") == "True" and not thing["spec"].get("suspend") else why,
        )

    def state(self, id: str, revision: Any) -> tuple[State, str]:
        """(state, message) of one application."""
        if self.refused:
            return "FAILED", self.refused
        confirmed = revision is not None and self.answering.get(id) == revision
        here, coming = self.active.get(id), self.pending.get(id, {})
        fails_there = STATES.get(coming.get("status", "")) == "FAILED"
        if self.upgrading:
            if fails_there:
                log.warning("%s does not load in the cluster that shall take over: %s", id, _cause(coming))
            if not self.closed and (confirmed or not self.since_upgrade):
                return "READY", ""
            return ("FAILED", _cause(coming)) if fails_there else ("PENDING", "Loads in a new cluster.")
        if not self.settled and not confirmed:
            return "PENDING", "KubeRay takes it up."
        if here is None and fails_there:
            return "FAILED", _cause(coming)
        state = STATES.get((here or {}).get("status", ""), "PENDING")
        if here is not None and state == "FAILED":
            return state, _cause(here)
        if self.closed:
            return "PENDING", f"No pod answers: {self.closed}."
        return state, "" if state == "READY" else "Ray Serve loads it."


def _config(thing: Json) -> Any:
    """The Serve configuration of a RayService; None where it is no YAML (then it is not ours)."""
    try:
        return yaml.safe_load(thing["spec"].get("serveConfigV2") or "{}")
    except yaml.YAMLError:
        return None


def _applications(thing: Json) -> list[Json]:
    config = _config(thing)
    listed = config.get("applications") if isinstance(config, dict) else None
    return [app for app in listed or [] if isinstance(app, dict) and isinstance(app.get("name"), str)]


def _applied(thing: Json) -> dict[str, Any]:
    try:
        found = json.loads((thing["metadata"].get("annotations") or {}).get(APPLIED) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _cause(status: Json) -> str:
    deployments = status.get("serveDeploymentStatuses") or {}
    return cause([d.get("message", "") for d in deployments.values()] + [status.get("message", "")])
