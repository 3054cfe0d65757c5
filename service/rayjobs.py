"""Sweeps as RayJobs: each driver with a Ray cluster of its own, made when Kueue admits it and gone when it ends.

The pods are those of a template: a RayJob of this namespace that stays suspended, has no queue, and so never runs. What
`kubectl apply -k` does to it - images, sizes, cards - holds for every sweep submitted from then on.

Facts this file stands on (KubeRay 1.7, Kueue 0.19): in K8sJobMode the submitter asks `ray job status` before it
submits, so a repeated submission makes one job; entrypoint, resources and runtime environment go through a shell with
Go's quoting alone; Kueue owns `suspend` from the first moment on; KubeRay deletes the cluster of a finished job, never
the RayJob.
"""

import copy
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

import yaml

from service.clock import Clock
from service.cluster import JobInfo, JobsError
from service.kube import API_VERSION, Json, KubeApi, KubeError, when

log = logging.getLogger(__name__)

PLURAL = "rayjobs"
MANAGED = "simpo/managed"
"""Label of everything that is submitted here; the template has none."""
QUEUE = "simpo/queue"
"""Annotation of the template: the LocalQueue for what is made of it."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
SWEEP = "simpo/sweep"
"""Label of the pods: the submission."""

_T = TypeVar("_T")
_OVER = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
_ID = re.compile(r"[a-z][a-z0-9-]{0,39}")
_PLAIN = re.compile(r"[A-Za-z0-9_./: =-]+")  # nothing that any shell reads as more than itself
_KEEP = timedelta(minutes=15)  # a finished RayJob, for people to look at; every list reads it again
_FORGET_AT_ONCE = 20
_LOG_TAIL = 4000


class KubeRayJobs:
    """Jobs over RayJob objects. A second submit of an id is refused by the API server, whatever became of the first."""

    def __init__(self, kube: KubeApi, template: str, clock: Clock, *, driver_resource: str | None = None) -> None:
        """Describe it.

        Args:
            kube: the Kubernetes API.
            template: name of the suspended RayJob.
            clock: time.
            driver_resource: custom Ray resource of the nodes that may run drivers; None: the head.
        """
        self._kube = kube
        self._template = template
        self._clock = clock
        self._driver_resource = driver_resource
        self._uids: dict[str, str] = {}

    def submit(self, submission_id: str, entrypoint: str, env: Mapping[str, str]) -> None:
        assert _ID.fullmatch(submission_id), submission_id
        seen = _answered(lambda: self._kube.get(PLURAL, self._template))
        if seen is None:
            remedy = "kubectl apply -k of an overlay with the component queued-sweeps makes it"
            raise JobsError(f"there is no RayJob {self._template}; {remedy}", unreachable=True)
        job = self._job(seen.thing, submission_id, entrypoint, env)
        # Created, not applied: an apply would change a job that runs, where the template changed meanwhile.
        made = _answered(lambda: self._kube.create(PLURAL, job))
        self._uids[submission_id] = made["metadata"]["uid"]

    def get(self, submission_id: str) -> JobInfo | None:
        seen = _answered(lambda: self._kube.get(PLURAL, submission_id))
        return self._note(seen.thing) if seen is not None else None

    def list(self) -> dict[str, JobInfo]:
        things = _answered(lambda: self._kube.find(PLURAL, f"{MANAGED}=yes"))
        jobs = {job.submission_id: job for job in map(self._note, things)}
        self._uids = {name: uid for name, uid in self._uids.items() if name in jobs}
        self._forget_old(things)
        return jobs

    def stop(self, submission_id: str) -> None:
        """Delete it: KubeRay stops the job, waits for it, and takes the cluster away."""
        if submission_id not in self._uids and self.get(submission_id) is None:
            return
        uid = self._uids[submission_id]
        try:
            _answered(lambda: self._kube.delete(PLURAL, submission_id, uid))
        except JobsError:
            self._uids.pop(submission_id, None)  # perhaps another object has the name now: look again the next time
            raise

    def logs(self, submission_id: str) -> str:
        """What KubeRay says of a job that failed: the pods' own logs are not ours to read."""
        job = self.get(submission_id)
        return job.message[-_LOG_TAIL:] if job is not None and job.status == "FAILED" else ""

    def close(self) -> None:
        """Close the connections."""
        self._kube.close()

    def _note(self, thing: Json) -> JobInfo:
        self._uids[thing["metadata"]["name"]] = thing["metadata"]["uid"]
        return info(thing)

    def _job(self, template: Json, name: str, entrypoint: str, env: Mapping[str, str]) -> Json:
        """The whole object. Raises JobsError for what a shell could misread, and for a template that names no queue."""
        environment = yaml.safe_dump({"env_vars": dict(env)}, sort_keys=True)
        for text in (entrypoint, *env, *env.values(), self._driver_resource or "x"):
            if not _PLAIN.fullmatch(text):
                hint = "SIMPO_STORE, SIMPO_DRIVER_PYTHON, SIMPO_DRIVER_RESOURCE: letters, digits and _ . / : = - alone"
                raise JobsError(f"KubeRay gives {text!r} to a shell; {hint}", unreachable=False)
        queue = (template["metadata"].get("annotations") or {}).get(QUEUE)
        if not queue:
            raise JobsError(f"RayJob {self._template} needs the annotation {QUEUE}", unreachable=True)
        spec = copy.deepcopy(template["spec"])
        spec |= {
            "suspend": True,  # Kueue takes it back when there is quota
            "shutdownAfterJobFinishes": True,  # Kueue asks for it
            "submissionMode": "K8sJobMode",
            "backoffLimit": 0,  # attempts are the reconciler's
            "jobId": name,
            "entrypoint": entrypoint,
            "runtimeEnvYAML": environment,
        }
        if self._driver_resource:
            spec["entrypointResources"] = json.dumps({self._driver_resource: 0.01})
        for pod in _pod_templates(spec):
            pod.setdefault("metadata", {}).setdefault("labels", {})[SWEEP] = name
        labels = {**(template["metadata"].get("labels") or {}), MANAGED: "yes", SWEEP: name, QUEUE_LABEL: queue}
        metadata = {"name": name, "namespace": self._kube.namespace, "labels": labels}
        return {"apiVersion": API_VERSION, "kind": "RayJob", "metadata": metadata, "spec": spec}

    def _forget_old(self, things: Sequence[Json]) -> None:
        """Delete some of what is long over: nobody else does, and 10,000 sweeps a day would fill the server."""
        old = [thing for thing in things if self._is_old(thing)][:_FORGET_AT_ONCE]
        for thing in old:
            try:
                self._kube.delete(PLURAL, thing["metadata"]["name"], thing["metadata"]["uid"])
            except KubeError as error:
                log.warning("%s: not cleared away: %s", thing["metadata"]["name"], error)
                return

    def _is_old(self, thing: Json) -> bool:
        ended = when((thing.get("status") or {}).get("endTime"))
        over = info(thing).terminal and "deletionTimestamp" not in thing["metadata"]
        return over and ended is not None and self._clock.now() - ended > _KEEP


def info(thing: Json) -> JobInfo:
    """What a RayJob says, in the words of Ray's jobs."""
    status, metadata = thing.get("status") or {}, thing["metadata"]
    at, word = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    said = " ".join(part for part in (status.get("reason"), status.get("message")) if part)
    name = metadata["name"]
    if "deletionTimestamp" in metadata:
        held = ", ".join(metadata.get("finalizers") or []) or "its cluster"
        message = f"Is being deleted since {metadata['deletionTimestamp']}, held by {held}."
        return JobInfo(submission_id=name, status="RUNNING", message=message)
    if word in _OVER:
        return JobInfo(submission_id=name, status=word, message=said)
    if at in ("Complete", "Failed"):
        return JobInfo(submission_id=name, status="SUCCEEDED" if at == "Complete" else "FAILED", message=said)
    if word == "RUNNING":
        return JobInfo(submission_id=name, status="RUNNING", message=said)
    queue = (metadata.get("labels") or {}).get(QUEUE_LABEL, "")
    if thing["spec"].get("suspend"):
        return JobInfo(
            submission_id=name, status="PENDING", message=f"Waits in the queue {queue} of Kueue.", queued=True
        )
    return JobInfo(submission_id=name, status="PENDING", message=said or "Its Ray cluster starts.")


def _pod_templates(spec: Json) -> list[Json]:
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *(cluster.get("workerGroupSpecs") or [])]
    submitter = [spec["submitterPodTemplate"]] if "submitterPodTemplate" in spec else []
    return [*submitter, *(group["template"] for group in groups)]


def _answered(call: Callable[[], _T]) -> _T:
    """The call's answer; its KubeError as a JobsError."""
    try:
        return call()
    except KubeError as error:
        # A full quota empties by itself: that waits, and fails no sweep.
        waits = error.unreachable or (error.status == 403 and "quota" in error.reason)
        raise JobsError(str(error), unreachable=waits) from error
