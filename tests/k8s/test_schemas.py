"""Every object of ours is what the API server accepts: strict schemas, CRDs, CEL, and KubeRay's own refusals."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s import builtin, cel, ray_rules
from tests.k8s.crd import CustomKinds, json_schema
from tests.k8s.examples import Examples
from tests.k8s.manifests import name_of, pods

pytestmark = pytest.mark.quick

Json = dict[str, Any]
KUBERNETES_VERSIONS = ("1.32", "1.37")  # the oldest we support (README), and the newest we know


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_built_in_kinds_and_pods_inside_ray_objects_are_valid(objects: list[Json], version: str) -> None:
    ours = [thing for thing in objects if not thing["apiVersion"].startswith(("ray.io/", "kueue.x-k8s.io/"))]
    errors = [text for thing in ours for text in builtin.errors(thing, version)]
    errors += [f"{view.owner}: {text}" for view in pods(objects) for text in builtin.errors(view.pod, version)]
    assert errors == []


def test_a_wrong_field_is_refused_by_the_strict_schemas() -> None:
    example = Examples()
    example.pod["restartPolice"] = "Always"
    (error,) = builtin.errors(example["Deployment/web"], "1.32")
    assert "restartPolice" in error


def test_a_kind_without_a_schema_is_noticed() -> None:
    with pytest.raises(KeyError, match="no schema of ServiceMonitor"):
        builtin.errors({"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor"}, "1.32")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"selector": {}, "podMetricsEndpoints": [{"port": "metrics"}]}, None),
        ({"selector": {}}, "podMetricsEndpoints is required"),
        (
            {"selector": {}, "podMetricsEndpoints": [{"ports": "metrics"}]},
            "spec.podMetricsEndpoints.0.ports: unknown field",
        ),
        ({"selector": {}, "podMetricsEndpoints": [{"port": 8080}]}, "spec.podMetricsEndpoints.0.port: 8080 is no str"),
        ({"selector": [], "podMetricsEndpoints": []}, "spec.selector: must be an object"),
    ],
)
def test_kinds_of_other_projects_are_strict_too(spec: Json, message: str | None) -> None:
    monitor = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": {"name": "m"}, "spec": spec}
    found = builtin.errors(monitor, "1.32")
    assert found == [] if message is None else message in found[0]


def test_ray_and_kueue_objects_are_valid_against_their_crds(objects: list[Json], custom_kinds: CustomKinds) -> None:
    ours = [thing for thing in objects if thing["apiVersion"].startswith(("ray.io/", "kueue.x-k8s.io/"))]
    assert all(thing in custom_kinds for thing in ours)
    found = {name_of(thing) for thing in ours}
    assert "RayCluster/simpo-training" in found and found & {"RayCluster/simpo-serving", "RayService/simpo-serving"}
    assert [f"{name_of(thing)}: {text}" for thing in ours for text in custom_kinds.errors(thing)] == []


def test_kuberay_would_reconcile_our_ray_objects(objects: list[Json]) -> None:
    assert ray_rules.refusals(objects) == []


def test_every_cel_rule_of_the_crds_is_translated(custom_kinds: CustomKinds) -> None:
    assert custom_kinds.cel_rules() == set(cel.RULES)


def _unknown_field(cluster: Json) -> None:
    cluster["spec"]["headGroupSpec"]["rayStartParam"] = {}


def _wrong_type(cluster: Json) -> None:
    cluster["spec"]["workerGroupSpecs"][0]["replicas"] = "two"


def _missing_field(cluster: Json) -> None:
    del cluster["spec"]["headGroupSpec"]["template"]


def _beyond_int32(cluster: Json) -> None:
    cluster["spec"]["workerGroupSpecs"][0]["maxReplicas"] = 2**31


def _null_item(cluster: Json) -> None:
    cluster["spec"]["workerGroupSpecs"].append(None)


def _wrong_word(cluster: Json) -> None:
    cluster["spec"]["authOptions"]["mode"] = "password"


def _strange_manager(cluster: Json) -> None:
    cluster["spec"]["managedBy"] = "evil"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_unknown_field, "spec.headGroupSpec: Additional properties are not allowed ('rayStartParam' was unexpected)"),
        (_wrong_type, "spec.workerGroupSpecs.0.replicas: 'two' is not of type 'integer'"),
        (_missing_field, "spec.headGroupSpec: 'template' is a required property"),
        (_beyond_int32, "spec.workerGroupSpecs.0.maxReplicas: 2147483648 is greater than the maximum of 2147483647"),
        (_null_item, "spec.workerGroupSpecs.1: None is not of type 'object'"),
        (_wrong_word, "spec.authOptions.mode: 'password' is not one of ['disabled', 'token']"),
        (_strange_manager, "spec.managedBy: the managedBy field value must be either"),
    ],
)
def test_a_spoilt_ray_cluster_is_refused(
    custom_kinds: CustomKinds, spoil: Callable[[Json], None], message: str
) -> None:
    cluster = Examples()["RayCluster/ray"]
    assert custom_kinds.errors(cluster) == []
    spoil(cluster)
    (error,) = custom_kinds.errors(cluster)
    assert error.startswith(message)


def test_nulls_are_dropped_and_defaults_filled_before_validation(custom_kinds: CustomKinds) -> None:
    cluster = Examples()["RayCluster/ray"]
    group = cluster["spec"]["workerGroupSpecs"][0]
    group["scaleStrategy"] = None
    del group["minReplicas"]
    assert custom_kinds.errors(cluster) == []
    stored = custom_kinds.admitted(cluster)["spec"]["workerGroupSpecs"][0]
    assert "scaleStrategy" not in stored
    assert (stored["minReplicas"], stored["numOfHosts"]) == (0, 1)


def test_an_immutable_field_is_refused_on_update(custom_kinds: CustomKinds) -> None:
    old, new = Examples()["RayCluster/ray"], Examples()["RayCluster/ray"]
    old["spec"]["managedBy"], new["spec"]["managedBy"] = cel._MANAGERS
    assert custom_kinds.errors(new) == []
    assert custom_kinds.errors(new, old=old) == ["spec.managedBy: the managedBy field is immutable"]


@pytest.mark.parametrize(
    ("strategy", "good"),
    [
        ({"onSuccess": {"policy": "DeleteSelf"}, "onFailure": {"policy": "DeleteNone"}}, True),
        ({"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}]}, True),
        ({"onSuccess": {"policy": "DeleteSelf"}}, False),
        ({"deletionRules": [{"policy": "DeleteSelf", "condition": {}}]}, False),
    ],
)
def test_the_deletion_strategy_of_a_ray_job(custom_kinds: CustomKinds, strategy: Json, good: bool) -> None:
    cluster = Examples()["RayCluster/ray"]
    spec = {"entrypoint": "true", "rayClusterSpec": cluster["spec"], "deletionStrategy": strategy}
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "job"}, "spec": spec}
    assert (custom_kinds.errors(job) == []) == good


@pytest.mark.parametrize(
    ("spec", "good"),
    [
        ({"cohortName": "all"}, True),
        ({}, False),  # borrowingLimit without a cohort
        ({"cohortName": "all", "flavorFungibility": {"preference": "BorrowingOverPreemption"}}, False),
        ({"cohortName": "all", "preemption": {"borrowWithinCohort": {"policy": "LowerPriority"}}}, False),
    ],
)
def test_a_cluster_queue_of_kueue(custom_kinds: CustomKinds, spec: Json, good: bool) -> None:
    flavor = {"name": "f", "resources": [{"name": "cpu", "nominalQuota": 1, "borrowingLimit": 1}]}
    groups = [{"coveredResources": ["cpu"], "flavors": [flavor]}]
    queue = {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "ClusterQueue",
        "metadata": {"name": "q"},
        "spec": {"resourceGroups": groups, **spec},
    }
    assert (custom_kinds.errors(queue) == []) == good


def test_int_or_string_and_open_objects_survive_the_conversion() -> None:
    schema = json_schema(
        {
            "type": "object",
            "properties": {
                "port": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "any": {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True},
                "none": {"type": "string", "nullable": True, "enum": ["a"]},
                "share": {"type": "integer", "minimum": 0, "exclusiveMinimum": True},
            },
        }
    )
    assert schema["properties"]["port"] == {"type": ["integer", "string"]}
    assert "additionalProperties" not in schema["properties"]["any"]
    assert schema["properties"]["none"] == {"type": ["string", "null"], "enum": ["a", None]}
    assert schema["properties"]["share"] == {"type": "integer", "exclusiveMinimum": 0}
    assert schema["additionalProperties"] is False
