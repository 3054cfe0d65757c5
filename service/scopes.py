"""Which scope a request needs, and which scopes a role has. Default deny: what no line names needs `admin`.

`admin` may everything in its project; `operator` is about the installation: projects, and keys of other projects; so is
`metrics`, which reads what Prometheus asks for. A key with neither role nor scopes may do everything (the embedded
stack's key is one).
"""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

SCOPES = (
    "read",
    "jobs:write",
    "datasets:write",
    "models:promote",
    "deployments:write",
    "inference",
    "admin",
    "operator",
    "metrics",
)
_INSTALLATION = frozenset({"operator", "metrics"})
ROLES: Mapping[str, frozenset[str]] = {
    "viewer": frozenset({"read", "inference"}),
    "member": frozenset({"read", "inference", "jobs:write", "datasets:write", "deployments:write"}),
    "admin": frozenset(SCOPES) - _INSTALLATION,
    "operator": frozenset(SCOPES),
}
"""What a key may do by its role. A member searches, trains, deploys; production and keys are an admin's."""

_NEEDS: Sequence[tuple[str, str, str]] = (
    ("/v1/sweeps", "read", "jobs:write"),
    ("/v1/runs", "read", "jobs:write"),
    ("/v1/evaluations", "read", "jobs:write"),
    ("/v1/comparisons", "read", "jobs:write"),
    ("/v1/fine_tuning", "read", "jobs:write"),
    ("/v1/datasets", "read", "datasets:write"),
    ("/v1/feedback", "read", "inference"),
    ("/v1/files", "read", "datasets:write"),
    ("/v1/registry", "read", "models:promote"),
    ("/v1/promotions", "read", "models:promote"),
    ("/v1/deployments", "read", "deployments:write"),
    ("/v1/models", "inference", "deployments:write"),
    ("/v1/chat", "inference", "inference"),
    ("/v1/completions", "inference", "inference"),
    ("/v1/quotas", "read", "operator"),
    ("/v1/capacity", "read", "operator"),
    ("/v1/webhooks", "admin", "admin"),
    ("/v1/keys", "admin", "admin"),
    ("/v1/audit", "admin", "admin"),
    ("/v1/projects", "operator", "operator"),
    ("/v1/me", "read", "admin"),
    ("/metrics", "metrics", "operator"),
)
"""First part of a path -> what reading needs there, and what anything else needs."""


def held(role: str | None, scopes: Collection[str] | None) -> frozenset[str] | None:
    """What a key with this role and these scopes may do; None: everything. Scopes narrow a role, never widen it."""
    if role is None:
        return None if scopes is None else frozenset(scopes)
    return ROLES[role] if scopes is None else ROLES[role] & frozenset(scopes)


def allows(scopes: Collection[str] | None, needed: str) -> bool:
    """Whether one with these scopes (None: all) may do what needs `needed`."""
    return scopes is None or needed in scopes or (needed not in _INSTALLATION and "admin" in scopes)


@lru_cache(maxsize=4096)
def scope_of(method: str, path: str) -> str:
    """The one scope that this request needs."""
    reads = method in ("GET", "HEAD")
    return next((read if reads else write for prefix, read, write in _NEEDS if _under(path, prefix)), "admin")


def is_named(path: str) -> bool:
    """Whether a line of the table speaks of this path."""
    return any(_under(path, prefix) for prefix, _, _ in _NEEDS)


def _under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")
