"""What KubeRay's controller refuses although the CRD admits it (v1.7.0, controllers/ray/utils/validation.go).

The API server stores such an object and it then never works. `refusals` covers the kinds that k8s/ may use.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.k8s.manifests import name_of, ray_clusters

Json = dict[str, Any]

_DNS_1035 = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_DNS_1123 = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MAX_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36}
_RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
_UPGRADES = ("None", "NewCluster", "NewClusterWithIncrementalUpgrade")
_MIN_TOKEN_VERSION = (2, 52)
_DURATION = re.compile(r"\d+|(\d+(\.\d+)?(ns|us|ms|s|m|h))+")
_NAMESPACE = "ray.io/external-storage-namespace"


def refusals(objects: list[Json]) -> list[str]:
    """Every reason for which KubeRay's controller would not reconcile the Ray objects among `objects`."""
    return list(_all(objects))


def _all(objects: list[Json]) -> Iterator[str]:
    for thing in objects:
        fault_tolerant = any("gcsFaultToleranceOptions" in cluster for _, cluster in ray_clusters([thing]))
        if fault_tolerant and _NAMESPACE in (thing["metadata"].get("annotations") or {}):
            yield f"{name_of(thing)}: with gcsFaultToleranceOptions, the storage namespace is set there alone"
        if thing["kind"] in _MAX_NAME:
            yield from (f"{name_of(thing)}: {text}" for text in _name(thing))
        if thing["kind"] == "RayJob":
            yield from (f"{name_of(thing)}: {text}" for text in _job(thing))
        if thing["kind"] == "RayService":
            yield from (f"{name_of(thing)}: {text}" for text in _service(thing))
    for name, cluster in ray_clusters(objects):
        for rule in (_groups, _autoscaler, _gcs, _auth):
            yield from (f"{name}: {text}" for text in rule(cluster))


def _name(thing: Json) -> Iterator[str]:
    name, limit = thing["metadata"]["name"], _MAX_NAME[thing["kind"]]
    if not _DNS_1035.fullmatch(name):
        yield "the name is no DNS-1035 label (starts with a letter, no dots)"
    if len(name) > limit:
        yield f"the name has more than {limit} characters"


def _job(thing: Json) -> Iterator[str]:
    spec = thing["spec"]
    mode = spec.get("submissionMode", "K8sJobMode")
    selects = bool(spec.get("clusterSelector"))
    shutdown = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("suspend") and not shutdown:
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("suspend") and selects:
        yield "suspend excludes clusterSelector"
    if selects == ("rayClusterSpec" in spec):
        yield "needs exactly one of rayClusterSpec and clusterSelector"
    if selects and "ray.io/cluster" not in spec["clusterSelector"]:
        yield "clusterSelector needs the key ray.io/cluster"
    if selects and (mode == "SidecarMode" or spec.get("backoffLimit", 0) > 0):
        yield "clusterSelector excludes SidecarMode and backoffLimit"
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "InteractiveMode excludes backoffLimit"
    if mode == "SidecarMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "SidecarMode excludes submitterPodTemplate and submitterConfig"
    if spec.get("ttlSecondsAfterFinished", 0) < 0 or (spec.get("ttlSecondsAfterFinished", 0) > 0 and not shutdown):
        yield "ttlSecondsAfterFinished must not be negative, and needs shutdownAfterJobFinishes"
    head = (spec.get("rayClusterSpec") or {}).get("headGroupSpec")
    if mode == "SidecarMode" and head and head["template"]["spec"].get("restartPolicy", "Never") != "Never":
        yield "SidecarMode needs the head's restartPolicy Never (or unset)"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            yield f"{field} must be greater than 0"
    yield from _deletion(spec)
    try:
        yaml.safe_load(spec.get("runtimeEnvYAML", ""))
    except yaml.YAMLError:
        yield "runtimeEnvYAML is no YAML"


def _deletion(spec: Json) -> Iterator[str]:
    strategy = spec.get("deletionStrategy") or {}
    rules = strategy.get("deletionRules")
    if rules is None:
        return
    if spec.get("shutdownAfterJobFinishes") or "onSuccess" in strategy or "onFailure" in strategy:
        yield "deletionRules exclude shutdownAfterJobFinishes, onSuccess and onFailure"
    if (spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling") and _policies(rules) & {"DeleteWorkers"}:
        yield "the policy DeleteWorkers excludes autoscaling"
    if spec.get("clusterSelector") and _policies(rules) & {"DeleteWorkers", "DeleteCluster"}:
        yield "DeleteWorkers and DeleteCluster exclude clusterSelector"
    delays: dict[str, dict[str, int]] = {}  # condition -> policy -> seconds
    for rule in rules:
        known = delays.setdefault(json.dumps({**rule["condition"], "ttlSeconds": 0}, sort_keys=True), {})
        if rule["policy"] in known:
            yield f"the policy {rule['policy']} is there twice for one condition"
        known[rule["policy"]] = rule["condition"].get("ttlSeconds", 0)
    for known in delays.values():
        ordered = [known[policy] for policy in ("DeleteWorkers", "DeleteCluster", "DeleteSelf") if policy in known]
        if ordered != sorted(ordered):
            yield "ttlSeconds must not fall from workers over cluster to self"


def _policies(rules: list[Json]) -> set[str]:
    return {rule["policy"] for rule in rules}


def _service(thing: Json) -> Iterator[str]:
    spec = thing["spec"]
    cluster = spec.get("rayClusterConfig") or {}
    service = (cluster.get("headGroupSpec") or {}).get("headService") or {}
    if (service.get("metadata") or {}).get("name"):
        yield "headService must not have a name"
    if (spec.get("upgradeStrategy") or {}).get("type", "None") not in _UPGRADES:
        yield f"upgradeStrategy.type must be one of {', '.join(_UPGRADES)}"
    options = (spec.get("upgradeStrategy") or {}).get("clusterUpgradeOptions")
    if (spec.get("upgradeStrategy") or {}).get("type") == "NewClusterWithIncrementalUpgrade":
        yield from _incremental(cluster, options or {})
    timeout = (thing["metadata"].get("annotations") or {}).get("ray.io/initializing-timeout", "1")
    if not _DURATION.fullmatch(timeout) or not re.search(r"[1-9]", timeout):
        yield "the annotation ray.io/initializing-timeout must be a positive duration, like 5m or 300"
    if "upgradeStrategy" in cluster:
        yield "a RayCluster that a RayService owns must not have an upgradeStrategy"
    if (cluster.get("authOptions") or {}).get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth is refused for a RayService"


def _incremental(cluster: Json, options: Json) -> Iterator[str]:
    if not cluster.get("enableInTreeAutoscaling"):
        yield "NewClusterWithIncrementalUpgrade needs enableInTreeAutoscaling"
    if not 0 <= options.get("stepSizePercent", -1) <= options.get("maxSurgePercent", 100) <= 100:
        yield "NewClusterWithIncrementalUpgrade needs 0 <= stepSizePercent <= maxSurgePercent <= 100"
    if options.get("intervalSeconds", 0) <= 0 or not options.get("gatewayClassName"):
        yield "NewClusterWithIncrementalUpgrade needs intervalSeconds > 0 and a gatewayClassName"


def _groups(cluster: Json) -> Iterator[str]:
    autoscaling = cluster.get("enableInTreeAutoscaling", False)
    named = [("headgroup", cluster["headGroupSpec"])]
    named += [(group["groupName"], group) for group in cluster.get("workerGroupSpecs") or []]
    if "networkPolicy" in cluster and not all(_DNS_1123.fullmatch(name) for name, _ in named):
        yield "with networkPolicy, names of groups must be DNS-1123 labels"
    for name, group in named:
        params = group.get("rayStartParams") or {}
        if not group["template"]["spec"].get("containers"):
            yield f"group {name}: needs at least one container"
        if group.get("resources") and any(key in params for key in _RESOURCE_PARAMS):
            yield f"group {name}: resources belong in rayStartParams or in the group's resources, not in both"
        if "labels" in params:
            yield f"group {name}: labels belong in the group's labels, not in rayStartParams"
        if name != "headgroup":
            yield from _replicas(name, group, autoscaling)


def _replicas(name: str, group: Json, autoscaling: bool) -> Iterator[str]:
    if not autoscaling and not {"minReplicas", "maxReplicas"} <= set(group):
        yield f"group {name}: without autoscaling it needs minReplicas and maxReplicas"
    if not 0 <= group.get("minReplicas", 0) <= group.get("maxReplicas", 2**31 - 1):
        yield f"group {name}: needs 0 <= minReplicas <= maxReplicas"
    if group.get("suspend") and autoscaling:
        yield f"group {name}: suspend excludes autoscaling"


def _autoscaler(cluster: Json) -> Iterator[str]:
    enabled = cluster.get("enableInTreeAutoscaling", False)
    options = cluster.get("autoscalerOptions") or {}
    by_env = "RAY_enable_autoscaler_v2" in _env(cluster["headGroupSpec"])
    if options.get("version") and by_env:
        yield "autoscalerOptions.version and RAY_enable_autoscaler_v2 exclude each other"
    if by_env and not enabled:
        yield "RAY_enable_autoscaler_v2 needs enableInTreeAutoscaling"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds must not be negative"
    if enabled and options.get("version", "v2") == "v2":
        for group in [cluster["headGroupSpec"], *(cluster.get("workerGroupSpecs") or [])]:
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                yield "autoscaler v2 needs restartPolicy Never (or unset) on head and workers"


def _gcs(cluster: Json) -> Iterator[str]:
    options = cluster.get("gcsFaultToleranceOptions")
    head = cluster["headGroupSpec"]
    env = _env(head)
    if "redis-username" in (head.get("rayStartParams") or {}) or "REDIS_USERNAME" in env:
        yield "a Redis user name belongs in gcsFaultToleranceOptions"
    if options is None:
        if "RAY_REDIS_ADDRESS" in env:
            yield "RAY_REDIS_ADDRESS needs gcsFaultToleranceOptions"
        return
    if "redis-password" in (head.get("rayStartParams") or {}) or {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & env:
        yield "with gcsFaultToleranceOptions, Redis is set there and nowhere else"
    if "storage" in options and options.get("backend") != "rocksdb":
        yield "gcsFaultToleranceOptions.storage needs the backend rocksdb"


def _auth(cluster: Json) -> Iterator[str]:
    options = cluster.get("authOptions") or {}
    if options.get("mode") != "token":
        return
    numbers = re.match(r"(\d+)\.(\d+)", cluster.get("rayVersion", ""))
    if not numbers or (int(numbers[1]), int(numbers[2])) < _MIN_TOKEN_VERSION:
        yield "authOptions.mode token needs rayVersion of at least 2.52"
    if options.get("secretName") and options.get("enableK8sTokenAuth"):
        yield "authOptions.secretName and enableK8sTokenAuth exclude each other"


def _env(group: Json) -> set[str]:
    containers = group["template"]["spec"].get("containers") or []
    return {entry["name"] for container in containers for entry in container.get("env") or []}
