"""The CEL rules (`x-kubernetes-validations`) of the ray.io and kueue.x-k8s.io CRDs, translated by hand.

The table is keyed by the rule's own text, and the walk follows the schema: a rule that a newer CRD brings is reported
as untranslated wherever it would apply, instead of being skipped in silence.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Json = dict[str, Any]
Rule = Callable[[Any, Any], bool]

_MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def errors(value: Any, schema: Json, old: Any = None, path: str = "") -> Iterator[str]:
    """Broken rules of a structurally valid value with its defaults filled in; `old`: the value it would replace."""
    for validation in schema.get("x-kubernetes-validations", []):
        text = " ".join(validation["rule"].split())
        if text not in RULES:
            yield f"{path}: no translation of the CEL rule {text!r}; add it to RULES in tests/k8s/cel.py"
        elif ("oldSelf" not in text or old is not None) and not RULES[text](value, old):
            yield f"{path}: {validation.get('message', text)}"
    if isinstance(value, dict):
        extra = schema.get("additionalProperties")
        before = old if isinstance(old, dict) else {}
        for key, item in value.items():
            child = schema.get("properties", {}).get(key, extra)
            if isinstance(child, dict):
                yield from errors(item, child, before.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            yield from errors(item, schema["items"], None, f"{path}.{index}")


def rules(schema: Json) -> Iterator[str]:
    """The text of every rule anywhere in `schema`, spaces made single."""
    for validation in schema.get("x-kubernetes-validations", []):
        yield " ".join(validation["rule"].split())
    children = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for child in children:
        if isinstance(child, dict):
            yield from rules(child)


def _has(value: Json, *keys: str) -> bool:
    return any(key in value for key in keys)


def _same(now: Json, old: Json, key: str) -> bool:
    """The field is present in both or in neither, and equal."""
    return (key in now) == (key in old) and now.get(key) == old.get(key)


def _frozen(key: str) -> Rule:
    return lambda now, old: "topologyName" not in old or _same(now, old, key)


def _borrowing_needs_cohort(spec: Json, _: Any) -> bool:
    resources = [r for g in spec.get("resourceGroups", []) for f in g["flavors"] for r in f["resources"]]
    return _has(spec, "cohortName") or not any("borrowingLimit" in resource for resource in resources)


RULES: Mapping[str, Rule] = {
    # ray.io
    "self == oldSelf": lambda now, old: now == old,
    "self in ['ray.io/kuberay-operator', 'kueue.x-k8s.io/multikueue']": lambda now, _: now in _MANAGERS,
    "!((has(self.onSuccess) || has(self.onFailure)) && has(self.deletionRules))": (
        lambda now, _: not (_has(now, "onSuccess", "onFailure") and "deletionRules" in now)
    ),
    "((has(self.onSuccess) && has(self.onFailure)) || has(self.deletionRules))": (
        lambda now, _: {"onSuccess", "onFailure"} <= set(now) or "deletionRules" in now
    ),
    "!(has(self.jobStatus) && has(self.jobDeploymentStatus))": (
        lambda now, _: not {"jobStatus", "jobDeploymentStatus"} <= set(now)
    ),
    "has(self.jobStatus) || has(self.jobDeploymentStatus)": (
        lambda now, _: _has(now, "jobStatus", "jobDeploymentStatus")
    ),
    # kueue.x-k8s.io: quotas
    (
        "!has(self.cohortName) && has(self.resourceGroups) ? self.resourceGroups.all(rg, "
        "rg.flavors.all(f, f.resources.all(r, !has(r.borrowingLimit)))) : true"
    ): _borrowing_needs_cohort,
    (
        "!has(self.preference) || (self.whenCanBorrow == 'TryNextFlavor' && self.whenCanPreempt == 'TryNextFlavor')"
    ): lambda now, _: (
        "preference" not in now or now.get("whenCanBorrow") == now.get("whenCanPreempt") == "TryNextFlavor"
    ),
    (
        "!(self.reclaimWithinCohort == 'Never' && has(self.borrowWithinCohort) && "
        "self.borrowWithinCohort.policy != 'Never')"
    ): lambda now, _: (
        not (
            now.get("reclaimWithinCohort") == "Never"
            and "borrowWithinCohort" in now
            and now["borrowWithinCohort"].get("policy") != "Never"
        )
    ),
    "self.flavors.all(x, size(x.resources) == size(self.coveredResources))": lambda now, _: all(
        len(flavor["resources"]) == len(now["coveredResources"]) for flavor in now["flavors"]
    ),
    # kueue.x-k8s.io: flavors
    "!has(self.topologyName) || self.nodeLabels.size() >= 1": (
        lambda now, _: "topologyName" not in now or bool(now.get("nodeLabels"))
    ),
    (
        "!has(oldSelf.topologyName) || (has(self.nodeLabels) == has(oldSelf.nodeLabels) && "
        "(!has(self.nodeLabels) || self.nodeLabels == oldSelf.nodeLabels))"
    ): _frozen("nodeLabels"),
    (
        "!has(oldSelf.topologyName) || (has(self.tolerations) == has(oldSelf.tolerations) && "
        "(!has(self.tolerations) || self.tolerations == oldSelf.tolerations))"
    ): _frozen("tolerations"),
    ("!has(oldSelf.topologyName) || (has(self.topologyName) && self.topologyName == oldSelf.topologyName)"): _frozen(
        "topologyName"
    ),
    "self.all(x, x.effect in ['NoSchedule', 'PreferNoSchedule', 'NoExecute'])": (
        lambda now, _: all(x.get("effect") in _EFFECTS for x in now)
    ),
    "self.all(x, !has(x.key) ? x.operator == 'Exists' : true)": (
        lambda now, _: all("key" in x or x.get("operator") == "Exists" for x in now)
    ),
    "self.all(x, has(x.tolerationSeconds) ? x.effect == 'NoExecute' : true)": (
        lambda now, _: all("tolerationSeconds" not in x or x.get("effect") == "NoExecute" for x in now)
    ),
    "self.all(x, !has(x.operator) || x.operator in ['Equal', 'Exists'])": (
        lambda now, _: all(x.get("operator", "Equal") in ("Equal", "Exists") for x in now)
    ),
    "self.all(x, has(x.operator) && x.operator == 'Exists' ? !has(x.value) : true)": (
        lambda now, _: all(x.get("operator") != "Exists" or "value" not in x for x in now)
    ),
    "self.all(x, !has(x.effect) || x.effect in ['NoSchedule', 'PreferNoSchedule', 'NoExecute'])": (
        lambda now, _: all(x.get("effect", "NoExecute") in _EFFECTS for x in now)
    ),
}
