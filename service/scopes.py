"""Which scope a request needs. Default deny: what no line names needs `admin`.

A key without scopes of its own may do everything (the embedded stack's key is one); `admin` may too.
"""

from collections.abc import Sequence

SCOPES = ("read", "jobs:write", "datasets:write", "models:promote", "deployments:write", "inference", "admin")

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


def scope_of(method: str, path: str) -> str:
    """The one scope that this request needs."""
    if method in ("GET", "HEAD"):
        return "inference" if _under(path, "/v1/models") else "read"
    return next((scope for prefix, scope in _WRITES if _under(path, prefix)), "admin")


def _under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")
