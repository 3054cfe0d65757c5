"""KubeRay 1.7 and Kueue, as far as they show in the objects we read; they live on a KubeDouble and move by `tick`.

One tick is one pass of KubeRay (every 2 s in the real one). What is kept of its ways, each read in its source: Serve's
states are read *before* a changed configuration is put, while the generation already counts as observed; a changed
rayClusterConfig makes a pending cluster, which alone gets the configuration while it exists; the active cluster's
states are not shown then; traffic moves when every application of the pending cluster runs.
"""

import json
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from tests.service.kube_double import NAMESPACE, KubeDouble

Json = dict[str, Any]

JOB_FINALIZER = "ray.io/rayjob-finalizer"


class KubeRayDouble:
    """`bad`: model paths that fail to load. `slots`: jobs that Kueue admits at once."""

    def __init__(self, kube: KubeDouble) -> None:
        self.kube = kube
        self.bad: set[str] = set()
        self.slots = 100
        self.stuck = False
        """Deleted objects keep their finalizers."""
        self.load_ticks = 2
        self.clusters: dict[str, _Cluster] = {}
        self.failures: list[str] = []
        self._points: dict[str, str] = {}
        self._made = 0

    @contextmanager
    def running(self, every_s: float = 0.02) -> Iterator[None]:
        """Tick by itself, in a thread."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(every_s):
                try:
                    self.tick()
                except Exception:
                    self.failures.append(traceback.format_exc())

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(10)
            assert self.failures == []

    def tick(self, times: int = 1) -> None:
        """So many passes over everything."""
        for _ in range(times):
            with self.kube.changed:
                for thing in self.kube.all("rayservices"):
                    if not self._let_go("rayservices", thing):
                        self._service(thing)
                for thing in self.kube.all("rayjobs"):
                    if not self._let_go("rayjobs", thing):
                        self._job(thing)
                self._admit()
            for cluster in self.clusters.values():
                cluster.tick(self.load_ticks, self.bad)

    def answers(self, service: str, route_prefix: str) -> int | None:
        """Revision of what answers under that path of the Service; None: nothing."""
        cluster = self.clusters.get(self._points.get(service, ""))
        apps = list(cluster.apps.values()) if cluster else []  # at once: `running` puts others in
        return next((app.serving for app in apps if app.config["route_prefix"] == route_prefix), None)

    def finish(self, job: str, word: str, message: str = "") -> None:
        """The Ray job of a RayJob is over: SUCCEEDED, FAILED or STOPPED."""
        with self.kube.changed:
            status = dict(self.kube.objects["rayjobs", NAMESPACE, job].get("status") or {})
            status |= {"jobStatus": word, "message": message, "endTime": self.kube.stamp()}
            status["jobDeploymentStatus"] = "Failed" if word == "FAILED" else "Complete"
            self.kube.set_status("rayjobs", job, status)

    def _let_go(self, plural: str, thing: Json) -> bool:
        if "deletionTimestamp" not in thing["metadata"]:
            return False
        if not self.stuck:
            self.kube.edit(plural, thing["metadata"]["name"], lambda t: t["metadata"].pop("finalizers"), "kuberay")
        return True

    # -- RayService

    def _service(self, thing: Json) -> None:
        name, spec = thing["metadata"]["name"], thing["spec"]
        status = thing.get("status") or {}
        active, pending = dict(status.get("activeServiceStatus") or {}), dict(status.get("pendingServiceStatus") or {})
        here = self.clusters.get(active.get("rayClusterName", ""))
        shape = json.dumps(spec["rayClusterConfig"], sort_keys=True)
        if pending.get("rayClusterName"):
            cluster = self.clusters.setdefault(pending["rayClusterName"], _Cluster(shape))
            ready, pending["applicationStatuses"] = cluster.served(spec.get("serveConfigV2", ""))
            active.pop("applicationStatuses", None)
            if ready:
                self._points[name] = pending["rayClusterName"]
                active, pending = pending, {}
        elif here is not None and here.shape == shape:
            _, active["applicationStatuses"] = here.served(spec.get("serveConfigV2", ""))
        here = self.clusters.get(active.get("rayClusterName", ""))
        if not pending and (here is None or here.shape != shape):
            self._made += 1
            pending = {"rayClusterName": f"{name}-{self._made:05d}"}
        endpoints = 2 if self._points.get(name) in self.clusters else 0
        conditions = {c["type"]: c for c in status.get("conditions") or []}
        ready_words = ("True", "NonZeroServeEndpoints", "Number of serve endpoints is greater than 0")
        words = ready_words if endpoints else ("False", "Initializing", "RayService is initializing")
        self._condition(conditions, "Ready", *words)
        both = bool(active.get("rayClusterName") and pending.get("rayClusterName"))
        reason = "BothActivePendingClustersExist" if both else "NoPendingCluster"
        self._condition(conditions, "UpgradeInProgress", str(both), reason, "")
        fresh = {"observedGeneration": thing["metadata"]["generation"], "numServeEndpoints": endpoints}
        fresh |= {"activeServiceStatus": active, "pendingServiceStatus": pending}
        self.kube.set_status("rayservices", name, {**fresh, "conditions": list(conditions.values())})

    def _condition(self, conditions: dict[str, Json], kind: str, value: str, reason: str, message: str) -> None:
        old = conditions.get(kind, {})
        since = old["lastTransitionTime"] if old.get("status") == value else self.kube.stamp()
        words = {"type": kind, "status": value, "reason": reason, "message": message}
        conditions[kind] = {**words, "lastTransitionTime": since}

    # -- RayJob and Kueue

    def _job(self, thing: Json) -> None:
        name, status = thing["metadata"]["name"], dict(thing.get("status") or {})
        at = status.get("jobDeploymentStatus", "")
        if thing["spec"].get("suspend"):
            following = {"Running": "Suspending", "Initializing": "Suspending"}.get(at, "Suspended")
            if at in ("Complete", "Failed"):
                return
            status |= {"jobDeploymentStatus": following, "jobStatus": ""}
        elif at in ("", "Suspended"):
            if JOB_FINALIZER not in thing["metadata"].get("finalizers", []):
                self.kube.edit("rayjobs", name, lambda t: t["metadata"].update(finalizers=[JOB_FINALIZER]), "kuberay")
            status |= {
                "jobDeploymentStatus": "Initializing",
                "rayClusterName": f"{name}-x7k2p",
                "startTime": self.kube.stamp(),
            }
        elif at == "Initializing":
            status |= {"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}
        elif at == "Running":
            status |= {"jobStatus": "RUNNING"}
        self.kube.set_status("rayjobs", name, status)

    def _admit(self) -> None:
        jobs = [
            t for t in self.kube.all("rayjobs") if "kueue.x-k8s.io/queue-name" in (t["metadata"].get("labels") or {})
        ]
        over = ("Complete", "Failed")
        live = [t for t in jobs if (t.get("status") or {}).get("jobDeploymentStatus") not in over]
        free = self.slots - sum(not t["spec"].get("suspend") for t in live)
        waiting = [t for t in live if t["spec"].get("suspend")]
        for thing in sorted(waiting, key=lambda t: int(t["metadata"]["resourceVersion"]))[: max(free, 0)]:
            self.kube.edit("rayjobs", thing["metadata"]["name"], lambda t: t["spec"].update(suspend=False), "kueue")


class _Cluster:
    """One Ray cluster of a RayService."""

    def __init__(self, shape: str) -> None:
        self.shape = shape
        self.config = ""
        self.apps: dict[str, _App] = {}

    def served(self, config: str) -> tuple[bool, Json]:
        """KubeRay's look: (ready, states), both from before the configuration is put."""
        states = {id: app.status() for id, app in self.apps.items()}
        ready = bool(states) and all(state["status"] == "RUNNING" for state in states.values())
        if config and (config != self.config or not states):
            self.config = config
            declared = {app["name"]: app for app in yaml.safe_load(config).get("applications") or []}
            for id in set(self.apps) - set(declared):
                self.apps[id].state = "DELETING"
            for id, app in declared.items():
                self.apps.setdefault(id, _App()).put(app)
        return ready, states

    def tick(self, load_ticks: int, bad: set[str]) -> None:
        """Time passes."""
        self.apps = {id: app for id, app in self.apps.items() if app.state != "DELETING"}
        for app in self.apps.values():
            app.tick(load_ticks, bad)


class _App:
    def __init__(self) -> None:
        self.config: Json = {}
        self.state, self.message, self.ticks = "NOT_STARTED", "", 0
        self.serving: int | None = None

    def put(self, config: Json) -> None:
        if config != self.config or self.state == "DELETING":
            self.config, self.state, self.message, self.ticks = config, "DEPLOYING", "", 0

    def tick(self, load_ticks: int, bad: set[str]) -> None:
        self.ticks += 1
        if self.state == "DEPLOYING" and self.ticks >= load_ticks:
            path = self.config["args"]["model_path"]
            if path in bad:
                self.state = "DEPLOY_FAILED"
                self.message = f"Traceback:\n  File ...\nsimpo.errors.CheckpointError: no model in {path}\n"
            else:
                self.state, self.serving = "RUNNING", self.config["args"]["revision"]

    def status(self) -> Json:
        return {"status": self.state, "message": self.message, "serveDeploymentStatuses": {}}
