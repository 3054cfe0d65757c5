"""Pod Security `restricted` as a function: pod -> what it violates.

Rules of kubernetes/pod-security-admission, policy version 1.37; `test_pod_security.py` holds the checker to upstream's
own fixtures. Each rule takes the pod and answers sentences that start with the offending path.
"""

from collections.abc import Callable, Iterator
from typing import Any

Json = dict[str, Any]
Rule = Callable[[Json], Iterator[str]]

_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "projected", "secret"} | {
    "persistentVolumeClaim"
}
_SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_SECCOMP_TYPES = {"RuntimeDefault", "Localhost"}
_SYSCTLS = {"kernel.shm_rmid_forced"} | {
    f"net.ipv4.{name}"
    for name in (
        *("ip_local_port_range", "tcp_syncookies", "ping_group_range", "ip_unprivileged_port_start"),
        *("ip_local_reserved_ports", "tcp_keepalive_time", "tcp_fin_timeout", "tcp_keepalive_intvl"),
        *("tcp_keepalive_probes", "tcp_rmem", "tcp_wmem", "tcp_slow_start_after_idle", "tcp_notsent_lowat"),
    )
}
_APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"


def violations(pod: Json) -> list[str]:
    """Every reason for which admission at `restricted` would refuse `pod`; empty when it would let it in."""
    return [found for rule in RULES for found in rule(pod)]


def _host_access(pod: Json) -> Iterator[str]:
    spec = pod["spec"]
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"spec.{field}: must not be set"
    for where, container in _containers(pod):
        for port in container.get("ports") or []:
            if port.get("hostPort"):
                yield f"{where}.ports: hostPort must not be set"
        if _security(container).get("privileged"):
            yield f"{where}.securityContext.privileged: must not be true"
    for where, context in _contexts(pod):
        if (context.get("windowsOptions") or {}).get("hostProcess"):
            yield f"{where}.windowsOptions.hostProcess: must not be true"


def _volumes(pod: Json) -> Iterator[str]:
    for volume in pod["spec"].get("volumes") or []:
        kinds = sorted(set(volume) - {"name"} - _VOLUMES)
        if kinds:
            yield f"spec.volumes[{volume['name']}]: {', '.join(kinds)} is no permitted kind of volume"


def _escalation(pod: Json) -> Iterator[str]:
    if _windows(pod):
        return
    for where, container in _containers(pod):
        if _security(container).get("allowPrivilegeEscalation") is not False:
            yield f"{where}.securityContext.allowPrivilegeEscalation: must be false"


def _capabilities(pod: Json) -> Iterator[str]:
    if _windows(pod):
        return
    for where, container in _containers(pod):
        capabilities = _security(container).get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or []):
            yield f"{where}.securityContext.capabilities.drop: must contain ALL"
        added = set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}
        if added:
            yield f"{where}.securityContext.capabilities.add: {', '.join(sorted(added))} must not be added"


def _seccomp(pod: Json) -> Iterator[str]:
    if _windows(pod):
        return
    for where, context in _contexts(pod):
        profile = context.get("seccompProfile")
        if profile and profile.get("type") not in _SECCOMP_TYPES:
            yield f"{where}.seccompProfile.type: must be RuntimeDefault or Localhost"
    if not _security(pod["spec"]).get("seccompProfile"):
        for where, container in _containers(pod):
            if not _security(container).get("seccompProfile"):
                yield f"{where}.securityContext.seccompProfile: must be set here or on the pod"


def _non_root(pod: Json) -> Iterator[str]:
    if pod["spec"].get("hostUsers") is False:  # root inside a user namespace is nobody outside (from 1.35)
        return
    on_pod = _security(pod["spec"]).get("runAsNonRoot")
    for where, container in _containers(pod):
        own = _security(container).get("runAsNonRoot")
        if own is False or (own is None and on_pod is not True):
            yield f"{where}.securityContext.runAsNonRoot: must be true here or on the pod"
    if on_pod is False:
        yield "spec.securityContext.runAsNonRoot: must not be false"
    for where, context in _contexts(pod):
        if context.get("runAsUser") == 0:
            yield f"{where}.runAsUser: must not be 0"


def _kernel_surface(pod: Json) -> Iterator[str]:
    for where, container in _containers(pod):
        if _security(container).get("procMount", "Default") != "Default":
            yield f"{where}.securityContext.procMount: must be Default"
    for where, context in _contexts(pod):
        if (context.get("appArmorProfile") or {}).get("type") == "Unconfined":
            yield f"{where}.appArmorProfile.type: must not be Unconfined"
        selinux = context.get("seLinuxOptions") or {}
        if selinux.get("type", "") not in _SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
            yield f"{where}.seLinuxOptions: user, role or this type must not be set"
    for key, value in (pod.get("metadata", {}).get("annotations") or {}).items():
        confined = value in ("", "runtime/default") or value.startswith("localhost/")
        if key.startswith(_APPARMOR_ANNOTATION) and not confined:
            yield f"metadata.annotations[{key}]: must be runtime/default or localhost/..."
    for sysctl in _security(pod["spec"]).get("sysctls") or []:
        if sysctl["name"] not in _SYSCTLS:
            yield f"spec.securityContext.sysctls: {sysctl['name']} is not safe"


def _probe_hosts(pod: Json) -> Iterator[str]:
    for where, container in _containers(pod):
        hooks = container.get("lifecycle") or {}
        handlers = {key: container.get(key) for key in ("livenessProbe", "readinessProbe", "startupProbe")}
        for name, handler in {**handlers, **hooks}.items():
            for action in ("httpGet", "tcpSocket"):
                if isinstance(handler, dict) and (handler.get(action) or {}).get("host"):
                    yield f"{where}.{name}.{action}.host: must not be set"


RULES: tuple[Rule, ...] = (
    _host_access,
    _volumes,
    _escalation,
    _capabilities,
    _seccomp,
    _non_root,
    _kernel_surface,
    _probe_hosts,
)


def _windows(pod: Json) -> bool:
    return bool((pod["spec"].get("os") or {}).get("name") == "windows")


def _security(holder: Json) -> Json:
    return holder.get("securityContext") or {}


def _containers(pod: Json) -> Iterator[tuple[str, Json]]:
    for field in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod["spec"].get(field) or []:
            yield f"spec.{field}[{container['name']}]", container


def _contexts(pod: Json) -> Iterator[tuple[str, Json]]:
    """Security contexts of the pod and of each container, with their paths."""
    yield "spec.securityContext", _security(pod["spec"])
    for where, container in _containers(pod):
        yield f"{where}.securityContext", _security(container)
