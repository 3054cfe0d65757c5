"""NetworkPolicies, evaluated: may this pod open a connection to that one, on this port?

Kubernetes' own rules: a pod that no policy selects for a direction is open in that direction; otherwise some rule of
some policy that selects it must allow the peer and the port. Both ends must agree.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from tests.k8s.lints import matches

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One end of a connection: a pod, or an address outside the cluster."""

    name: str
    """What a message calls it."""
    namespace: str | None = None
    """Namespace of the pod; None for an address."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the pod."""
    address: str | None = None
    """IP address, for an end outside the cluster."""


def allows(objects: list[Json], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether the NetworkPolicies among `objects` let `source` connect to `target`."""
    return port in open_ports(objects, source, target, (port,), protocol)


def open_ports(
    objects: list[Json], source: Peer, target: Peer, ports: Sequence[int], protocol: str = "TCP"
) -> set[int]:
    """Those of `ports` on which `source` may connect to `target`."""
    out = _direction(objects, "egress", source, target, ports, protocol)
    return out and out & _direction(objects, "ingress", target, source, ports, protocol)


def _direction(
    objects: list[Json], direction: str, pod: Peer, other: Peer, ports: Sequence[int], protocol: str
) -> set[int]:
    policies = [policy for policy in objects if _selects(policy, direction, pod)]
    if not policies:
        return set(ports)
    rules = [rule for policy in policies for rule in _rules(policy, direction) if _peers(rule, direction, other, pod)]
    return {port for port in ports if any(_ports(rule, port, protocol) for rule in rules)}


def _selects(policy: Json, direction: str, pod: Peer) -> bool:
    if policy["kind"] != "NetworkPolicy" or pod.namespace != policy["metadata"].get("namespace"):
        return False
    return direction.title() in policy["spec"]["policyTypes"] and matches(policy["spec"]["podSelector"], pod.labels)


def _rules(policy: Json, direction: str) -> Iterator[Json]:
    yield from policy["spec"].get(direction) or []


def _ports(rule: Json, port: int, protocol: str) -> bool:
    if not rule.get("ports"):
        return True
    for entry in rule["ports"]:
        first = entry.get("port")
        in_range = first is None or first <= port <= entry.get("endPort", first)
        if entry.get("protocol", "TCP") == protocol and in_range:
            return True
    return False


def _peers(rule: Json, direction: str, other: Peer, pod: Peer) -> bool:
    listed = rule.get("to" if direction == "egress" else "from")
    return not listed or any(_is(entry, other, pod) for entry in listed)


def _is(entry: Json, other: Peer, pod: Peer) -> bool:
    if "ipBlock" in entry:
        if other.address is None:  # a pod has an address too, but a policy on addresses is not meant for pods
            return False
        address = ip_address(other.address)
        block = entry["ipBlock"]
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(hole) for hole in block.get("except") or []
        )
    if other.namespace is None:
        return False
    if "namespaceSelector" in entry:
        there = {"kubernetes.io/metadata.name": other.namespace}
        if not matches(entry["namespaceSelector"], there):
            return False
    elif other.namespace != pod.namespace:
        return False
    return matches(entry.get("podSelector") or {}, other.labels)
