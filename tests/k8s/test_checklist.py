"""Our own promises about k8s/: the manifests keep them, and every check finds what it is there for."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.k8s import bucket, checklist, quota
from tests.k8s.checklist import CHECKS
from tests.k8s.examples import Examples
from tests.k8s.manifests import ALPHA, K8S, REST, components, folders

pytestmark = pytest.mark.quick

Json = dict[str, Any]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_our_manifests_keep_the_promise(objects: list[Json], check: checklist.Check, folder: Path) -> None:
    alpha = check is checklist.nothing_alpha and set(ALPHA) & set(components(folder))
    assert bool(list(check(objects))) == bool(alpha), list(check(objects))


def test_alpha_components_say_so_and_no_overlay_has_them() -> None:
    for name in ALPHA:
        assert "# ALPHA" in (K8S / "components" / name / "kustomization.yaml").read_text(encoding="utf-8")
    for folder in folders():
        assert folder == REST or not set(ALPHA) & set(components(folder)), folder


def test_every_component_is_rendered_with_others() -> None:
    there = {path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml")}
    assert {name for folder in folders() for name in components(folder)} == there


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_healthy_examples_keep_the_promise(check: checklist.Check) -> None:
    assert list(check(Examples().objects)) == []


def _bursting_memory(example: Examples) -> None:
    example.container["resources"]["requests"]["memory"] = "512Mi"


def _unbounded_disk(example: Examples) -> None:
    del example.head["containers"][0]["resources"]["limits"]["ephemeral-storage"]


def _writable_root(example: Examples) -> None:
    del example.container["securityContext"]["readOnlyRootFilesystem"]


def _small_shm(example: Examples) -> None:
    example.head["volumes"][0]["emptyDir"]["sizeLimit"] = "64Mi"


def _unbounded_ray_tmp(example: Examples) -> None:
    example.head["volumes"][1]["emptyDir"] = {}


def _busy_head(example: Examples) -> None:
    example.cluster["headGroupSpec"]["rayStartParams"] = {}


def _no_grace(example: Examples) -> None:
    del example.head["terminationGracePeriodSeconds"]


def _head_without_budget(example: Examples) -> None:
    example.objects.remove(example["PodDisruptionBudget/ray-head"])


def _budget_without_scale(example: Examples) -> None:
    spec = example["PodDisruptionBudget/ray-head"]["spec"]
    del spec["minAvailable"]
    spec["maxUnavailable"] = 0


def _two_budgets(example: Examples) -> None:
    example.add("PodDisruptionBudget", "more", "policy/v1", spec=example["PodDisruptionBudget/web"]["spec"])


def _mounted_token(example: Examples) -> None:
    del example.head["automountServiceAccountToken"]


def _default_account(example: Examples) -> None:
    del example.pod["serviceAccountName"]


def _cluster_role(example: Examples) -> None:
    example.add("ClusterRole", "web", "rbac.authorization.k8s.io/v1", rules=[])


def _wide_role(example: Examples) -> None:
    rules = [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["*"]}]
    example.add("Role", "web", "rbac.authorization.k8s.io/v1", rules=rules)


def _role_for_drivers(example: Examples) -> None:
    subjects = [{"kind": "ServiceAccount", "name": "simpo-training"}]
    example.add("RoleBinding", "web", "rbac.authorization.k8s.io/v1", subjects=subjects)


def _service_links(example: Examples) -> None:
    del example.pod["enableServiceLinks"]


def _open_by_default(example: Examples) -> None:
    example["NetworkPolicy/default-deny"]["spec"]["policyTypes"] = ["Ingress"]


def _metadata_reachable(example: Examples) -> None:
    del example["NetworkPolicy/web"]["spec"]["egress"][0]["to"][0]["ipBlock"]["except"]


def _egress_to_all(example: Examples) -> None:
    del example["NetworkPolicy/web"]["spec"]["egress"][0]["to"]


def _open_ray(example: Examples) -> None:
    del example.cluster["authOptions"]


def _random_ray_token(example: Examples) -> None:
    del example.cluster["authOptions"]["secretName"]


def _rendered_secret(example: Examples) -> None:
    example.add("Secret", "web", stringData={"token": "a"})


def _literal_token(example: Examples) -> None:
    example.container["env"][1] = {"name": "SIMPO_RAY_TOKEN", "value": "a"}


def _password_in_settings(example: Examples) -> None:
    example["ConfigMap/settings"]["data"]["URL"] = "postgresql://simpo:pw@db/simpo"


def _latest(example: Examples) -> None:
    example.container["image"] = "registry.invalid:5000/web:latest"


def _untagged(example: Examples) -> None:
    example.head["containers"][0]["image"] = "registry.invalid:5000/ray"


def _same_probe(example: Examples) -> None:
    example.container["readinessProbe"] = {**example.container["livenessProbe"], "periodSeconds": 1}


def _unlabelled(example: Examples) -> None:
    example["Service/web"]["metadata"]["labels"] = {}


def _nobodys_job(example: Examples) -> None:
    example.add("RayJob", "job", "ray.io/v1", spec={"entrypoint": "true", "rayClusterSpec": example.cluster})


def _alpha_tls(example: Examples) -> None:
    example.cluster["tlsOptions"] = {"enabled": True}


def _second_serve_owner(example: Examples) -> None:
    example.add("RayService", "service", "ray.io/v1", spec={"rayClusterConfig": example.cluster})


def _serve_configuration_by_hand(example: Examples) -> None:
    spec = {"rayClusterConfig": example.cluster, "serveConfigV2": "{}"}
    example.add("RayService", "service", "ray.io/v1", spec=spec)


def _no_service(example: Examples) -> None:
    example["ConfigMap/settings"]["data"] |= {"SIMPO_DEPLOY_BY": "rayservice", "SIMPO_RAY_SERVE_URL": "http://ray:8265"}


def _token_beside_the_work(example: Examples) -> None:
    volume = {"name": "kube-api", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
    example.head["volumes"].append(volume)
    example.head["containers"][0]["volumeMounts"].append({"name": "kube-api", "mountPath": "/var/run/secrets"})


def _serve_without_haproxy(example: Examples) -> None:
    example.head["containers"][0]["ports"] = [{"name": "serve", "containerPort": 8000}]


def _haproxy_on_half_the_cluster(example: Examples) -> None:
    names = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
    example.head["containers"][0]["env"] = [{"name": name, "value": "1"} for name in names]
    example.head["containers"][0]["ports"] = [{"name": "serve", "containerPort": 8000}]


def _two_images(example: Examples) -> None:
    worker = example.cluster["workerGroupSpecs"][0]["template"]["spec"]
    worker["containers"][0]["image"] = "registry.invalid/ray:2.59.0"


def _head_on_spot(example: Examples) -> None:
    del example.head["affinity"]


def _all_on_one_node(example: Examples) -> None:
    del example.pod["topologySpreadConstraints"]


def _public_dashboard(example: Examples) -> None:
    backend = {"service": {"name": "ray-head-svc", "port": {"number": 8265}}}
    paths = [{"path": "/", "pathType": "Prefix", "backend": backend}]
    spec = {"tls": [{"secretName": "a"}], "rules": [{"http": {"paths": paths}}]}
    example.add("Ingress", "web", "networking.k8s.io/v1", spec=spec)


def _public_serve(example: Examples) -> None:
    rules = [{"backendRefs": [{"name": "ray-head-svc", "port": 8000}]}]
    example.add("HTTPRoute", "web", "gateway.networking.k8s.io/v1", spec={"rules": rules})


def _plain_ingress(example: Examples) -> None:
    example.add("Ingress", "web", "networking.k8s.io/v1", spec={"rules": []})


def _no_certificate(example: Examples) -> None:
    listener = {"name": "https", "port": 443, "protocol": "HTTPS"}
    example.add("Gateway", "web", "gateway.networking.k8s.io/v1", spec={"listeners": [listener]})


def _node_port(example: Examples) -> None:
    example["Service/web"]["spec"]["type"] = "NodePort"


def _ingress_as_it_comes(example: Examples) -> None:
    example.add("Ingress", "web", "networking.k8s.io/v1", spec={"tls": [{"secretName": "a"}]})


def _impatient_route(example: Examples) -> None:
    rules = [{"backendRefs": [{"name": "simpo-api", "port": 80}], "timeouts": {"request": "15s"}}]
    example.add("HTTPRoute", "web", "gateway.networking.k8s.io/v1", spec={"rules": rules})


def _literal_redis_password(example: Examples) -> None:
    example.cluster["gcsFaultToleranceOptions"] = {"redisPassword": {"value": "a"}}


def _tight_quota(example: Examples) -> None:
    example["ResourceQuota/all"]["spec"]["hard"]["requests.memory"] = "3Gi"


def _no_quota(example: Examples) -> None:
    example.objects.remove(example["ResourceQuota/all"])


def _bucket(example: Examples) -> None:
    example["ConfigMap/settings"]["data"] |= {"SIMPO_STORE": "s3://bucket/simpo", "SIMPO_COPIES": "/data"}


def _claim_beside_a_bucket(example: Examples) -> None:
    _bucket(example)
    example["PersistentVolumeClaim/data"]["metadata"]["name"] = "simpo-store"


def _claim_in_a_pod_beside_a_bucket(example: Examples) -> None:
    _bucket(example)
    example.head["volumes"].append({"name": "store", "persistentVolumeClaim": {"claimName": "simpo-store"}})


def _copies_anywhere(example: Examples) -> None:
    _bucket(example)
    worker = example.cluster["workerGroupSpecs"][0]["template"]["spec"]
    worker["volumes"].append({"name": "copies", "emptyDir": {}})
    worker["containers"][0]["volumeMounts"].append({"name": "copies", "mountPath": "/tmp"})


def _keys_without_a_bucket(example: Examples) -> None:
    secret = {"secretKeyRef": {"name": "simpo-object-store", "key": "access_key_id"}}
    example.head["containers"][0]["env"] = [{"name": "AWS_ACCESS_KEY_ID", "valueFrom": secret}]


def _written_keys(example: Examples) -> None:
    example.container["env"].append({"name": "AWS_ACCESS_KEY_ID", "value": "a"})


def _replicas_that_may_write(example: Examples) -> None:
    _bucket(example)
    template = example.cluster["workerGroupSpecs"][0]["template"]
    template["metadata"]["labels"]["app.kubernetes.io/component"] = "serving"
    secret = {"secretKeyRef": {"name": "simpo-object-store", "key": "access_key_id"}}
    template["spec"]["containers"][0]["env"] = [{"name": "AWS_ACCESS_KEY_ID", "valueFrom": secret}]


def _plain_endpoint(example: Examples) -> None:
    example["ConfigMap/settings"]["data"]["AWS_ENDPOINT_URL_S3"] = "http://s3.example.invalid"


CASES: list[tuple[checklist.Check, Callable[[Examples], None], str]] = [
    (checklist.fixed_memory, _bursting_memory, "the memory request must equal the memory limit"),
    (checklist.fixed_memory, _unbounded_disk, "ephemeral-storage must be requested and limited"),
    (checklist.read_only_root, _writable_root, "readOnlyRootFilesystem must be true"),
    (checklist.ray_scratch, _small_shm, "/dev/shm must hold 30 % of the memory limit"),
    (checklist.ray_scratch, _unbounded_ray_tmp, "needs an emptyDir with a sizeLimit at /tmp/ray"),
    (checklist.idle_heads, _busy_head, 'num-cpus must be "0"'),
    (checklist.time_to_stop, _no_grace, "terminationGracePeriodSeconds must be at least 60"),
    (checklist.disruption_budgets, _head_without_budget, "RayCluster/ray headgroup: needs a PodDisruptionBudget"),
    (checklist.disruption_budgets, _budget_without_scale, "need an integer minAvailable"),
    (checklist.disruption_budgets, _two_budgets, "has 2 PodDisruptionBudgets"),
    (checklist.no_cluster_identity, _mounted_token, "automountServiceAccountToken must be false"),
    (checklist.no_cluster_identity, _default_account, "needs a ServiceAccount of its own"),
    (checklist.no_cluster_identity, _cluster_role, "nothing here is of the whole cluster"),
    (checklist.no_cluster_identity, _wide_role, "named verbs on objects of ray.io alone"),
    (checklist.no_cluster_identity, _role_for_drivers, "only the reconciler may use the Kubernetes API"),
    (checklist.no_cluster_identity, _service_links, "enableServiceLinks must be false"),
    (checklist.default_deny, _open_by_default, "needs a NetworkPolicy that selects every pod and allows nothing"),
    (checklist.default_deny, _metadata_reachable, "ipBlock 0.0.0.0/0 must except 169.254.169.254/32"),
    (checklist.default_deny, _egress_to_all, "an egress rule without `to` allows every address"),
    (checklist.ray_token, _open_ray, "authOptions must be mode token with a secretName"),
    (checklist.ray_token, _random_ray_token, "authOptions must be mode token with a secretName"),
    (checklist.no_secret_values, _rendered_secret, "Secrets are made by hand"),
    (checklist.no_secret_values, _literal_token, "SIMPO_RAY_TOKEN must come from a Secret"),
    (checklist.no_secret_values, _password_in_settings, "ConfigMap/settings: URL belongs in a Secret"),
    (checklist.pinned_images, _latest, "registry.invalid:5000/web:latest needs a digest or a fixed tag"),
    (checklist.pinned_images, _untagged, "registry.invalid:5000/ray needs a digest or a fixed tag"),
    (checklist.probes, _same_probe, "needs livenessProbe and readinessProbe, different ones"),
    (checklist.labelled, _unlabelled, "Service/web: needs the labels"),
    (checklist.labelled, _nobodys_job, "RayJob/job headgroup: the pod needs the labels simpo/owner, simpo/sweep"),
    (checklist.nothing_alpha, _alpha_tls, "tlsOptions is alpha"),
    (checklist.one_serve_owner, _second_serve_owner, "would overwrite what the reconciler puts"),
    (checklist.one_serve_owner, _serve_configuration_by_hand, "serveConfigV2 is the reconciler's"),
    (checklist.one_serve_owner, _no_service, "SIMPO_DEPLOY_BY is rayservice, and there is none"),
    (checklist.no_cluster_identity, _token_beside_the_work, "only Ray's autoscaler and the reconciler may"),
    (checklist.serve_haproxy, _serve_without_haproxy, 'headgroup ray: RAY_SERVE_ENABLE_HA_PROXY must be "1"'),
    (checklist.serve_haproxy, _haproxy_on_half_the_cluster, 'workers ray: RAY_SERVE_THROUGHPUT_OPTIMIZED must be "1"'),
    (checklist.one_image_per_cluster, _two_images, "ray: has 2 images"),
    (checklist.heads_stay, _head_on_spot, "needs a nodeAffinity that keeps it off spot nodes"),
    (checklist.spread, _all_on_one_node, "Deployment/web: needs topologySpreadConstraints"),
    (checklist.public_origin, _public_dashboard, "Ingress/web: leads to ray-head-svc"),
    (checklist.public_origin, _public_serve, "HTTPRoute/web: leads to ray-head-svc"),
    (checklist.public_origin, _plain_ingress, "Ingress/web: needs tls"),
    (checklist.public_origin, _no_certificate, "the listener https needs a certificate"),
    (checklist.public_origin, _node_port, "Service/web: must be of type ClusterIP"),
    (checklist.no_secret_values, _literal_redis_password, "redisPassword must come from a Secret"),
    (checklist.streams, _ingress_as_it_comes, "needs proxy-body-size"),
    (checklist.streams, _ingress_as_it_comes, "proxy-read-timeout must be 600 or more"),
    (checklist.streams, _ingress_as_it_comes, "proxy-buffering must be off"),
    (checklist.streams, _impatient_route, "timeouts.request must be 0s"),
    (quota.within_quota, _tight_quota, "requests.memory is 3Gi, but"),
    (quota.within_quota, _no_quota, "needs a ResourceQuota"),
    (bucket.one_store, _claim_beside_a_bucket, "PersistentVolumeClaim/simpo-store: SIMPO_STORE is a bucket"),
    (bucket.one_store, _claim_in_a_pod_beside_a_bucket, "headgroup: SIMPO_STORE is a bucket, so the volume store"),
    (bucket.bounded_copies, _bucket, "workers: needs an emptyDir with a sizeLimit at /tmp"),
    (bucket.bounded_copies, _copies_anywhere, "workers: needs an emptyDir with a sizeLimit at /tmp"),
    (bucket.bucket_keys, _bucket, "workers: needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    (bucket.bucket_keys, _keys_without_a_bucket, "headgroup: has no business in the bucket"),
    (bucket.bucket_keys, _written_keys, "Deployment/web: AWS_ACCESS_KEY_ID must come from a Secret"),
    (bucket.bucket_keys, _replicas_that_may_write, "must be of simpo-object-store-read: replicas write nothing"),
    (bucket.bucket_keys, _plain_endpoint, "AWS_ENDPOINT_URL_S3 must be https://"),
    (checklist.no_secret_values, _written_keys, "AWS_ACCESS_KEY_ID must come from a Secret"),
]


@pytest.mark.parametrize(("check", "spoil", "message"), CASES, ids=[spoil.__name__ for _, spoil, _ in CASES])
def test_a_broken_promise_is_found(check: checklist.Check, spoil: Callable[[Examples], None], message: str) -> None:
    example = Examples()
    spoil(example)
    found = list(check(example.objects))
    assert any(message in text for text in found), found


def test_readme_lists_every_promise() -> None:
    section = (K8S / "README.md").read_text(encoding="utf-8").partition("## Promises")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [check.__name__ for check in CHECKS]


def test_every_check_has_a_failing_example() -> None:
    assert {check for check, _, _ in CASES} == set(CHECKS)
