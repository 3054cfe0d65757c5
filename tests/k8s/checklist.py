"""What we promise of our own manifests beyond what Kubernetes asks: one check per promise in k8s/README.md.

Each check takes rendered objects and answers sentences that name the object and the fault. `CHECKS` lists them; each
has a failing example in `test_checklist.py`.
"""

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

from tests.k8s.bucket import bounded_copies, bucket_keys, one_store
from tests.k8s.lints import matches, quantity
from tests.k8s.manifests import AUTOSCALER, PodView, name_of, pods, ray_clusters
from tests.k8s.quota import within_quota

Json = dict[str, Any]
Check = Callable[[list[Json]], Iterator[str]]

METADATA_ADDRESS = "169.254.169.254"  # where clouds hand out credentials to whoever asks
OBJECT_STORE_SHARE = 0.3  # of a Ray node's memory, in /dev/shm
_SECRET_NAME = re.compile(r"TOKEN|PASSWORD|SECRET|CREDENTIAL|(API|ACCESS)_?KEY|DATABASE_URL")
_URL_WITH_PASSWORD = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
_ALPHA_FIELDS = ("tlsOptions", "networkPolicy", "historyServerOptions")
_NGINX = "nginx.ingress.kubernetes.io/"
_LABELS = ("app.kubernetes.io/name", "app.kubernetes.io/part-of")


def fixed_memory(objects: list[Json]) -> Iterator[str]:
    """Memory requests equal limits (no pod is killed for a neighbour's appetite); ephemeral storage is bounded."""
    for view in pods(objects):
        for container in view.containers():
            resources = container.get("resources") or {}
            requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
            if "memory" not in limits or requests.get("memory") != limits.get("memory"):
                yield f"{view.owner} {container['name']}: the memory request must equal the memory limit"
            if "ephemeral-storage" not in requests or "ephemeral-storage" not in limits:
                yield f"{view.owner} {container['name']}: ephemeral-storage must be requested and limited"
            if "cpu" not in requests:
                yield f"{view.owner} {container['name']}: cpu must be requested"


def read_only_root(objects: list[Json]) -> Iterator[str]:
    """Containers that are not Ray's cannot write their own image; /tmp is an emptyDir with a limit."""
    for view in pods(objects):
        for container in [] if view.is_ray else list(view.containers()):
            if not (container.get("securityContext") or {}).get("readOnlyRootFilesystem"):
                yield f"{view.owner} {container['name']}: readOnlyRootFilesystem must be true"
            if "sizeLimit" not in (_empty_dir(view, container, "/tmp") or {}):
                yield f"{view.owner} {container['name']}: needs an emptyDir with a sizeLimit at /tmp"


def ray_scratch(objects: list[Json]) -> Iterator[str]:
    """Ray's /dev/shm holds its object store and fits into the memory limit; /tmp/ray is bounded."""
    for view in pods(objects):
        for container in view.ray_containers():
            where = f"{view.owner} {container['name']}"
            shm, tmp = _empty_dir(view, container, "/dev/shm"), _empty_dir(view, container, "/tmp/ray")
            limit = quantity(container["resources"]["limits"]["memory"])
            if not shm or shm.get("medium") != "Memory" or "sizeLimit" not in shm:
                yield f"{where}: needs a memory emptyDir with a sizeLimit at /dev/shm"
            elif not OBJECT_STORE_SHARE * float(limit) <= float(quantity(shm["sizeLimit"])) < float(limit):
                yield f"{where}: /dev/shm must hold 30 % of the memory limit and less than all of it"
            if not tmp or "sizeLimit" not in tmp:
                yield f"{where}: needs an emptyDir with a sizeLimit at /tmp/ray"


def idle_heads(objects: list[Json]) -> Iterator[str]:
    """No task or actor is scheduled on a Ray head."""
    for name, cluster in ray_clusters(objects):
        if cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
            yield f'{name}: headGroupSpec.rayStartParams.num-cpus must be "0"'


def time_to_stop(objects: list[Json]) -> Iterator[str]:
    """Ray's pods get a minute or more to stop, and are told to."""
    for view in pods(objects):
        if not view.is_ray:
            continue
        if view.spec.get("terminationGracePeriodSeconds", 30) < 60:
            yield f"{view.owner}: terminationGracePeriodSeconds must be at least 60"
        if not all("preStop" in (container.get("lifecycle") or {}) for container in view.ray_containers()):
            yield f"{view.owner}: needs a preStop hook"


def disruption_budgets(objects: list[Json]) -> Iterator[str]:
    """Ray heads and the API have a budget; budgets of pods that an operator owns use an integer minAvailable."""
    budgets = [thing for thing in objects if thing["kind"] == "PodDisruptionBudget"]
    for view in pods(objects):
        own = [budget for budget in budgets if matches(budget["spec"]["selector"], view.labels)]
        head = view.labels.get("ray.io/node-type") == "head"
        if not own and (head or view.labels.get("app.kubernetes.io/component") == "api"):
            yield f"{view.owner}: needs a PodDisruptionBudget"
        if len(own) > 1:
            yield f"{view.owner}: has {len(own)} PodDisruptionBudgets, so evictions fail"
        for budget in own if view.is_ray else ():
            if not isinstance(budget["spec"].get("minAvailable"), int):
                yield f"{name_of(budget)}: pods of a Ray cluster need an integer minAvailable (it has no scale)"


def no_cluster_identity(objects: list[Json]) -> Iterator[str]:
    """No container has a Kubernetes token but Ray's autoscaler and the reconciler, whose Roles name every verb."""
    for thing in objects:
        if thing["kind"] == "ServiceAccount" and thing.get("automountServiceAccountToken") is not False:
            yield f"{name_of(thing)}: automountServiceAccountToken must be false"
        if thing["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            yield f"{name_of(thing)}: nothing here is of the whole cluster"
        for rule in thing["rules"] if thing["kind"] == "Role" else ():
            if rule["apiGroups"] != ["ray.io"] or "*" in [*rule["resources"], *rule["verbs"]]:
                yield f"{name_of(thing)}: a Role is for named verbs on objects of ray.io alone"
        for subject in thing["subjects"] if thing["kind"] == "RoleBinding" else ():
            if (subject["kind"], subject["name"]) != ("ServiceAccount", "simpo-reconciler"):
                yield f"{name_of(thing)}: only the reconciler may use the Kubernetes API"
    for view in pods(objects):
        if view.spec.get("automountServiceAccountToken") is not False:
            yield f"{view.owner}: automountServiceAccountToken must be false"
        if view.spec.get("serviceAccountName", "default") == "default":
            yield f"{view.owner}: needs a ServiceAccount of its own"
        if view.spec.get("enableServiceLinks") is not False:
            yield f"{view.owner}: enableServiceLinks must be false (it adds SIMPO_..._PORT variables)"
        tokens = set(_token_volumes(view))
        for container in view.containers():
            mounted = {mount["name"] for mount in container.get("volumeMounts") or []}
            ours = view.labels.get("app.kubernetes.io/component") == container["name"] == "reconciler"
            if mounted & tokens and container["name"] != AUTOSCALER and not ours:
                yield f"{view.owner} {container['name']}: only Ray's autoscaler and the reconciler may mount a token"


def default_deny(objects: list[Json]) -> Iterator[str]:
    """A NetworkPolicy closes every pod in both directions; the metadata address is in no rule."""
    policies = [thing for thing in objects if thing["kind"] == "NetworkPolicy"]
    closing = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if not any(policy["spec"] == closing for policy in policies):
        yield "(all): needs a NetworkPolicy that selects every pod and allows nothing"
    for policy in policies:
        rules = [*(policy["spec"].get("egress") or []), *(policy["spec"].get("ingress") or [])]
        for peer in [peer for rule in rules for peer in [*(rule.get("to") or []), *(rule.get("from") or [])]]:
            block = peer.get("ipBlock")
            if block and _contains(block["cidr"]) and not any(_contains(hole) for hole in block.get("except") or []):
                yield f"{name_of(policy)}: ipBlock {block['cidr']} must except {METADATA_ADDRESS}/32"
        for rule in policy["spec"].get("egress") or []:
            if not rule.get("to"):
                yield f"{name_of(policy)}: an egress rule without `to` allows every address"


def ray_token(objects: list[Json]) -> Iterator[str]:
    """Every Ray cluster asks for a token, from a Secret that we name."""
    for name, cluster in ray_clusters(objects):
        options = cluster.get("authOptions") or {}
        if options.get("mode") != "token" or not options.get("secretName"):
            yield f"{name}: authOptions must be mode token with a secretName"


def no_secret_values(objects: list[Json]) -> Iterator[str]:
    """Secrets by reference only: no Secret object, no literal variable, nothing in a ConfigMap or annotation."""
    for thing in objects:
        if thing["kind"] == "Secret":
            yield f"{name_of(thing)}: Secrets are made by hand, not rendered"
        for source in (thing.get("data") or {}, thing["metadata"].get("annotations") or {}):
            for key, value in source.items() if thing["kind"] != "Secret" else ():
                if _SECRET_NAME.search(key.upper()) or _URL_WITH_PASSWORD.search(str(value)):
                    yield f"{name_of(thing)}: {key} belongs in a Secret"
    for name, cluster in ray_clusters(objects):
        if "value" in ((cluster.get("gcsFaultToleranceOptions") or {}).get("redisPassword") or {}):
            yield f"{name}: gcsFaultToleranceOptions.redisPassword must come from a Secret"
    for view in pods(objects):
        for container, entry in view.environment():
            literal = str(entry.get("value", ""))
            if literal and (_SECRET_NAME.search(entry["name"]) or _URL_WITH_PASSWORD.search(literal)):
                yield f"{view.owner} {container}: {entry['name']} must come from a Secret"


def pinned_images(objects: list[Json]) -> Iterator[str]:
    """Every image has a tag or a digest, and the tag does not move."""
    for view in pods(objects):
        for container in view.containers():
            name, _, digest = container["image"].partition("@")
            tag = name.rpartition("/")[2].partition(":")[2]
            if not digest and (not tag or tag in ("latest", "nightly", "master", "main")):
                yield f"{view.owner} {container['name']}: {container['image']} needs a digest or a fixed tag"


def probes(objects: list[Json]) -> Iterator[str]:
    """Long-running containers of ours have a liveness and a readiness probe that ask different questions."""
    for view in pods(objects):
        ends = view.spec.get("restartPolicy") in ("Never", "OnFailure")
        if view.is_ray or ends:  # KubeRay adds its own to Ray's containers; a Job is ready when it is done
            continue
        for container in view.spec["containers"]:
            found = [container.get(key) for key in ("livenessProbe", "readinessProbe")]
            asked = [{key: p.get(key) for key in ("httpGet", "exec", "tcpSocket")} for p in found if p]
            if len(asked) < 2 or asked[0] == asked[1]:
                yield f"{view.owner} {container['name']}: needs livenessProbe and readinessProbe, different ones"


def labelled(objects: list[Json]) -> Iterator[str]:
    """Everything carries app.kubernetes.io/name and part-of; pods also their component; jobs their owner and sweep."""
    for thing in objects:
        labels = thing["metadata"].get("labels") or {}
        if thing["kind"] != "ConfigMap" and not all(key in labels for key in _LABELS):
            yield f"{name_of(thing)}: needs the labels {', '.join(_LABELS)}"
    for view in pods(objects):
        job = ("simpo/owner", "simpo/sweep") if view.owner.startswith("RayJob/") else ()
        if not all(key in view.labels for key in job):
            yield f"{view.owner}: the pod needs the labels {', '.join(job)}"
        if not all(key in view.labels for key in (*_LABELS, "app.kubernetes.io/component")):
            yield f"{view.owner}: the pod needs the labels {', '.join(_LABELS)} and app.kubernetes.io/component"


def nothing_alpha(objects: list[Json]) -> Iterator[str]:
    """No field that KubeRay ignores unless an alpha feature gate is on."""
    for thing in objects:
        if thing["kind"] == "RayCronJob":
            yield f"{name_of(thing)}: RayCronJob is alpha"
    for name, cluster in ray_clusters(objects):
        for field in _ALPHA_FIELDS:
            if field in cluster:
                yield f"{name}: {field} is alpha"
        if (cluster.get("gcsFaultToleranceOptions") or {}).get("backend") == "rocksdb":
            yield f"{name}: the rocksdb backend is alpha"


def one_serve_owner(objects: list[Json]) -> Iterator[str]:
    """Serve's configuration has one owner: where the reconciler puts it over REST, no RayService may put its own."""
    settings = [thing["data"] for thing in objects if "SIMPO_RAY_SERVE_URL" in (thing.get("data") or {})]
    by_service = any(data.get("SIMPO_DEPLOY_BY") == "rayservice" for data in settings)
    found = [thing for thing in objects if thing["kind"] == "RayService"]
    for thing in found:
        if settings and not by_service:
            yield f"{name_of(thing)}: would overwrite what the reconciler puts over Serve's REST API"
        if "serveConfigV2" in thing["spec"]:
            yield f"{name_of(thing)}: serveConfigV2 is the reconciler's"
    if by_service and not found:
        yield "(all): SIMPO_DEPLOY_BY is rayservice, and there is none"


def serve_haproxy(objects: list[Json]) -> Iterator[str]:
    """Every node of a cluster that serves runs HAProxy in throughput mode: half a cluster would mix proxies."""
    serving = {view.labels["ray.io/cluster"] for view in pods(objects) if view.is_ray and _has_port(view, "serve")}
    for view in pods(objects):
        for container in view.ray_containers() if view.labels.get("ray.io/cluster") in serving else ():
            values = {entry["name"]: entry.get("value") for entry in container.get("env") or []}
            for name in ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED"):
                if values.get(name) != "1":
                    yield f'{view.owner} {container["name"]}: {name} must be "1"'


def one_image_per_cluster(objects: list[Json]) -> Iterator[str]:
    """All nodes of a Ray cluster run one image: Ray refuses nodes of another version, pickles need the same code."""
    images: dict[str, set[str]] = {}
    for view in pods(objects):
        if view.is_ray:
            images.setdefault(view.labels["ray.io/cluster"], set()).update(c["image"] for c in view.containers())
    yield from (
        f"{name}: has {len(found)} images: {', '.join(sorted(found))}"
        for name, found in images.items()
        if len(found) > 1
    )


def heads_stay(objects: list[Json]) -> Iterator[str]:
    """The head of a Ray cluster is kept off nodes that a cloud may take back."""
    for view in pods(objects):
        if view.labels.get("ray.io/node-type") == "head":
            affinity = (view.spec.get("affinity") or {}).get("nodeAffinity") or {}
            terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or [
                {}
            ]
            refused = [{e["key"] for e in t.get("matchExpressions") or [] if e["operator"] == "NotIn"} for t in terms]
            if not all(
                "karpenter.sh/capacity-type" in keys and "cloud.google.com/gke-spot" in keys for keys in refused
            ):
                yield f"{view.owner}: needs a nodeAffinity that keeps it off spot nodes"


def spread(objects: list[Json]) -> Iterator[str]:
    """Pods of which there are several, and that somebody waits for, are spread over nodes."""
    for view in pods(objects):
        component, node = view.labels.get("app.kubernetes.io/component"), view.labels.get("ray.io/node-type")
        several = component in ("api", "reconciler") or (component == "serving" and node == "worker")
        if several and "topologySpreadConstraints" not in view.spec and "nvidia.com/gpu" not in _limits(view):
            yield f"{view.owner}: needs topologySpreadConstraints"


def public_origin(objects: list[Json]) -> Iterator[str]:
    """The world reaches the API, over TLS, and nothing else: no Ray dashboard and no Serve, which ask for no key."""
    for thing in objects:
        for backend in _backends(thing):
            if backend != "simpo-api":
                yield f"{name_of(thing)}: leads to {backend}; only simpo-api may be public"
        if thing["kind"] == "Ingress" and not thing["spec"].get("tls"):
            yield f"{name_of(thing)}: needs tls"
        if thing["kind"] == "Gateway":
            for listener in thing["spec"]["listeners"]:
                if listener["protocol"] == "HTTPS" and not (listener.get("tls") or {}).get("certificateRefs"):
                    yield f"{name_of(thing)}: the listener {listener['name']} needs a certificate"
        if thing["kind"] == "Service" and thing["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"{name_of(thing)}: must be of type ClusterIP"


def streams(objects: list[Json]) -> Iterator[str]:
    """What stands before the API lets streams last and uploads through: no time limit below 10 minutes, no buffer."""
    for thing in objects:
        if thing["kind"] == "Ingress":
            notes = thing["metadata"].get("annotations") or {}
            values = {key.removeprefix(_NGINX): value for key, value in notes.items() if key.startswith(_NGINX)}
            if "proxy-body-size" not in values:
                yield f"{name_of(thing)}: needs proxy-body-size: 1m is the default, and uploads are larger"
            for key in ("proxy-read-timeout", "proxy-send-timeout"):
                if int(values.get(key, "60")) < 600:
                    yield f"{name_of(thing)}: {key} must be 600 or more"
            for key in ("proxy-buffering", "proxy-request-buffering"):
                if values.get(key) != "off":
                    yield f"{name_of(thing)}: {key} must be off"
        for rule in thing["spec"].get("rules") or [] if thing["kind"] == "HTTPRoute" else ():
            if rule.get("backendRefs") and (rule.get("timeouts") or {}).get("request") != "0s":
                yield f"{name_of(thing)}: timeouts.request must be 0s, or streams end in the middle"


CHECKS: tuple[Check, ...] = (
    fixed_memory,
    read_only_root,
    ray_scratch,
    idle_heads,
    time_to_stop,
    disruption_budgets,
    no_cluster_identity,
    default_deny,
    ray_token,
    no_secret_values,
    pinned_images,
    probes,
    labelled,
    nothing_alpha,
    one_serve_owner,
    serve_haproxy,
    one_image_per_cluster,
    heads_stay,
    spread,
    public_origin,
    streams,
    within_quota,
    one_store,
    bounded_copies,
    bucket_keys,
)


def _empty_dir(view: PodView, container: Json, path: str) -> Json | None:
    """The emptyDir mounted at `path`, or None."""
    mounted = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts") or []}
    for volume in view.spec.get("volumes") or []:
        if volume["name"] == mounted.get(path):
            empty_dir: Json | None = volume.get("emptyDir")
            return empty_dir
    return None


def _token_volumes(view: PodView) -> Iterator[str]:
    for volume in view.spec.get("volumes") or []:
        sources = (volume.get("projected") or {}).get("sources") or []
        if any("serviceAccountToken" in source for source in sources):
            yield volume["name"]


def _has_port(view: PodView, name: str) -> bool:
    return any(port.get("name") == name for container in view.containers() for port in container.get("ports") or [])


def _limits(view: PodView) -> set[str]:
    return {key for container in view.containers() for key in (container.get("resources") or {}).get("limits") or {}}


def _backends(thing: Json) -> Iterator[str]:
    """Names of the Services that an Ingress or an HTTPRoute leads to."""
    for rule in thing["spec"].get("rules") or [] if thing["kind"] in ("Ingress", "HTTPRoute") else ():
        yield from (backend["name"] for backend in rule.get("backendRefs") or [])
        yield from (path["backend"]["service"]["name"] for path in (rule.get("http") or {}).get("paths") or [])


def _contains(cidr: str) -> bool:
    return ip_address(METADATA_ADDRESS) in ip_network(cidr)
