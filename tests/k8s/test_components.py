"""Each component by itself on the base: what holds of the overlays holds of every choice among them.

Slower than the other tests of k8s/ (a rendering each), so not among the quick ones.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from tests.k8s import builtin, ray_rules
from tests.k8s.bucket import needs_bucket
from tests.k8s.checklist import CHECKS, nothing_alpha
from tests.k8s.crd import CustomKinds
from tests.k8s.lints import LINTS, quantity
from tests.k8s.manifests import ALPHA, K8S, PodView, kubectl, pods, render
from tests.k8s.network import Peer, allows
from tests.k8s.pod_security import violations

Json = dict[str, Any]

NAMES = sorted(path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml"))
NEEDS = {"rayjob": ["kueue"], "queued-sweeps": ["kueue", "kube-api"], "rayservice": ["kube-api"]}
STORE = Peer(name="store", address="192.0.2.4")  # the placeholder of the component object-store
ON_A_BUCKET = [  # what it stands on, and the order: after what adds pods
    ("base", ["autoscaler", "spot", "object-store"]),
    ("base", ["gpu", "object-store"]),
    ("base", ["kueue", "kube-api", "queued-sweeps", "object-store"]),
    ("base", ["kueue", "rayjob", "object-store"]),
    ("base", ["kube-api", "object-store", "rayservice"]),
    *((f"overlays/{name}", ["object-store"]) for name in ("dev", "ci-small", "staging", "prod")),
]
PAIRS = [(name, other) for name in ("spot", "gpu") for other in ("autoscaler", "gcs-redis", "monitoring")]


def _rendered(folder: Path, names: list[str], below: str = "base") -> list[Json]:
    program, reason = kubectl()
    if program is None:
        pytest.skip(reason)
    root = os.path.relpath(K8S, folder.resolve())  # kustomize takes no absolute path
    lines = ["apiVersion: kustomize.config.k8s.io/v1beta1", "kind: Kustomization"]
    lines += ["resources:", f"- {root}/{below}", "components:", *(f"- {root}/components/{name}" for name in names)]
    lines += ["labels:", "- pairs: {app.kubernetes.io/part-of: simpo}"]
    (folder / "kustomization.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return render(folder)


def _findings(objects: list[Json], versions: tuple[str, ...] = ("1.32",)) -> list[str]:
    found = [text for lint in LINTS for text in lint(objects)]
    found += [text for check in CHECKS if check is not nothing_alpha for text in check(objects)]
    found += [f"{view.owner}: {text}" for view in pods(objects) for text in violations(view.pod)]
    ours = [thing for thing in objects if not thing["apiVersion"].startswith(("ray.io/", "kueue.x-k8s.io/"))]
    ours += [view.pod for view in pods(objects)]
    found += [text for thing in ours for version in versions for text in builtin.errors(thing, version)]
    return found + ray_rules.refusals(objects)


@pytest.mark.parametrize(
    "names", [[*NEEDS.get(name, []), name] for name in NAMES] + [list(pair) for pair in PAIRS], ids=" + ".join
)
def test_a_component_stands_by_itself(tmp_path: Path, names: list[str], custom_kinds: CustomKinds) -> None:
    objects = _rendered(tmp_path, names)
    assert _findings(objects) == []
    assert bool(list(nothing_alpha(objects))) == bool(set(names) & set(ALPHA))
    assert [text for thing in objects if thing in custom_kinds for text in custom_kinds.errors(thing)] == []


@pytest.mark.parametrize(
    ("below", "names"), ON_A_BUCKET, ids=[" + ".join([below, *names]) for below, names in ON_A_BUCKET]
)
def test_a_store_in_a_bucket_stands_on_anything(
    tmp_path: Path, below: str, names: list[str], custom_kinds: CustomKinds
) -> None:
    objects = _rendered(tmp_path, names, below)
    assert _findings(objects, ("1.32", "1.37")) == []
    assert [text for thing in objects if thing in custom_kinds for text in custom_kinds.errors(thing)] == []
    settings = next(thing["data"] for thing in objects if "SIMPO_STORE" in (thing.get("data") or {}))
    assert Settings.from_env({key: settings[key] for key in ("SIMPO_STORE", "SIMPO_COPIES")}).bucket
    assert int(settings["SIMPO_MODEL_CACHE_BYTES"]) < min(_limits_of_tmp(objects, "serving"))
    assert {view.owner: _reaches_the_store(objects, view) for view in pods(objects)} == {
        view.owner: needs_bucket(view) or view.owner == "RayJob/simpo-sweep submitter" for view in pods(objects)
    }


def test_before_what_adds_pods_it_is_found_out(tmp_path: Path) -> None:
    found = _findings(_rendered(tmp_path, ["object-store", "spot"]))
    assert any("spot: refers to PersistentVolumeClaim/simpo-store, which is not there" in text for text in found), found
    assert any("spot: needs AWS_ACCESS_KEY_ID" in text for text in found), found


def _limits_of_tmp(objects: list[Json], component: str) -> list[float]:
    """Bytes of the directory at /tmp, of each kind of worker of a cluster."""
    workers = [view for view in pods(objects) if view.labels.get("ray.io/node-type") == "worker"]
    found = []
    for view in [view for view in workers if view.labels["app.kubernetes.io/component"] == component]:
        volumes = {volume["name"]: volume for volume in view.spec["volumes"]}
        (mount,) = (each for each in next(iter(view.containers()))["volumeMounts"] if each["mountPath"] == "/tmp")
        found.append(float(quantity(volumes[mount["name"]]["emptyDir"]["sizeLimit"])))
    return found


def _reaches_the_store(objects: list[Json], view: PodView) -> bool:
    peer = Peer(name=view.owner, namespace=view.namespace, labels=view.labels)
    assert not allows(objects, peer, STORE, 80), view.owner
    return allows(objects, peer, STORE, 443)
