"""What everything takes at its largest, against the namespace's ResourceQuota."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from tests.k8s.lints import quantity
from tests.k8s.manifests import PodView, name_of, pods

Json = dict[str, Any]


def within_quota(objects: list[Json]) -> Iterator[str]:
    """All pods together, every scaler at its top, fit the ResourceQuota: else an upgrade or a busy day stands still."""
    quotas = [thing for thing in objects if thing["kind"] == "ResourceQuota"]
    totals = largest(objects)
    for quota in quotas:
        for key, text in quota["spec"]["hard"].items():
            if totals.get(key, Decimal(0)) > quantity(text):
                yield f"{name_of(quota)}: {key} is {text}, but {totals[key]:f} may be asked for"
    if not quotas:
        yield "(all): needs a ResourceQuota"


def largest(objects: list[Json]) -> dict[str, Decimal]:
    """Resource of a quota -> what the objects may ask for in all. Rolling updates of Deployments count one pod more."""
    tops = {
        thing["spec"]["scaleTargetRef"]["name"]: thing["spec"]["maxReplicas"]
        for thing in objects
        if thing["kind"] == "HorizontalPodAutoscaler"
    }
    totals: dict[str, Decimal] = {}
    for thing in objects:
        for view in pods([thing]):
            for key, amount in _of_pod(view).items():
                totals[key] = totals.get(key, Decimal(0)) + amount * _count(thing, view, tops)
        claims = len((thing.get("spec") or {}).get("volumeClaimTemplates") or [])
        claims += thing["kind"] == "PersistentVolumeClaim"
        totals["persistentvolumeclaims"] = totals.get("persistentvolumeclaims", Decimal(0)) + claims
    return totals


def _count(thing: Json, view: PodView, tops: dict[str, int]) -> int:
    if thing["kind"] == "Deployment":
        return int(tops.get(thing["metadata"]["name"], thing["spec"].get("replicas", 1))) + 1
    clusters = 2 if thing["kind"] == "RayService" else 1  # the new one starts beside the one that answers
    if view.labels.get("ray.io/node-type") == "worker":
        spec = thing["spec"].get("rayClusterSpec") or thing["spec"].get("rayClusterConfig") or thing["spec"]
        group = next(g for g in spec["workerGroupSpecs"] if g["groupName"] == view.labels["ray.io/group"])
        return int(group["maxReplicas"]) * clusters
    return int((thing.get("spec") or {}).get("replicas", 1)) * clusters


def _of_pod(view: PodView) -> dict[str, Decimal]:
    total = {"pods": Decimal(1)}
    for container in view.containers():
        for resource, text in ((container.get("resources") or {}).get("requests") or {}).items():
            key = f"requests.{resource}"
            total[key] = total.get(key, Decimal(0)) + quantity(text)
    return total
