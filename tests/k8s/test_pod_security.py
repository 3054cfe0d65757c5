"""Pod Security `restricted`: our checker agrees with upstream's fixtures, and our pods pass it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.examples import Examples
from tests.k8s.manifests import pods
from tests.k8s.pod_security import violations

pytestmark = pytest.mark.quick


def test_the_checker_agrees_with_every_upstream_fixture(fixtures: Path) -> None:
    verdicts = {"pass": 0, "fail": 0}
    for path in sorted(fixtures.rglob("*.yaml")):
        expected = path.parent.name
        found = violations(yaml.safe_load(path.read_text(encoding="utf-8")))
        assert bool(found) == (expected == "fail"), f"{expected}/{path.name}: {found}"
        verdicts[expected] += 1
    assert verdicts == {"pass": 23, "fail": 76}


def test_every_pod_of_ours_is_restricted(objects: list[dict[str, Any]]) -> None:
    views = pods(objects)
    assert len(views) >= 6  # api, reconciler, and head and workers of two Ray clusters
    assert [f"{view.owner}: {text}" for view in views for text in violations(view.pod)] == []


def test_the_namespace_enforces_it_at_a_pinned_version(objects: list[dict[str, Any]]) -> None:
    (namespace,) = (thing for thing in objects if thing["kind"] == "Namespace")
    labels = namespace["metadata"]["labels"]
    for mode in ("enforce", "audit", "warn"):
        assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"
        assert labels[f"pod-security.kubernetes.io/{mode}-version"] != "latest"


def test_a_pod_as_ray_samples_have_it_is_refused() -> None:
    example = Examples()
    del example.head["securityContext"], example.head["containers"][0]["securityContext"]
    (view,) = (view for view in pods(example.objects) if view.owner == "RayCluster/ray headgroup")
    assert {text.rsplit(".", 1)[-1].split(":")[0] for text in violations(view.pod)} == {
        *("allowPrivilegeEscalation", "drop", "seccompProfile", "runAsNonRoot")
    }
