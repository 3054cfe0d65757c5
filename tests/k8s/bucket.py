"""What we promise of an installation whose store is a bucket (component object-store); nothing of one with a claim."""

from collections.abc import Iterator
from typing import Any

from tests.k8s.manifests import PodView, name_of, pods

Json = dict[str, Any]

CLAIM = "simpo-store"
KEYS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})
ENDPOINT = "AWS_ENDPOINT_URL_S3"
READING = "simpo-object-store-read"
"""Secret with keys that only read."""


def one_store(objects: list[Json]) -> Iterator[str]:
    """Run directories have one place: where it is a bucket, no pod has the claim, which nobody would look into."""
    if _copies(objects) is None:
        return
    for thing in objects:
        if thing["kind"] == "PersistentVolumeClaim" and thing["metadata"]["name"] == CLAIM:
            yield f"{name_of(thing)}: SIMPO_STORE is a bucket, so this would hold nothing"
    for view in pods(objects):
        for volume in view.spec.get("volumes") or []:
            if (volume.get("persistentVolumeClaim") or {}).get("claimName") == CLAIM:
                yield f"{view.owner}: SIMPO_STORE is a bucket, so the volume {volume['name']} must not be a claim"


def bounded_copies(objects: list[Json]) -> Iterator[str]:
    """Who works in copies has a directory with a limit for them, so that a full one ends a pod and not its node."""
    copies = _copies(objects)
    if copies is None:
        return
    for view in pods(objects):
        path = "/tmp" if view.is_ray else copies  # drivers, trials and replicas take the temporary directory
        if needs_bucket(view) and not any(_bounded(view, container, path) for container in view.containers()):
            yield f"{view.owner}: needs an emptyDir with a sizeLimit at {path}, for its copies"


def bucket_keys(objects: list[Json]) -> Iterator[str]:
    """The bucket's keys are where drivers, trials, replicas and the reconciler are, from a Secret, and go over TLS.

    Replicas only read: the keys of those who write are not theirs.
    """
    remote = _copies(objects) is not None
    for view in pods(objects):
        entries = {entry["name"]: entry for _, entry in view.environment() if entry["name"] in KEYS}
        if remote and needs_bucket(view) and set(entries) != KEYS:
            yield f"{view.owner}: needs {' and '.join(sorted(KEYS))}"
        if entries and not (remote and needs_bucket(view)):
            yield f"{view.owner}: has no business in the bucket, and so none with {', '.join(sorted(entries))}"
        reads = view.labels.get("app.kubernetes.io/component") == "serving"
        for name, entry in entries.items():
            if "secretKeyRef" not in (entry.get("valueFrom") or {}):
                yield f"{view.owner}: {name} must come from a Secret"
            elif reads and entry["valueFrom"]["secretKeyRef"]["name"] != READING:
                yield f"{view.owner}: {name} must be of {READING}: replicas write nothing"
    for thing in objects:
        endpoint = (thing.get("data") or {}).get(ENDPOINT) if thing["kind"] == "ConfigMap" else None
        if endpoint is not None and not endpoint.startswith("https://"):
            yield f"{name_of(thing)}: {ENDPOINT} must be https://..."


def needs_bucket(view: PodView) -> bool:
    """Whether a pod reads or writes run directories: the API reads rows, heads run nothing."""
    component, node = view.labels.get("app.kubernetes.io/component"), view.labels.get("ray.io/node-type")
    if not view.is_ray:
        return component == "reconciler"
    by_hand = component == "sweep"  # component rayjob: its driver sits on the head
    return node == "worker" or by_hand


def _copies(objects: list[Json]) -> str | None:
    """SIMPO_COPIES where SIMPO_STORE is a bucket, else None."""
    for thing in objects:
        data = thing.get("data") or {}
        if thing["kind"] == "ConfigMap" and data.get("SIMPO_STORE", "").startswith("s3://"):
            return str(data.get("SIMPO_COPIES"))
    return None


def _bounded(view: PodView, container: Json, path: str) -> bool:
    mounted = {m["name"] for m in container.get("volumeMounts") or [] if m["mountPath"] == path}
    volumes = [volume for volume in view.spec.get("volumes") or [] if volume["name"] in mounted]
    return any("sizeLimit" in (volume.get("emptyDir") or {}) for volume in volumes)
