"""What Ray Serve is told of models: one application for each deployment, or for all that share a base."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simpo.errors import ConfigError
from sweeps.checkpoint_cache import MAX_BYTES
from sweeps.working_copy import is_remote

IMPORT_PATH = "service.serving.app:build"
SERVE_DEPLOYMENT = "Model"
"""Name of the one Serve deployment inside each application; service/serving/app.py gives its class the same name."""
TRANSFORMERS = "transformers"
"""The engine that is meant where none is named."""
_LOOK_BACK_S = 12
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class DesiredDeployment:
    """One named model that should answer."""

    id: str
    """Stable id of the deployment; also the name of its Serve application."""
    name: str
    """What clients put into `model`; also the last part of the route prefix `/d/<name>`. `[a-z0-9-]`, at most 63."""
    model_path: str
    """Checkpoint directory, as the Ray nodes see it, or s3://BUCKET/PREFIX of one that replicas fetch."""
    revision: int = 1
    """Raise it to roll the deployment over to another model_path, or to load the same one again."""
    project: str | None = None
    """Whose it is: names are unique within a project. None: the default one's."""
    base: str | None = None
    """Directory of the base whose adapter `model_path` holds. What has one base in one project shares its replicas.
    None: it has its own."""
    engine: str = TRANSFORMERS
    """What generates the text: transformers, or vllm."""
    variant: str | None = None
    """Sets a candidate apart from the champion of the same name. None: the champion."""
    idle_s: int | None = None
    """Seconds without a request after which its replicas leave; the next request starts one. None: they stay."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"{self.name!r} is no deployment name; use 1-63 of a-z, 0-9 and inner -", "name")
        if not self.id:
            raise ConfigError("a deployment needs an id", "id")

    @property
    def route_prefix(self) -> str:
        """Path under which Serve answers for this deployment."""
        if self.base is None:
            return route_prefix(self.name if self.variant is None else f"{self.name}~{self.variant}", self.project)
        shared = self.base if self.engine == TRANSFORMERS else f"{self.base}\n{self.engine}"
        return route_prefix(f"~{_short(shared)}", self.project)


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """What every deployment's Serve application is made of."""

    num_cpus: float = 0.5
    """Logical CPUs of a replica."""
    max_ongoing_requests: int = 64
    """Requests decoded together by a replica."""
    max_queued_requests: int = 128
    """Requests that wait; beyond them Serve answers 503."""
    max_adapters: int = 8
    """Adapters that stay loaded beside a base."""
    vllm_python: str | None = None
    """Python with vLLM on the Ray nodes."""
    cache_dir: str | None = None
    """Directory on the Ray nodes for checkpoints fetched from an object store; None: under the temporary one."""
    cache_bytes: int = MAX_BYTES
    """Of all that a node keeps there."""

    def applications(self, desired: Sequence[DesiredDeployment]) -> list[dict[str, Any]]:
        """All of them: one for each deployment, one for all that share a base."""
        sharing: dict[str, list[DesiredDeployment]] = {}
        for deployment in desired:
            if deployment.base is not None:
                sharing.setdefault(deployment.route_prefix, []).append(deployment)
        own = [self.application(deployment) for deployment in desired if deployment.base is None]
        return own + [self._shared(members) for members in sharing.values()]

    def application(self, deployment: DesiredDeployment) -> dict[str, Any]:
        """The application in the form of Serve's configuration."""
        return {
            "name": deployment.id,
            "route_prefix": deployment.route_prefix,
            "import_path": IMPORT_PATH,
            "args": {
                "name": deployment.name,
                "model_path": deployment.model_path,
                "revision": deployment.revision,
                "max_batch": self.max_ongoing_requests,
                **self._engine(deployment),
                **self._cache(deployment),
            },
            "deployments": [
                {
                    "name": SERVE_DEPLOYMENT,
                    **_scaling(deployment.idle_s),
                    "max_ongoing_requests": self.max_ongoing_requests,
                    "max_queued_requests": self.max_queued_requests,
                    "max_surge_percent": 100,
                    "ray_actor_options": {"num_cpus": self.num_cpus},
                }
            ],
        }

    def _engine(self, deployment: DesiredDeployment) -> dict[str, Any]:
        """Nothing of the engine that is meant anyway: what was declared before it could be chosen stays as it is."""
        if deployment.engine == TRANSFORMERS:
            return {}
        return {"engine": deployment.engine, "vllm_python": self.vllm_python}

    def _cache(self, deployment: DesiredDeployment) -> dict[str, Any]:
        """Nothing where nothing is fetched: what was declared before it could be stays as it is."""
        if not is_remote(deployment.model_path):
            return {}
        return {"cache_dir": self.cache_dir, "cache_bytes": self.cache_bytes}

    def _shared(self, members: Sequence[DesiredDeployment]) -> dict[str, Any]:
        # What answers for several sleeps when all of them may, after the longest time.
        waits = [member.idle_s for member in members]
        idle_s = None if None in waits else max(each for each in waits if each is not None)
        application = self.application(replace(members[0], idle_s=idle_s))
        name = f"base-{_short(application['route_prefix'])}"
        application["name"] = name
        application["args"] |= {
            "name": name,
            "model_path": members[0].base,
            "revision": 1,
            "max_adapters": self.max_adapters,
        }
        # A changed user_config reaches the replicas in place: nobody waits for a restart.
        models = {
            d.name: {"id": d.id, "path": d.model_path, "revision": d.revision}
            | ({} if d.idle_s is None else {"idle_s": d.idle_s})
            for d in members
        }
        application["deployments"][0]["user_config"] = {"models": models}
        return application


def route_prefix(name: str, project: str | None = None) -> str:
    """Where Serve answers for a deployment. A project has a folder of its own; the default one has none."""
    return f"/d/{name}" if project is None else f"/d/{project}/{name}"


def project_of(prefix: str) -> str | None:
    """The inverse: whose deployment answers there."""
    return prefix.removeprefix("/d/").rpartition("/")[0] or None


def variant_of(prefix: str) -> str | None:
    """Likewise, which candidate; None: the champion."""
    return prefix.rpartition("/")[2].partition("~")[2] or None


def refuse_duplicates(desired: Sequence[DesiredDeployment]) -> None:
    """Raises ConfigError where two share an id or a name."""
    names = [route_prefix(d.name if d.variant is None else f"{d.name}~{d.variant}", d.project)[3:] for d in desired]
    for field, values in (("id", [d.id for d in desired]), ("name", names)):
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise ConfigError(f"{', '.join(twice)} is used by more than one deployment; each needs its own", field)


def idle_of(application: Mapping[str, Any]) -> int | None:
    """The inverse, of an application's configuration: `idle_s` of the deployment that it is."""
    parts = application.get("deployments") or [{}]
    found: int | None = (parts[0].get("autoscaling_config") or {}).get("downscale_to_zero_delay_s")
    return found


def _scaling(idle_s: int | None) -> dict[str, Any]:
    """How many replicas, for Serve's autoscaler: one, or one or none.

    It is there also for what never sleeps: an application that gets an autoscaler, or loses it, is new code to Serve
    (2.60), which starts its replica anew. Serve looks at open requests every 2 s, and adds what it saw in the last
    `look_back_period_s` (which it wants longer than the 10 s between two reports); nothing seen for
    `downscale_to_zero_delay_s` ends the replica, once it has answered. One is there at first, also after each change:
    Serve shows RUNNING when it has loaded.
    """
    scaling: dict[str, Any] = {"min_replicas": 1, "initial_replicas": 1, "max_replicas": 1}
    if idle_s is not None:
        delays = {"upscale_delay_s": 0, "downscale_delay_s": idle_s, "downscale_to_zero_delay_s": idle_s}
        scaling |= {"min_replicas": 0, **delays, "look_back_period_s": _LOOK_BACK_S}
    return {"autoscaling_config": scaling}


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
