"""Each component by itself on the base: what holds of the overlays holds of every choice among them.

Slower than the other tests of k8s/ (a rendering each), so not among the quick ones.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.k8s import builtin, ray_rules
from tests.k8s.checklist import CHECKS, nothing_alpha
from tests.k8s.crd import CustomKinds
from tests.k8s.lints import LINTS
from tests.k8s.manifests import ALPHA, K8S, kubectl, pods, render
from tests.k8s.pod_security import violations

Json = dict[str, Any]

NAMES = sorted(path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml"))
NEEDS = {"rayjob": ["kueue"], "queued-sweeps": ["kueue", "kube-api"], "rayservice": ["kube-api"]}
PAIRS = [(name, other) for name in ("spot", "gpu") for other in ("autoscaler", "gcs-redis", "monitoring")]


def _rendered(folder: Path, names: list[str]) -> list[Json]:
    program, reason = kubectl()
    if program is None:
        pytest.skip(reason)
    root = os.path.relpath(K8S, folder.resolve())  # kustomize takes no absolute path
    lines = ["apiVersion: kustomize.config.k8s.io/v1beta1", "kind: Kustomization"]
    lines += ["resources:", f"- {root}/base", "components:", *(f"- {root}/components/{name}" for name in names)]
    lines += ["labels:", "- pairs: {app.kubernetes.io/part-of: simpo}"]
    (folder / "kustomization.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return render(folder)


def _findings(objects: list[Json]) -> list[str]:
    found = [text for lint in LINTS for text in lint(objects)]
    found += [text for check in CHECKS if check is not nothing_alpha for text in check(objects)]
    found += [f"{view.owner}: {text}" for view in pods(objects) for text in violations(view.pod)]
    ours = [thing for thing in objects if not thing["apiVersion"].startswith(("ray.io/", "kueue.x-k8s.io/"))]
    ours += [view.pod for view in pods(objects)]
    found += [text for thing in ours for text in builtin.errors(thing, "1.32")]
    return found + ray_rules.refusals(objects)


@pytest.mark.parametrize(
    "names", [[*NEEDS.get(name, []), name] for name in NAMES] + [list(pair) for pair in PAIRS], ids=" + ".join
)
def test_a_component_stands_by_itself(tmp_path: Path, names: list[str], custom_kinds: CustomKinds) -> None:
    objects = _rendered(tmp_path, names)
    assert _findings(objects) == []
    assert bool(list(nothing_alpha(objects))) == bool(set(names) & set(ALPHA))
    assert [text for thing in objects if thing in custom_kinds for text in custom_kinds.errors(thing)] == []
