"""Rendering k8s/ with kubectl's kustomize, and the pods that the rendered objects would make."""

import pickle
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]

REPO = Path(__file__).resolve().parents[2]
K8S = REPO / "k8s"
NAMESPACE = "simpo"
MIN_KUBECTL = (1, 30)
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
RAY_KINDS = ("RayCluster", "RayService", "RayJob", "RayCronJob")
CLUSTER_SCOPED = ("Namespace", "StorageClass", "ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass")
REST = Path(__file__).parent / "rest"
ALPHA = ("gcs-rocksdb", "mtls")
"""Components that need a feature gate of KubeRay that is off by default."""
AUTOSCALER = "autoscaler"


@dataclass(frozen=True, kw_only=True)
class PodView:
    """A pod that some object would make."""

    owner: str
    """Kind/name of the object, and for Ray objects the group: what a message calls the pod."""
    pod: Json
    """A whole v1 Pod."""

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the pod."""
        labels: dict[str, str] = self.pod["metadata"].get("labels") or {}
        return labels

    @property
    def namespace(self) -> str:
        """Namespace the pod runs in."""
        return str(self.pod["metadata"]["namespace"])

    @property
    def spec(self) -> Json:
        """Spec of the pod."""
        spec: Json = self.pod["spec"]
        return spec

    @property
    def is_ray(self) -> bool:
        """Whether KubeRay makes this pod as a node of a Ray cluster."""
        return self.labels.get("ray.io/is-ray-node") == "yes"

    def containers(self) -> Iterator[Json]:
        """Init containers, then the others."""
        yield from self.spec.get("initContainers") or []
        yield from self.spec.get("containers") or []

    def ray_containers(self) -> Iterator[Json]:
        """The containers of a Ray node that are written here, not the one KubeRay adds."""
        for container in self.spec["containers"] if self.is_ray else ():
            if container["name"] != AUTOSCALER:
                yield container

    def environment(self) -> Iterator[tuple[str, Json]]:
        """(container name, env entry) of every variable set one by one."""
        for container in self.containers():
            for entry in container.get("env") or []:
                yield container["name"], entry


@cache
def kubectl() -> tuple[str | None, str]:
    """(path of a kubectl that is new enough, its version), or (None, why there is none)."""
    seen = shutil.which("kubectl")
    if seen is None:
        return None, "no kubectl on PATH; kustomize rendering needs one of at least 1.30"
    answer = subprocess.run(
        [seen, "version", "--client", "-o", "json"], capture_output=True, text=True, timeout=120, check=False
    )
    found = re.search(r'"gitVersion":\s*"v(\d+)\.(\d+)', answer.stdout)
    if not found:
        return None, f"{seen} does not tell its version; kustomize rendering needs at least 1.30"
    version = (int(found[1]), int(found[2]))
    if version < MIN_KUBECTL:
        return None, f"{seen} is {version[0]}.{version[1]}, too old for kustomize components; at least 1.30 is needed"
    return seen, f"{version[0]}.{version[1]}"


def folders() -> list[Path]:
    """Base, every overlay, and the components that no overlay uses."""
    overlays = sorted(path.parent for path in (K8S / "overlays").glob("*/kustomization.yaml"))
    return [K8S / "base", *overlays, REST]


def components(folder: Path) -> list[str]:
    """Names of the components that a kustomization and those it builds on switch on."""
    found = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    below = [name for path in found["resources"] if "../" in path for name in components((folder / path).resolve())]
    return [*below, *(Path(path).name for path in found.get("components") or [])]


@cache
def _rendered(folder: Path) -> bytes:
    """The objects, parsed once and pickled: taking them out again is a hundred times cheaper than parsing."""
    program, reason = kubectl()
    if program is None:
        raise RuntimeError(reason)
    command = [program, "kustomize", str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if answer.returncode != 0 or answer.stderr:  # kustomize warns of deprecated fields on stderr
        raise AssertionError(f"kubectl kustomize {folder}:\n{answer.stderr or answer.stdout}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return pickle.dumps([thing for thing in yaml.load_all(answer.stdout, Loader=loader) if thing])


def render(folder: Path) -> list[Json]:
    """The objects of a kustomization, in a copy that a test may change."""
    objects: list[Json] = pickle.loads(_rendered(folder))
    return objects


def name_of(thing: Json) -> str:
    """Kind/name, for messages."""
    return f"{thing['kind']}/{thing['metadata']['name']}"


def ray_clusters(objects: list[Json]) -> Iterator[tuple[str, Json]]:
    """(name for messages, RayCluster spec) of every Ray cluster that the objects describe."""
    for thing in objects:
        spec = thing.get("spec") or {}
        if thing["kind"] == "RayCluster":
            yield name_of(thing), spec
        elif thing["kind"] == "RayService":
            yield name_of(thing), spec["rayClusterConfig"]
        elif thing["kind"] == "RayJob" and "rayClusterSpec" in spec:
            yield name_of(thing), spec["rayClusterSpec"]


def pods(objects: list[Json]) -> list[PodView]:
    """Every pod that the objects would make, Ray's heads, workers and submitters included."""
    return [view for thing in objects for view in _pods_of(thing)]


def _pods_of(thing: Json) -> Iterator[PodView]:
    spec = thing.get("spec") or {}
    if thing["kind"] == "Pod":
        yield _view(thing, name_of(thing), thing)
    elif thing["kind"] in WORKLOADS:
        yield _view(thing, name_of(thing), spec["template"])
    elif thing["kind"] == "CronJob":
        yield _view(thing, name_of(thing), spec["jobTemplate"]["spec"]["template"])
    elif thing["kind"] in RAY_KINDS:
        if "submitterPodTemplate" in spec:
            yield _view(thing, f"{name_of(thing)} submitter", spec["submitterPodTemplate"])
        for name, cluster in ray_clusters([thing]):
            yield from _ray_pods(thing, name, cluster)


def _ray_pods(thing: Json, name: str, cluster: Json) -> Iterator[PodView]:
    groups = [("headgroup", "head", cluster["headGroupSpec"])]
    groups += [(group["groupName"], "worker", group) for group in cluster.get("workerGroupSpecs") or []]
    for group_name, node_type, group in groups:
        # The clusters of a RayService and of a RayJob have names that KubeRay makes up: a policy cannot know them.
        suffix = "" if thing["kind"] == "RayCluster" else "-x7k2p"
        labels = {  # what KubeRay adds (ray-operator/controllers/ray/common/pod.go, labelPod)
            "ray.io/is-ray-node": "yes",
            "ray.io/cluster": f"{thing['metadata']['name']}{suffix}",
            "ray.io/node-type": node_type,
            "ray.io/group": group_name,
        }
        view = _view(thing, f"{name} {group_name}", group["template"], labels)
        _as_kuberay_does(view.spec, cluster if node_type == "head" else {})
        yield view


def _as_kuberay_does(spec: Json, cluster: Json) -> None:
    """Add what KubeRay adds to a Ray pod: the port of the metrics, and the autoscaler beside a head."""
    first, *others = spec["containers"]
    ports = first.get("ports") or []
    if not any(port.get("name") == "metrics" for port in ports):
        first = {**first, "ports": [*ports, {"name": "metrics", "containerPort": 8080}]}
    spec["containers"] = [first, *others]
    if cluster.get("enableInTreeAutoscaling"):
        options = cluster.get("autoscalerOptions") or {}
        kept = ("env", "envFrom", "resources", "securityContext", "volumeMounts")
        own = {key: options[key] for key in kept if key in options}
        spec["containers"].append({"name": AUTOSCALER, "image": options.get("image", first["image"]), **own})


def _view(thing: Json, owner: str, template: Json, labels: dict[str, str] | None = None) -> PodView:
    meta = template.get("metadata") or {}
    metadata = {
        "name": thing["metadata"]["name"],
        "namespace": thing["metadata"].get("namespace", "default"),
        "labels": {**(meta.get("labels") or {}), **(labels or {})},
        "annotations": meta.get("annotations") or {},
    }
    spec = dict(template["spec"])
    claims = (thing.get("spec") or {}).get("volumeClaimTemplates") or []  # a StatefulSet's pods get these as volumes
    if claims:
        own = [
            {"name": claim["metadata"]["name"], "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}
            for claim in claims
        ]
        spec["volumes"] = [*(spec.get("volumes") or []), *own]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    return PodView(owner=owner, pod=pod)
