"""The sum of the NetworkPolicies is the table in k8s/README.md, no more and no less."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.examples import Examples
from tests.k8s.manifests import K8S, PodView, components, pods
from tests.k8s.network import Peer, allows, open_ports

pytestmark = pytest.mark.quick

Json = dict[str, Any]
Flow = tuple[str, str, int]

OUTSIDERS = (
    Peer(name="gateway", namespace="gateway-system", labels={"app.kubernetes.io/name": "gateway"}),
    Peer(name="operator", namespace="kuberay-system", labels={"app.kubernetes.io/name": "kuberay-operator"}),
    Peer(name="beside the operator", namespace="kuberay-system", labels={"app.kubernetes.io/name": "other"}),
    Peer(name="impostor", namespace="other", labels={"app.kubernetes.io/name": "kuberay-operator"}),
    Peer(name="neighbour", namespace="simpo", labels={"app": "neighbour"}),
    Peer(name="dns", namespace="kube-system", labels={"k8s-app": "kube-dns"}),
    Peer(name="prometheus", namespace="monitoring", labels={"app.kubernetes.io/name": "prometheus"}),
    Peer(name="ingress", namespace="ingress-nginx", labels={"app.kubernetes.io/name": "ingress-nginx"}),
    Peer(name="kubernetes", address="192.0.2.1"),  # the placeholders of README, "To fill in"
    Peer(name="otlp", address="192.0.2.2"),
    Peer(name="database", address="192.0.2.3"),
    Peer(name="store", address="192.0.2.4"),
    Peer(name="internet", address="93.184.216.34"),
    Peer(name="metadata", address="169.254.169.254"),
)
PORTS = (53, 80, 443, 5432, 6379, 6443, 8000, 8080, 8265, 8404, 8443, 9101, 10001, 30000, 33333)  # the last: in no rule


def _peer(view: PodView) -> Peer:
    component = view.labels["app.kubernetes.io/component"]
    node = view.labels.get("ray.io/node-type")
    return Peer(name=f"{component} {node}" if node else component, namespace=view.namespace, labels=view.labels)


def _actual(objects: list[Json]) -> set[Flow]:
    policies = [thing for thing in objects if thing["kind"] == "NetworkPolicy"]
    ours = {(peer.name, frozenset(peer.labels.items())): peer for peer in map(_peer, pods(objects))}.values()
    ends = [(a, b) for a, b in product((*ours, *OUTSIDERS), repeat=2) if a not in OUTSIDERS or b not in OUTSIDERS]
    return {(a.name, b.name, port) for a, b in ends for port in open_ports(policies, a, b, PORTS)}


def _section(heading: str) -> str:
    return (K8S / "README.md").read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def _promised(names: list[str], used: list[str]) -> set[Flow]:
    """The tables of README, base's and those of the components in use, with the words for several pods spelled out."""
    text = _section("Who may talk to whom")
    rows = re.findall(r"^\| ([a-z ]+) \| ([a-z ]+) \| (\d+|any) \|", text, re.MULTILINE)
    assert len(rows) >= 10
    opened = re.findall(r"^\| `([a-z0-9-]+)` \| ([a-z ]+) \| ([a-z ]+) \| (\d+|any) \|", text, re.MULTILINE)
    assert len(opened) >= 10
    rows += [(source, target, port) for name, source, target, port in opened if name in used]

    def spelled(word: str) -> list[str]:
        if word == "every pod":
            return names
        if word.endswith(" node"):
            return [word.replace("node", kind) for kind in ("head", "worker")]
        if word in ("sweep pod", "queued pod"):
            kind = word.removesuffix(" pod")
            return [kind, f"{kind} head", f"{kind} worker"]
        return [word]

    return {
        (source, target, number)
        for from_word, to_word, port in rows
        if not ("ingress" in used and from_word == "gateway")  # one way in, not two
        for source, target in product(spelled(from_word), spelled(to_word))
        for number in (PORTS if port == "any" else (int(port),))
    }


def test_the_policies_allow_exactly_the_tables_in_readme(objects: list[Json], folder: Path) -> None:
    names = [_peer(view).name for view in pods(objects)]
    actual, promised = _actual(objects), _promised(names, components(folder))
    assert actual - promised == set(), "allowed, but not in a table of k8s/README.md"
    assert promised - actual == set(), "in a table of k8s/README.md, but not allowed"


def test_dev_differs_by_its_own_database_alone(base: list[Json], dev: list[Json]) -> None:
    added, removed = _actual(dev) - _actual(base), _actual(base) - _actual(dev)
    # The same words, another target: in dev "database" is the pod, and the outside address is closed.
    assert {flow for flow in added if flow[2] != 53} == set()
    assert removed == set()
    outside = next(peer for peer in OUTSIDERS if peer.name == "database")
    api = next(_peer(view) for view in pods(dev) if view.owner == "Deployment/simpo-api")
    assert not allows(dev, api, outside, 5432)


def test_dns_needs_both_protocols(objects: list[Json]) -> None:
    dns = next(peer for peer in OUTSIDERS if peer.name == "dns")
    for view in pods(objects):
        assert allows(objects, _peer(view), dns, 53, "UDP"), view.owner
        assert allows(objects, _peer(view), dns, 53, "TCP"), view.owner


def test_nobody_reaches_the_metadata_address(objects: list[Json]) -> None:
    metadata = next(peer for peer in OUTSIDERS if peer.name == "metadata")
    for view, port in product(pods(objects), (80, 443, 5432)):
        assert not allows(objects, _peer(view), metadata, port), f"{view.owner} on {port}"


def test_a_policy_that_is_missing_is_noticed() -> None:
    example = Examples()
    web = Peer(name="web", namespace="web", labels=example["Deployment/web"]["spec"]["template"]["metadata"]["labels"])
    stranger = Peer(name="stranger", namespace="other")
    assert not allows(example.objects, stranger, web, 8080)
    example.objects.remove(example["NetworkPolicy/default-deny"])
    assert allows(example.objects, stranger, web, 8080)


def test_both_ends_must_agree() -> None:
    example = Examples()
    web = Peer(name="web", namespace="web", labels=example["Deployment/web"]["spec"]["template"]["metadata"]["labels"])
    ray = Peer(name="ray", namespace="web", labels={"ray.io/node-type": "head"})
    rules = {"podSelector": {"matchLabels": dict(ray.labels)}, "policyTypes": ["Ingress"]}
    source = [{"podSelector": {"matchLabels": dict(web.labels)}}]
    ports = [{"port": 8000, "endPort": 8010, "protocol": "TCP"}]
    example.add(
        "NetworkPolicy", "in", "networking.k8s.io/v1", spec={**rules, "ingress": [{"from": source, "ports": ports}]}
    )
    assert not allows(example.objects, web, ray, 8005)  # the target agrees, the source may not leave
    example["NetworkPolicy/web"]["spec"]["egress"].append({"to": [{"podSelector": {}}]})
    assert allows(example.objects, web, ray, 8005)
    assert not allows(example.objects, web, ray, 8011)
