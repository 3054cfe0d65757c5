"""KubeRay's controller rules: each with an object that the CRD admits and the controller refuses."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s.examples import Examples
from tests.k8s.ray_rules import refusals

pytestmark = pytest.mark.quick

Json = dict[str, Any]


def _job(example: Examples, **spec: Any) -> None:
    example.add("RayJob", "job", "ray.io/v1", spec={"entrypoint": "true", **spec})


def _service(example: Examples, **cluster: Any) -> None:
    spec = {"rayClusterConfig": {**example.cluster, **cluster}}
    example.add("RayService", "service", "ray.io/v1", spec=spec)


def _no_token_before_2_52(example: Examples) -> None:
    example.cluster["rayVersion"] = "2.51.1"


def _long_name(example: Examples) -> None:
    example["RayCluster/ray"]["metadata"]["name"] = "r" * 54


def _dotted_name(example: Examples) -> None:
    example["RayCluster/ray"]["metadata"]["name"] = "ray.io"


def _no_max_replicas(example: Examples) -> None:
    del example.cluster["workerGroupSpecs"][0]["maxReplicas"]


def _min_above_max(example: Examples) -> None:
    example.cluster["workerGroupSpecs"][0]["minReplicas"] = 2


def _resources_twice(example: Examples) -> None:
    example.cluster["headGroupSpec"]["resources"] = {"CPU": "0"}


def _labels_in_params(example: Examples) -> None:
    example.cluster["workerGroupSpecs"][0]["rayStartParams"] = {"labels": "a=b"}


def _redis_by_env(example: Examples) -> None:
    example.head["containers"][0]["env"] = [{"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}]


def _restart_with_autoscaler(example: Examples) -> None:
    example.cluster["enableInTreeAutoscaling"] = True
    example.head["restartPolicy"] = "Always"


def _two_autoscalers(example: Examples) -> None:
    example.cluster["enableInTreeAutoscaling"] = True
    example.cluster["autoscalerOptions"] = {"version": "v2"}
    example.head["containers"][0]["env"] = [{"name": "RAY_enable_autoscaler_v2", "value": "1"}]


def _job_with_nothing(example: Examples) -> None:
    _job(example)


def _job_suspended(example: Examples) -> None:
    _job(example, rayClusterSpec=example.cluster, suspend=True)


def _job_selector(example: Examples) -> None:
    _job(example, clusterSelector={"cluster": "ray"})


def _job_ttl(example: Examples) -> None:
    _job(example, rayClusterSpec=example.cluster, ttlSecondsAfterFinished=60)


def _job_deadline(example: Examples) -> None:
    _job(example, rayClusterSpec=example.cluster, activeDeadlineSeconds=0)


def _job_env(example: Examples) -> None:
    _job(example, rayClusterSpec=example.cluster, runtimeEnvYAML="a: [")


def _sidecar_restart(example: Examples) -> None:
    example.head["restartPolicy"] = "Always"
    _job(example, rayClusterSpec=example.cluster, submissionMode="SidecarMode")


def _job_with_rules(example: Examples, *rules: tuple[str, int], **spec: Any) -> None:
    written = [{"policy": policy, "condition": {"jobStatus": "FAILED", "ttlSeconds": ttl}} for policy, ttl in rules]
    _job(example, **{"rayClusterSpec": example.cluster, **spec}, deletionStrategy={"deletionRules": written})


def _rules_and_shutdown(example: Examples) -> None:
    _job_with_rules(example, ("DeleteSelf", 0), shutdownAfterJobFinishes=True)


def _rules_and_autoscaling(example: Examples) -> None:
    cluster = {**example.cluster, "enableInTreeAutoscaling": True}
    _job_with_rules(example, ("DeleteWorkers", 0), rayClusterSpec=cluster)


def _rule_twice(example: Examples) -> None:
    _job_with_rules(example, ("DeleteSelf", 1), ("DeleteSelf", 2))


def _rules_out_of_order(example: Examples) -> None:
    _job_with_rules(example, ("DeleteCluster", 60), ("DeleteSelf", 30))


def _redis_user(example: Examples) -> None:
    example.head["containers"][0]["env"] = [{"name": "REDIS_USERNAME", "value": "ray"}]


def _redis_namespace(example: Examples) -> None:
    example.cluster["gcsFaultToleranceOptions"] = {"redisAddress": "redis:6379"}
    example["RayCluster/ray"]["metadata"]["annotations"] = {"ray.io/external-storage-namespace": "a"}


def _group_name(example: Examples) -> None:
    example.cluster["networkPolicy"] = {"mode": "DenyAll"}
    example.cluster["workerGroupSpecs"][0]["groupName"] = "gpu_workers"


def _service_timeout(example: Examples) -> None:
    _service(example)
    example["RayService/service"]["metadata"]["annotations"] = {"ray.io/initializing-timeout": "0s"}


def _service_incremental(example: Examples) -> None:
    _service(example, enableInTreeAutoscaling=True)
    options = {"stepSizePercent": 50, "maxSurgePercent": 20, "intervalSeconds": 5, "gatewayClassName": "g"}
    strategy = {"type": "NewClusterWithIncrementalUpgrade", "clusterUpgradeOptions": options}
    example["RayService/service"]["spec"]["upgradeStrategy"] = strategy


def _service_head_name(example: Examples) -> None:
    head = {**example.cluster["headGroupSpec"], "headService": {"metadata": {"name": "mine"}}}
    _service(example, headGroupSpec=head)


def _service_upgrade(example: Examples) -> None:
    _service(example, upgradeStrategy={"type": "Recreate"})


CASES: list[tuple[Callable[[Examples], None], str]] = [
    (_no_token_before_2_52, "needs rayVersion of at least 2.52"),
    (_long_name, "more than 53 characters"),
    (_dotted_name, "no DNS-1035 label"),
    (_no_max_replicas, "needs minReplicas and maxReplicas"),
    (_min_above_max, "0 <= minReplicas <= maxReplicas"),
    (_resources_twice, "not in both"),
    (_labels_in_params, "labels belong in the group's labels"),
    (_redis_by_env, "RAY_REDIS_ADDRESS needs gcsFaultToleranceOptions"),
    (_restart_with_autoscaler, "needs restartPolicy Never"),
    (_two_autoscalers, "exclude each other"),
    (_job_with_nothing, "exactly one of rayClusterSpec and clusterSelector"),
    (_job_suspended, "suspend needs shutdownAfterJobFinishes"),
    (_job_selector, "needs the key ray.io/cluster"),
    (_job_ttl, "needs shutdownAfterJobFinishes"),
    (_job_deadline, "activeDeadlineSeconds must be greater than 0"),
    (_job_env, "runtimeEnvYAML is no YAML"),
    (_sidecar_restart, "SidecarMode needs the head's restartPolicy Never"),
    (_rules_and_shutdown, "deletionRules exclude shutdownAfterJobFinishes"),
    (_rules_and_autoscaling, "DeleteWorkers excludes autoscaling"),
    (_rule_twice, "DeleteSelf is there twice"),
    (_rules_out_of_order, "must not fall from workers over cluster to self"),
    (_redis_user, "a Redis user name belongs in gcsFaultToleranceOptions"),
    (_redis_namespace, "the storage namespace is set there"),
    (_group_name, "names of groups must be DNS-1123 labels"),
    (_service_timeout, "must be a positive duration"),
    (_service_incremental, "0 <= stepSizePercent <= maxSurgePercent <= 100"),
    (_service_head_name, "headService must not have a name"),
    (_service_upgrade, "must not have an upgradeStrategy"),
]


def test_the_healthy_examples_are_not_refused() -> None:
    assert refusals(Examples().objects) == []


@pytest.mark.parametrize(("spoil", "message"), CASES, ids=[spoil.__name__ for spoil, _ in CASES])
def test_the_controller_refuses(spoil: Callable[[Examples], None], message: str) -> None:
    example = Examples()
    spoil(example)
    found = refusals(example.objects)
    assert len(found) == 1, found
    assert message in found[0]
