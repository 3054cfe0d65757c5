"""Objects that make sense together: our manifests do, and every lint finds what it is there for."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s import lints
from tests.k8s.examples import Examples
from tests.k8s.lints import LINTS, quantity

pytestmark = pytest.mark.quick

Json = dict[str, Any]


@pytest.mark.parametrize("lint", LINTS, ids=lambda lint: lint.__name__)
def test_our_manifests_have_no_finding(objects: list[Json], lint: lints.Lint) -> None:
    assert list(lint(objects)) == []


@pytest.mark.parametrize("lint", LINTS, ids=lambda lint: lint.__name__)
def test_the_healthy_examples_have_no_finding(lint: lints.Lint) -> None:
    assert list(lint(Examples().objects)) == []


def _capital_name(example: Examples) -> None:
    example["Service/web"]["metadata"]["name"] = "Web_1"


def _long_name(example: Examples) -> None:
    example["Service/web"]["metadata"]["name"] = "w" * 41


def _long_label(example: Examples) -> None:
    example["Service/web"]["metadata"]["labels"] = {"owner": "o" * 64}


def _twice(example: Examples) -> None:
    example.objects.append(example["Service/web"])


def _elsewhere(example: Examples) -> None:
    example["Service/web"]["metadata"]["namespace"] = "other"


def _no_namespace(example: Examples) -> None:
    del example["Service/web"]["metadata"]["namespace"]


def _negative_cpu(example: Examples) -> None:
    example.head["containers"][0]["resources"]["limits"]["cpu"] = "-5"
    example.head["containers"][0]["resources"]["requests"]["cpu"] = "-5"


def _unit_typo(example: Examples) -> None:
    example.container["resources"]["limits"]["ephemeral-storage"] = "1GiB"


def _request_above_limit(example: Examples) -> None:
    example.container["resources"]["limits"]["cpu"] = "500m"


def _workload_selector(example: Examples) -> None:
    example["Deployment/web"]["spec"]["selector"]["matchLabels"] = {"app": "web"}


def _service_selector(example: Examples) -> None:
    example["Service/web"]["spec"]["selector"] = {"app": "web"}


def _budget_selector(example: Examples) -> None:
    example["PodDisruptionBudget/ray-head"]["spec"]["selector"]["matchLabels"] = {"ray.io/node-type": "heads"}


def _policy_selector(example: Examples) -> None:
    example["NetworkPolicy/web"]["spec"]["podSelector"] = {"matchLabels": {"app": "web"}}


def _spread_selector(example: Examples) -> None:
    example.pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"] = {"app": "web"}


def _no_account(example: Examples) -> None:
    example.pod["serviceAccountName"] = "webb"


def _no_config_map(example: Examples) -> None:
    example.container["envFrom"][0]["configMapRef"]["name"] = "setting"


def _no_claim(example: Examples) -> None:
    example.pod["volumes"][1]["persistentVolumeClaim"]["claimName"] = "date"


def _no_volume(example: Examples) -> None:
    example.container["volumeMounts"][0]["name"] = "temp"


def _no_target_port(example: Examples) -> None:
    example["Service/web"]["spec"]["ports"][0]["targetPort"] = "https"


def _policy_type(example: Examples) -> None:
    example["NetworkPolicy/default-deny"]["spec"]["policyTypes"] = ["Ingres", "Egress"]


def _forgotten_policy_type(example: Examples) -> None:
    example["NetworkPolicy/web"]["spec"]["policyTypes"] = ["Ingress"]


def _protocol(example: Examples) -> None:
    example["NetworkPolicy/web"]["spec"]["egress"][0]["ports"][0]["protocol"] = "HTTP"


def _variable_twice(example: Examples) -> None:
    example.container["env"].append({"name": "MODE", "value": "loud"})


def _mount_twice(example: Examples) -> None:
    example.container["volumeMounts"][1]["mountPath"] = "/tmp"


def _cluster_scoped(example: Examples) -> None:
    example.add("ResourceFlavor", "spot", "kueue.x-k8s.io/v1beta2", spec={})


def _scaler(example: Examples, **target: str) -> None:
    spec = {"scaleTargetRef": {"kind": "Deployment", "name": "web", **target}, "maxReplicas": 3}
    example.add("HorizontalPodAutoscaler", "web", "autoscaling/v2", spec=spec)


def _scaled_by_two(example: Examples) -> None:
    example["Deployment/web"]["spec"]["replicas"] = 2
    _scaler(example)


def _scales_nothing(example: Examples) -> None:
    _scaler(example, name="weeb")


def _workers_by_two(example: Examples) -> None:
    example.cluster["enableInTreeAutoscaling"] = True


def _queue(example: Examples) -> None:
    groups = [{"coveredResources": ["cpu", "memory"], "flavors": [{"name": "spot"}]}]
    example.add("ClusterQueue", "team", "kueue.x-k8s.io/v1beta2", spec={"resourceGroups": groups})
    example.add("LocalQueue", "sweeps", "kueue.x-k8s.io/v1beta2", spec={"clusterQueue": "team"})
    example["RayCluster/ray"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "sweeps"


def _no_queue(example: Examples) -> None:
    example["RayCluster/ray"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "sweeps"


def _no_cluster_queue(example: Examples) -> None:
    _queue(example)
    example["LocalQueue/sweeps"]["spec"]["clusterQueue"] = "teams"


def _queued_autoscaler(example: Examples) -> None:
    _queue(example)
    example.cluster["enableInTreeAutoscaling"] = True


def _many_groups(example: Examples) -> None:
    _queue(example)
    example.cluster["workerGroupSpecs"] *= 18


def _queued_running(example: Examples) -> None:
    _queue(example)
    example.add("RayJob", "job", "ray.io/v1", spec={"entrypoint": "true", "rayClusterSpec": example.cluster})
    example["RayJob/job"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "sweeps"


CASES: list[tuple[lints.Lint, Callable[[Examples], None], str]] = [
    (lints.names, _capital_name, "Service/Web_1: the name must start with a letter and have only a-z, 0-9 and -"),
    (lints.names, _long_name, "the name has 41 characters, more than 40"),
    (lints.names, _long_label, "is no value for the label owner"),
    (lints.names, _twice, "Service/web: is there twice"),
    (lints.one_namespace, _elsewhere, "Service/web: lives in other, not in web"),
    (lints.one_namespace, _no_namespace, "Service/web: lives in default, not in web"),
    (lints.quantities, _negative_cpu, "RayCluster/ray headgroup ray: requests.cpu is negative"),
    (lints.quantities, _unit_typo, "limits.ephemeral-storage: '1GiB' is no quantity"),
    (lints.quantities, _request_above_limit, "requests.cpu is above its limit"),
    (lints.selectors, _workload_selector, "does not match the labels of its own template"),
    (lints.selectors, _service_selector, "Service/web: selects no pod"),
    (lints.selectors, _budget_selector, "PodDisruptionBudget/ray-head: selects no pod"),
    (lints.selectors, _policy_selector, "NetworkPolicy/web: selects no pod"),
    (lints.selectors, _spread_selector, "topologySpreadConstraints does not select the pod itself"),
    (lints.references, _no_account, "refers to ServiceAccount/webb, which is not there"),
    (lints.references, _no_config_map, "refers to ConfigMap/setting, which is not there"),
    (lints.references, _no_claim, "refers to PersistentVolumeClaim/date, which is not there"),
    (lints.references, _no_volume, "mounts the volume temp, which the pod does not have"),
    (lints.references, _no_target_port, "targetPort https is no port of the pods it selects"),
    (lints.names, _cluster_scoped, "ResourceFlavor/spot: is not in any namespace"),
    (lints.scaling, _scaled_by_two, "Deployment/web: replicas must be left to HorizontalPodAutoscaler/web"),
    (lints.scaling, _scales_nothing, "scales Deployment/weeb, which is not there"),
    (lints.scaling, _workers_by_two, "RayCluster/ray workers: replicas must be left to Ray's autoscaler"),
    (lints.queued, _no_queue, "waits in the queue sweeps, which is not there"),
    (lints.queued, _queue, "ClusterQueue/team: ResourceFlavor/spot is not there"),
    (lints.queued, _queue, "RayCluster/ray: asks for ephemeral-storage, which its ClusterQueue does not cover"),
    (lints.queued, _no_cluster_queue, "belongs to ClusterQueue/teams, which is not there"),
    (lints.queued, _queued_autoscaler, "Kueue takes no autoscaled cluster"),
    (lints.queued, _many_groups, "at most 17 worker groups"),
    (lints.queued, _queued_running, "Kueue needs suspend, shutdownAfterJobFinishes and a cluster of its own"),
    (lints.network_enums, _policy_type, "'Ingres' is no policy type"),
    (lints.network_enums, _forgotten_policy_type, "has egress rules, but policyTypes leaves Egress out"),
    (lints.network_enums, _protocol, "every port needs a protocol"),
    (lints.unique_parts, _variable_twice, "MODE is there twice among its env"),
    (lints.unique_parts, _mount_twice, "/tmp is there twice among its mounts"),
]


@pytest.mark.parametrize(("lint", "spoil", "message"), CASES, ids=[spoil.__name__ for _, spoil, _ in CASES])
def test_a_spoilt_example_is_found(lint: lints.Lint, spoil: Callable[[Examples], None], message: str) -> None:
    example = Examples()
    spoil(example)
    found = list(lint(example.objects))
    assert any(message in text for text in found), found


def test_every_lint_has_a_failing_example() -> None:
    assert {lint for lint, _, _ in CASES} == set(LINTS)


@pytest.mark.parametrize(
    ("text", "number"),
    [("250m", "0.25"), ("1Gi", 2**30), ("2", 2), ("0.5", "0.5"), ("1e3", 1000), ("5E", 5 * 10**18), ("3Ki", 3072)],
)
def test_quantities(text: str, number: str | int) -> None:
    assert quantity(text) == type(quantity("1"))(number)


@pytest.mark.parametrize("text", ["", "1GB", "Gi", "1 Gi", "--1", "0x10"])
def test_no_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        quantity(text)
