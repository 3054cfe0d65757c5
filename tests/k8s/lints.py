"""What no schema checks: whether objects make sense together.

Each lint takes rendered objects and answers sentences that name the object and the fault. `LINTS` lists them; each has
a failing example in `test_lints.py`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from tests.k8s.manifests import CLUSTER_SCOPED, PodView, name_of, pods, ray_clusters

Json = dict[str, Any]
Lint = Callable[[list[Json]], Iterator[str]]

MAX_NAME = 40  # KubeRay and Jobs add suffixes to ours and stay below 63
_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))([eE][+-]?\d+|[numkMGTPE]|[KMGTPE]i)?")
_UNITS = {
    **{"": 1, "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "k": 10**3, "M": 10**6, "G": 10**9},
    **{"T": 10**12, "P": 10**15, "E": 10**18},
    **{f"{letter}i": 2 ** (10 * power) for power, letter in enumerate("KMGTPE", start=1)},
}
HASHED = re.compile(r"-[a-z0-9]{10}$")  # what kustomize appends to the name of a generated ConfigMap
_SELECTED_KINDS = ("Deployment", "StatefulSet", "DaemonSet")


def quantity(text: object) -> Decimal:
    """A Kubernetes quantity as a number. Raises ValueError for what the API server would refuse."""
    found = _QUANTITY.fullmatch(str(text))
    if not found:
        raise ValueError(f"{text!r} is no quantity")
    number, unit = Decimal(found[1]), found[2] or ""
    return number * Decimal(f"1{unit}") if re.match(r"[eE][+-]?\d", unit) else number * _UNITS[unit]


def names(objects: list[Json]) -> Iterator[str]:
    """Names are DNS-1035 labels of at most 40 characters, label values at most 63, and nothing is there twice."""
    for thing in objects:
        name = HASHED.sub("", thing["metadata"]["name"]) if thing["kind"] == "ConfigMap" else thing["metadata"]["name"]
        if thing["kind"] in CLUSTER_SCOPED and "namespace" in thing["metadata"]:
            yield f"{name_of(thing)}: is not in any namespace, so must not name one"
        if not _NAME.fullmatch(name):
            yield f"{name_of(thing)}: the name must start with a letter and have only a-z, 0-9 and -"
        if len(name) > MAX_NAME:
            yield f"{name_of(thing)}: the name has {len(name)} characters, more than {MAX_NAME}"
        for key, value in (thing["metadata"].get("labels") or {}).items():
            if not _LABEL_VALUE.fullmatch(str(value)):
                yield f"{name_of(thing)}: {value!r} is no value for the label {key}"
    keys = [(thing["apiVersion"], thing["kind"], _namespace(thing), thing["metadata"]["name"]) for thing in objects]
    yield from (f"{kind}/{name}: is there twice" for _, kind, _, name in _twice(keys))


def one_namespace(objects: list[Json]) -> Iterator[str]:
    """Everything lives in the one namespace that the kustomization makes, never in `default`."""
    made = {thing["metadata"]["name"] for thing in objects if thing["kind"] == "Namespace"}
    for thing in objects:
        if thing["kind"] not in CLUSTER_SCOPED and _namespace(thing) not in made:
            ours = ", ".join(sorted(made)) or "a namespace that is made here"
            yield f"{name_of(thing)}: lives in {_namespace(thing)}, not in {ours}"


def quantities(objects: list[Json]) -> Iterator[str]:
    """Resource quantities parse, are not negative, and no request is above its limit."""
    for view in pods(objects):
        for container in view.containers():
            resources = container.get("resources") or {}
            amounts = {}
            for kind in ("requests", "limits"):
                for resource, text in (resources.get(kind) or {}).items():
                    try:
                        amounts[kind, resource] = quantity(text)
                    except ValueError as error:
                        yield f"{view.owner} {container['name']}: {kind}.{resource}: {error}"
            for (kind, resource), amount in amounts.items():
                if amount < 0:
                    yield f"{view.owner} {container['name']}: {kind}.{resource} is negative"
                if kind == "requests" and amount > amounts.get(("limits", resource), amount):
                    yield f"{view.owner} {container['name']}: requests.{resource} is above its limit"


def selectors(objects: list[Json]) -> Iterator[str]:
    """A workload's selector matches its own template; Services, PDBs and NetworkPolicies select a pod that exists."""
    views = pods(objects)
    for thing in objects:
        spec = thing.get("spec") or {}
        if thing["kind"] in _SELECTED_KINDS and not matches(spec["selector"], _template_labels(thing)):
            yield f"{name_of(thing)}: spec.selector does not match the labels of its own template"
        chosen = {
            "Service": {"matchLabels": spec.get("selector") or {}},
            "PodDisruptionBudget": spec.get("selector"),
            "NetworkPolicy": spec.get("podSelector"),
        }.get(thing["kind"])
        if chosen is not None and not any(matches(chosen, view.labels) for view in views):
            yield f"{name_of(thing)}: selects no pod"
    for view in views:
        for spread in view.spec.get("topologySpreadConstraints") or []:
            if not matches(spread.get("labelSelector") or {}, view.labels):
                yield f"{view.owner}: topologySpreadConstraints does not select the pod itself"


def references(objects: list[Json]) -> Iterator[str]:
    """ConfigMaps, ServiceAccounts, claims and named ports that are referred to exist (Secrets are made by hand)."""
    there = {(thing["kind"], thing["metadata"]["name"]) for thing in objects}
    there |= {("PersistentVolumeClaim", name) for name in _claim_templates(objects)}
    for view in pods(objects):
        for kind, name in _referred(view):
            if kind != "Secret" and (kind, name) not in there:
                yield f"{view.owner}: refers to {kind}/{name}, which is not there"
        for container in view.containers():
            yield from _mounts(view, container)
    for thing in objects:
        if thing["kind"] == "Service":
            yield from _target_ports(thing, pods(objects))


def secrets(objects: list[Json]) -> set[tuple[str, str]]:
    """(name, key) of every Secret value that pods or Ray clusters refer to."""
    found = set()
    for view in pods(objects):
        for _, entry in view.environment():
            wanted = (entry.get("valueFrom") or {}).get("secretKeyRef")
            if wanted:
                found.add((wanted["name"], wanted["key"]))
        for container in view.containers():
            for source in container.get("envFrom") or []:
                if "secretRef" in source:
                    found.add((source["secretRef"]["name"], "*"))
        for volume in view.spec.get("volumes") or []:
            if "secret" in volume:
                found |= {(volume["secret"]["secretName"], item["key"]) for item in volume["secret"].get("items", [])}
    for _, cluster in ray_clusters(objects):
        if "secretName" in cluster.get("authOptions", {}):
            found.add((cluster["authOptions"]["secretName"], "auth_token"))  # the key that KubeRay reads
        password = (cluster.get("gcsFaultToleranceOptions") or {}).get("redisPassword") or {}
        if "valueFrom" in password:
            found.add((password["valueFrom"]["secretKeyRef"]["name"], password["valueFrom"]["secretKeyRef"]["key"]))
    for thing in objects:  # of scrapes
        for endpoint in thing["spec"]["podMetricsEndpoints"] if thing["kind"] == "PodMonitor" else ():
            if credentials := (endpoint.get("authorization") or {}).get("credentials"):
                found.add((credentials["name"], credentials["key"]))
    for thing in objects:  # certificates
        named = (
            [tls["secretName"] for tls in (thing.get("spec") or {}).get("tls") or []]
            if thing["kind"] == "Ingress"
            else []
        )
        if thing["kind"] == "Gateway":
            tls = [listener.get("tls") or {} for listener in thing["spec"]["listeners"]]
            named = [reference["name"] for one in tls for reference in one.get("certificateRefs") or []]
        found |= {(name, key) for name in named for key in ("tls.crt", "tls.key")}
    return found


def scaling(objects: list[Json]) -> Iterator[str]:
    """What a scaler decides is not written down beside it, or every apply would undo its work; its target exists."""
    there = {name_of(thing): thing for thing in objects}
    for thing in objects:
        if thing["kind"] == "HorizontalPodAutoscaler":
            target = thing["spec"]["scaleTargetRef"]
            found = there.get(f"{target['kind']}/{target['name']}")
            if found is None:
                yield f"{name_of(thing)}: scales {target['kind']}/{target['name']}, which is not there"
            elif "replicas" in found["spec"]:
                yield f"{name_of(found)}: replicas must be left to {name_of(thing)}"
    for name, cluster in ray_clusters(objects):
        for group in cluster.get("workerGroupSpecs") or [] if cluster.get("enableInTreeAutoscaling") else ():
            if "replicas" in group:
                yield f"{name} {group['groupName']}: replicas must be left to Ray's autoscaler"


def queued(objects: list[Json]) -> Iterator[str]:
    """Kueue's rules: jobs are suspended, own a cluster that ends, with 17 groups at most; queues, flavors exist."""
    queues = {t["metadata"]["name"]: t["spec"]["clusterQueue"] for t in objects if t["kind"] == "LocalQueue"}
    cluster_queues = {thing["metadata"]["name"] for thing in objects if thing["kind"] == "ClusterQueue"}
    flavors = {thing["metadata"]["name"] for thing in objects if thing["kind"] == "ResourceFlavor"}
    for thing in objects:
        labels, spec = thing["metadata"].get("labels") or {}, thing.get("spec") or {}
        queue = labels.get("kueue.x-k8s.io/queue-name")
        if queue is not None and queue not in queues:
            yield f"{name_of(thing)}: waits in the queue {queue}, which is not there"
        fit = spec.get("suspend") and spec.get("shutdownAfterJobFinishes") and "clusterSelector" not in spec
        if queue is not None and thing["kind"] == "RayJob" and not fit:
            yield f"{name_of(thing)}: Kueue needs suspend, shutdownAfterJobFinishes and a cluster of its own"
        for text in sorted(_requested([thing]) - _covered(objects, queues.get(queue))) if queue in queues else ():
            yield f"{name_of(thing)}: asks for {text}, which its ClusterQueue does not cover, so is never admitted"
        for _, cluster in ray_clusters([thing]) if queue is not None else ():
            if len(cluster.get("workerGroupSpecs") or []) > 17:
                yield f"{name_of(thing)}: Kueue takes at most 17 worker groups"
            if cluster.get("enableInTreeAutoscaling"):
                yield f"{name_of(thing)}: Kueue takes no autoscaled cluster"
        if thing["kind"] == "LocalQueue" and spec["clusterQueue"] not in cluster_queues:
            yield f"{name_of(thing)}: belongs to ClusterQueue/{spec['clusterQueue']}, which is not there"
        if thing["kind"] == "ClusterQueue":
            used = {flavor["name"] for group in spec["resourceGroups"] for flavor in group["flavors"]}
            yield from (f"{name_of(thing)}: ResourceFlavor/{name} is not there" for name in sorted(used - flavors))


def network_enums(objects: list[Json]) -> Iterator[str]:
    """NetworkPolicies use the real words: the schema takes any string for a policy type or a protocol."""
    for thing in objects:
        if thing["kind"] != "NetworkPolicy":
            continue
        spec = thing["spec"]
        for kind in spec.get("policyTypes") or ["(none)"]:
            if kind not in ("Ingress", "Egress"):
                yield f"{name_of(thing)}: {kind!r} is no policy type"
        for direction in ("ingress", "egress"):
            if spec.get(direction) and direction.title() not in (spec.get("policyTypes") or []):
                yield f"{name_of(thing)}: has {direction} rules, but policyTypes leaves {direction.title()} out"
            for rule in spec.get(direction) or []:
                for port in rule.get("ports") or []:
                    if port.get("protocol") not in ("TCP", "UDP", "SCTP"):
                        yield f"{name_of(thing)}: every port needs a protocol: TCP, UDP or SCTP"


def unique_parts(objects: list[Json]) -> Iterator[str]:
    """Inside a pod, names of containers and volumes, and a container's variables, mount paths and ports, are unique."""
    for view in pods(objects):
        yield from _repeats(view.owner, "containers", (c["name"] for c in view.containers()))
        yield from _repeats(view.owner, "volumes", (v["name"] for v in view.spec.get("volumes") or []))
        for container in view.containers():
            where = f"{view.owner} {container['name']}"
            yield from _repeats(where, "env", (e["name"] for e in container.get("env") or []))
            yield from _repeats(where, "mounts", (m["mountPath"] for m in container.get("volumeMounts") or []))
            yield from _repeats(where, "ports", (p.get("name") for p in container.get("ports") or []))


LINTS: tuple[Lint, ...] = (
    *(names, one_namespace, quantities, selectors, references, scaling, queued, network_enums, unique_parts),
)


def matches(selector: Json, labels: Mapping[str, str]) -> bool:
    """Whether a label selector (matchLabels, matchExpressions) selects something with these labels; {} selects all."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions") or []:
        key, operator, values = expression["key"], expression["operator"], expression.get("values") or []
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]
        if not holds:
            return False
    return True


def _namespace(thing: Json) -> str:
    return str(thing["metadata"].get("namespace", "default"))


def _template_labels(thing: Json) -> dict[str, str]:
    labels: dict[str, str] = thing["spec"]["template"].get("metadata", {}).get("labels") or {}
    return labels


def _claim_templates(objects: list[Json]) -> Iterator[str]:
    for thing in objects:
        for claim in (thing.get("spec") or {}).get("volumeClaimTemplates") or []:
            yield claim["metadata"]["name"]


def _referred(view: PodView) -> Iterator[tuple[str, str]]:
    yield "ServiceAccount", view.spec.get("serviceAccountName", "default")
    for volume in view.spec.get("volumes") or []:
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for container in view.containers():
        for source in container.get("envFrom") or []:
            if "configMapRef" in source:
                yield "ConfigMap", source["configMapRef"]["name"]
    for _, entry in view.environment():
        if "configMapKeyRef" in (entry.get("valueFrom") or {}):
            yield "ConfigMap", entry["valueFrom"]["configMapKeyRef"]["name"]


def _mounts(view: PodView, container: Json) -> Iterator[str]:
    volumes = {volume["name"] for volume in view.spec.get("volumes") or []}
    for mount in container.get("volumeMounts") or []:
        if mount["name"] not in volumes:
            yield f"{view.owner} {container['name']}: mounts the volume {mount['name']}, which the pod does not have"


def _target_ports(service: Json, views: list[PodView]) -> Iterator[str]:
    chosen = {"matchLabels": service["spec"].get("selector") or {}}
    open_ports = {
        value
        for view in views
        if matches(chosen, view.labels)
        for container in view.containers()
        for port in container.get("ports") or []
        for value in (port["containerPort"], port.get("name"))
    }
    for port in service["spec"].get("ports") or []:
        target = port.get("targetPort", port["port"])
        if target not in open_ports:
            yield f"{name_of(service)}: targetPort {target} is no port of the pods it selects"


def _requested(objects: list[Json]) -> set[str]:
    containers = [container for view in pods(objects) for container in view.containers()]
    return {key for container in containers for key in (container.get("resources") or {}).get("requests") or {}}


def _covered(objects: list[Json], cluster_queue: str | None) -> set[str]:
    for thing in objects:
        if thing["kind"] == "ClusterQueue" and thing["metadata"]["name"] == cluster_queue:
            return {name for group in thing["spec"]["resourceGroups"] for name in group.get("coveredResources") or []}
    return set()


def _repeats(where: str, what: str, values: Iterable[str | None]) -> Iterator[str]:
    yield from (f"{where}: {value} is there twice among its {what}" for value in _twice(v for v in values if v))


def _twice(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]
