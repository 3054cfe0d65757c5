"""The kinds of other projects that k8s/ uses, as far as it uses them: every field not listed here is refused.

Written by hand from the projects' API references; no definition of theirs is at hand to compare with. A field's type is
a Python type, a tuple of allowed words, a list [type], a map {"*": type} or a dict of fields; `!` marks required ones.
"""

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

_SELECTOR = {"matchLabels": {"*": str}}
_POD_ENDPOINT = {
    **{"port": str, "path": str, "interval": str, "scrapeTimeout": str},
    "authorization": {"type": str, "credentials!": {"name!": str, "key!": str}},
}
_RULE = {"alert!": str, "expr!": str, "for": str, "labels": {"*": str}, "annotations": {"*": str}}
_LISTENER = {
    "name!": str,
    "port!": int,
    "protocol!": ("HTTP", "HTTPS", "TLS", "TCP", "UDP"),
    "hostname": str,
    "allowedRoutes": {"namespaces": {"from": ("All", "Same", "Selector")}},
    "tls": {"mode": ("Terminate", "Passthrough"), "certificateRefs": [{"kind": str, "name!": str}]},
}
_ROUTE_RULE = {
    "matches": [{"path": {"type": ("Exact", "PathPrefix", "RegularExpression"), "value": str}}],
    "timeouts": {"request": str, "backendRequest": str},
    "backendRefs": [{"name!": str, "port": int}],
    "filters": [
        {
            "type!": ("RequestRedirect", "RequestHeaderModifier", "ResponseHeaderModifier", "URLRewrite"),
            "requestRedirect": {"scheme": ("http", "https"), "statusCode": int},
        }
    ],
}
FOREIGN: dict[str, tuple[str, Any]] = {
    # prometheus-operator, Documentation/api-reference/api.md
    "PodMonitor": (
        "monitoring.coreos.com/v1",
        {"selector!": _SELECTOR, "podTargetLabels": [str], "podMetricsEndpoints!": [_POD_ENDPOINT]},
    ),
    "PrometheusRule": ("monitoring.coreos.com/v1", {"groups!": [{"name!": str, "interval": str, "rules!": [_RULE]}]}),
    # gateway-api.sigs.k8s.io/reference/spec
    "Gateway": ("gateway.networking.k8s.io/v1", {"gatewayClassName!": str, "listeners!": [_LISTENER]}),
    "HTTPRoute": (
        "gateway.networking.k8s.io/v1",
        {"parentRefs": [{"name!": str, "sectionName": str}], "hostnames": [str], "rules": [_ROUTE_RULE]},
    ),
    # external-secrets.io/latest/api/externalsecret
    "ExternalSecret": (
        "external-secrets.io/v1",
        {
            "refreshInterval": str,
            "secretStoreRef!": {"kind": ("SecretStore", "ClusterSecretStore"), "name!": str},
            "target": {"name": str, "creationPolicy": ("Owner", "Orphan", "Merge", "None")},
            "data!": [{"secretKey!": str, "remoteRef!": {"key!": str, "property": str}}],
        },
    ),
}
"""Kind -> (apiVersion, the fields of its spec)."""


def strict_errors(thing: Json) -> list[str]:
    """What is wrong with an object of one of these kinds."""
    api_version, fields = FOREIGN[thing["kind"]]
    found = [] if thing["apiVersion"] == api_version else [f"apiVersion: must be {api_version}"]
    extra = set(thing) - {"apiVersion", "kind", "metadata", "spec"}
    found += [f"{key}: unknown field" for key in sorted(extra)]
    return [*found, *_faults(thing.get("spec"), fields, "spec")]


def _faults(value: Any, wanted: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, tuple):
        if value not in wanted:
            yield f"{path}: {value!r} is none of {', '.join(wanted)}"
    elif isinstance(wanted, type):
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            yield f"{path}: {value!r} is no {wanted.__name__}"
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            yield f"{path}: must be a list"
        for index, item in enumerate(value if isinstance(value, list) else ()):
            yield from _faults(item, wanted[0], f"{path}.{index}")
    elif not isinstance(value, dict):
        yield f"{path}: must be an object"
    elif "*" in wanted:
        for key, item in value.items():
            yield from _faults(item, wanted["*"], f"{path}.{key}")
    else:
        yield from _fields(value, wanted, path)


def _fields(value: Json, wanted: Json, path: str) -> Iterator[str]:
    known = {key.rstrip("!"): kind for key, kind in wanted.items()}
    for key in wanted:
        if key.endswith("!") and key[:-1] not in value:
            yield f"{path}: {key[:-1]} is required"
    for key, item in value.items():
        if key not in known:
            yield f"{path}.{key}: unknown field"
        else:
            yield from _faults(item, known[key], f"{path}.{key}")
