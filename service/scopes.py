"""Which scope a request needs, and which scopes a role has. Default deny: what no line names needs `admin`.

`admin` may everything in its project; `operator` is about the installation: projects, and keys of other projects. A key
with neither role nor scopes may do everything (the embedded stack's key is one).
"""

from collections.abc import Collection, Mapping, Sequence

SCOPES = (
    "read",
    "jobs:write",
    "datasets:write",
    "models:promote",
    "deployments:write",
    "inference",
    "admin",
    "operator",
)
ROLES: Mapping[str, frozenset[str]] = {
    "viewer": frozenset({"read", "inference"}),
    "member": frozenset({"read", "inference", "jobs:write", "datasets:write", "deployments:write"}),
    "admin": frozenset(SCOPES) - {"operator"},
    "operator": frozenset(SCOPES),
}
"""What a key may do by its role. A member searches, trains, deploys; production and keys are an admin's."""

_WRITES: Sequence[tuple[str, str]] = (
    ("/v1/sweeps", "jobs:write"),
    ("/v1/runs", "jobs:write"),
    ("/v1/evaluations", "jobs:write"),
    ("/v1/comparisons", "jobs:write"),
    ("/v1/fine_tuning", "jobs:write"),
    ("/v1/datasets", "datasets:write"),
    ("/v1/files", "datasets:write"),
    ("/v1/registry", "models:promote"),
    ("/v1/promotions", "models:promote"),
    ("/v1/deployments", "deployments:write"),
    ("/v1/models", "deployments:write"),
    ("/v1/chat", "inference"),
    ("/v1/completions", "inference"),
)
"""First part of a path -> what anything but reading needs there."""


def held(role: str | None, scopes: Collection[str] | None) -> frozenset[str] | None:
    """What a key with this role and these scopes may do; None: everything. Scopes narrow a role, never widen it."""
    if role is None:
        return None if scopes is None else frozenset(scopes)
    return ROLES[role] if scopes is None else ROLES[role] & frozenset(scopes)


def allows(scopes: Collection[str] | None, needed: str) -> bool:
    """Whether one with these scopes (None: all) may do what needs `needed`."""
    return scopes is None or needed in scopes or (needed != "operator" and "admin" in scopes)


def scope_of(method: str, path: str) -> str:
    """The one scope that this request needs."""
    if method in ("GET", "HEAD"):
        return "inference" if _under(path, "/v1/models") else "read"
    return next((scope for prefix, scope in _WRITES if _under(path, prefix)), "admin")


def _under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")
