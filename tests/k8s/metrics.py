"""Metrics that dashboards and alerts may name, with where each comes from; and the names that a PromQL text uses."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from service import gauges
from service.clock import SystemClock
from service.metrics import Metrics
from service.serving.engine_metrics import EngineMetrics
from tests.serving.instruments import Told

KNOWN: dict[str, str] = {
    # kube-state-metrics, docs/metrics/*/ (all of them STABLE there)
    "kube_deployment_spec_replicas": "kube-state-metrics docs/metrics/workload/deployment-metrics.md",
    "kube_deployment_status_replicas_available": "kube-state-metrics docs/metrics/workload/deployment-metrics.md",
    "kube_job_status_failed": "kube-state-metrics docs/metrics/workload/job-metrics.md",
    "kube_job_status_succeeded": "kube-state-metrics docs/metrics/workload/job-metrics.md",
    "kube_pod_status_phase": "kube-state-metrics docs/metrics/workload/pod-metrics.md",
    "kube_pod_container_status_restarts_total": "kube-state-metrics docs/metrics/workload/pod-metrics.md",
    "kube_resourcequota": "kube-state-metrics docs/metrics/policy/resourcequota-metrics.md",
    # the kubelet, kubernetes.io/docs/reference/instrumentation/metrics (and cAdvisor's beside it)
    "kubelet_volume_stats_available_bytes": "kubelet, reference of Kubernetes metrics",
    "kubelet_volume_stats_capacity_bytes": "kubelet, reference of Kubernetes metrics",
    "container_memory_working_set_bytes": "cAdvisor docs/storage/prometheus.md",
    "container_cpu_usage_seconds_total": "cAdvisor docs/storage/prometheus.md",
}
"""Metrics that nothing here can be asked for. Those of Ray are looked up in the installed Ray."""

_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
_WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset"}


def names_in(expression: str) -> set[str]:
    """The metrics that a PromQL expression names."""
    text = re.sub(r'"[^"]*"', "", expression)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", text)
    found = re.findall(r"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()", text)
    return {name for name in found if name not in _WORDS}


def unknown(names: set[str]) -> set[str]:
    """Those of `names` for which there is no source: neither in KNOWN, nor in the service, its replicas or Ray."""
    names = names - _of_replicas()
    rays = {name for name in names if name.startswith("ray_")}
    return (names - rays - set(KNOWN) - _exported()) | {name for name in rays if not _in_ray(name)}


@cache
def _exported() -> set[str]:
    """What the service exports: asked of its registry, and of its source where a database would have to answer."""
    families = Metrics(SystemClock()).registry.collect()
    found = {family.name + suffix for family in families for suffix in _SUFFIXES.get(family.type, ())}
    return found | set(re.findall(r'"(simpo_[a-z_]+)"', Path(gauges.__file__).read_text(encoding="utf-8")))


@cache
def _of_replicas() -> set[str]:
    """What replicas hand to Ray, as Ray exports it."""
    told = Told()
    EngineMetrics(told.kit, engine="")
    return {f"ray_{name}{suffix}" for name, kind in told.kinds.items() for suffix in _SUFFIXES[kind]}


@cache
def ray_source(folder: str, pattern: str) -> str:
    """The text of these files of the installed Ray, which is found and not imported."""
    spec = find_spec("ray")
    assert spec and spec.submodule_search_locations
    found = sorted((Path(spec.submodule_search_locations[0]) / folder).glob(pattern))
    assert found, f"ray has no {folder}/{pattern} any more"
    return "\n".join(path.read_text(encoding="utf-8") for path in found)


def _in_ray(name: str) -> bool:
    """Ray 2.60 names its metrics in its own dashboards, or where they are made (without the prefix ray_ there)."""
    dashboards = ray_source("dashboard/modules/metrics/dashboards", "*_panels.py")
    made = ray_source("serve/_private", "haproxy_metrics.py")
    return bool(re.search(rf"\b{name}\b", dashboards)) or f'"{name.removeprefix("ray_")}"' in made
