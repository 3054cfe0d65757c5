"""What an API server says to a body before it stores it, as far as the table of kube_cases.py goes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]

KINDS: Mapping[str, str] = {"rayservices": "RayService", "rayjobs": "RayJob"}
_SPECS: Mapping[str, tuple[str, ...]] = {
    "rayservices": (
        *("deploymentUnhealthySecondThreshold", "excludeHeadPodFromServeSvc", "managedBy", "rayClusterConfig"),
        *("rayClusterDeletionDelaySeconds", "serveConfigV2", "serveService", "serviceUnhealthySecondThreshold"),
        *("suspend", "upgradeStrategy"),
    ),
    "rayjobs": (
        *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint"),
        *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata"),
        *("preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes"),
        *("submissionMode", "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
    ),
}
_DEFAULTS: Mapping[str, Json] = {
    "rayservices": {},
    "rayjobs": {"backoffLimit": 0, "submissionMode": "K8sJobMode", "ttlSecondsAfterFinished": 0},
}
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_FIELDS = ("metadata.name", "metadata.namespace")


class Refusal(Exception):
    """An answer that is a no."""

    def __init__(
        self, code: int, reason: str, message: str, causes: Sequence[Json] = (), *, retry_after: float | None = None
    ) -> None:
        super().__init__(code, reason, message)
        self.code, self.reason, self.message, self.causes = code, reason, message, list(causes)
        self.retry_after = retry_after

    def status(self) -> Json:
        """The body, kind Status."""
        body: Json = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        body |= {"message": self.message, "reason": self.reason, "code": self.code}
        return {**body, "details": {"causes": self.causes}} if self.causes else body


def admitted(plural: str, body: Json, strict: bool, old: Json | None = None) -> None:
    """Raises Refusal for what is not stored; without `strict`, unknown fields are pruned in place."""
    kind, metadata, spec = KINDS[plural], body.get("metadata") or {}, body.setdefault("spec", {})
    name = str(metadata.get("name", ""))
    unknown = sorted(set(spec) - set(_SPECS[plural]))
    if unknown and strict:
        raise Refusal(400, "BadRequest", f'{kind} in version "v1" cannot be handled: unknown field "spec.{unknown[0]}"')
    for field in unknown:
        del spec[field]
    faults = []
    if not _SUBDOMAIN.fullmatch(name) or len(name) > 253:
        faults.append(f"metadata.name: Invalid value: {name!r}: a lowercase RFC 1123 subdomain must consist of ...")
    for key, value in (metadata.get("labels") or {}).items():
        if len(value) > 63:
            faults.append(f"metadata.labels: Invalid value: {value!r}: must be no more than 63 characters ({key})")
    if sum(len(k) + len(v) for k, v in (metadata.get("annotations") or {}).items()) > 256 * 1024:
        faults.append("metadata.annotations: Too long: may not be more than 262144 bytes")
    if spec.get("managedBy") not in (None, *_MANAGERS):
        words = f"the managedBy field value must be either '{_MANAGERS[0]}' or '{_MANAGERS[1]}'"
        faults.append(f"spec.managedBy: Invalid value: {spec['managedBy']!r}: {words}")
    if old is not None and old["spec"].get("managedBy") != spec.get("managedBy"):
        faults.append("spec.managedBy: Invalid value: the managedBy field is immutable")
    if plural == "rayservices" and "headGroupSpec" not in (spec.get("rayClusterConfig") or {}):
        faults.append("spec.rayClusterConfig.headGroupSpec: Required value")
    if faults:
        raise Refusal(422, "Invalid", f'{kind}.ray.io "{name}" is invalid: {faults[0]}')


def fill_defaults(plural: str, body: Json) -> None:
    """The defaults of the CRD."""
    for key, value in _DEFAULTS[plural].items():
        body["spec"].setdefault(key, value)


def selects(query: Mapping[str, str], thing: Json) -> bool:
    """Label and field selectors. Raises Refusal 400 for a field that cannot be selected by."""
    metadata = thing["metadata"]
    for term in filter(None, (query.get("fieldSelector") or "").split(",")):
        field, _, value = term.partition("=")
        if field not in _FIELDS:
            raise Refusal(400, "BadRequest", f"field label not supported: {field}")
        if metadata[field.partition(".")[2]] != value:
            return False
    for term in filter(None, (query.get("labelSelector") or "").split(",")):
        key, _, value = term.partition("=")
        if key not in (metadata.get("labels") or {}) or (value and metadata["labels"][key] != value):
            return False
    return True
