"""Every environment variable of the service, once, with a sentence. Nothing else reads the environment."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_args
from urllib.parse import urlsplit

from simpo.errors import ConfigError
from sweeps.store import S3, parse_uri


def _env(name: str, default: Any) -> Any:
    return field(default=default, metadata={"env": name})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one process of the service is set up. The defaults are the embedded stack on one machine."""

    database_url: str = field(
        default="sqlite:///.simpo/simpo.db", repr=False, metadata={"env": "SIMPO_DATABASE_URL"}
    )
    """SQLAlchemy URL: sqlite:///PATH, or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE."""
    store: Path | str = field(default=Path(".simpo/store"), metadata={"env": "SIMPO_STORE"})
    """Root of the run directories: a directory that this process and the Ray nodes both see, or s3://BUCKET/PREFIX."""
    copies: Path = field(default=Path(".simpo/copies"), metadata={"env": "SIMPO_COPIES"})
    """Directory of this process's working copies of run directories, where SIMPO_STORE is an object store."""
    bind_host: str = _env("SIMPO_BIND_HOST", "127.0.0.1")
    """Address the API listens on."""
    bind_port: int = _env("SIMPO_BIND_PORT", 8080)
    """Port the API listens on."""
    ray_jobs_url: str = _env("SIMPO_RAY_JOBS_URL", "http://127.0.0.1:8265")
    """Dashboard of the Ray cluster that trains."""
    ray_serve_url: str | None = _env("SIMPO_RAY_SERVE_URL", None)
    """Dashboard of the Ray cluster that serves; unset: the one that trains."""
    ray_token: str | None = field(default=None, repr=False, metadata={"env": "SIMPO_RAY_TOKEN"})
    """Ray's shared token (RAY_AUTH_MODE=token); unset for a cluster without one."""
    serve_url: str = _env("SIMPO_SERVE_URL", "http://127.0.0.1:8000")
    """Ray Serve's HTTP origin, where the deployed models answer."""
    proxy_models: bool = _env("SIMPO_PROXY_MODELS", True)
    """Answer /v1/chat/completions and its kin here, by proxy (embedded mode). False where a gateway routes them."""
    wake_s: float = _env("SIMPO_WAKE_S", 120.0)
    """Seconds a request waits at most for a model that slept (`min_replicas: 0`), then 503."""
    max_waiting: int = _env("SIMPO_MAX_WAITING", 128)
    """Requests that wait for one such model in one process; the next is refused with 503."""
    max_adapters: int = _env("SIMPO_MAX_ADAPTERS", 8)
    """Deployed adapters of one base share its replicas, and so many stay loaded in each. 0: each has its own.
    Of Serve's REST API alone; a RayService has one application for each deployment."""
    vllm_python: str | None = _env("SIMPO_VLLM_PYTHON", None)
    """Python with vLLM on the Ray nodes, for deployments with `engine: vllm`; unset: they are refused."""
    model_cache: str | None = _env("SIMPO_MODEL_CACHE", None)
    """Directory on the Ray nodes where replicas keep checkpoints that they fetch from an object store; unset: one under
    the temporary directory."""
    model_cache_bytes: int = _env("SIMPO_MODEL_CACHE_BYTES", 20 << 30)
    """Bytes of all that a node keeps there; what was used longest ago goes first, what is in use stays."""
    reconcile: bool = _env("SIMPO_RECONCILE", True)
    """Run the reconciler in this process. False: an API that only writes wishes."""
    reconcile_interval_s: float = _env("SIMPO_RECONCILE_INTERVAL_S", 1.0)
    """Seconds between two looks of the reconciler; a new wish wakes it at once."""
    max_running_sweeps: int = _env("SIMPO_MAX_RUNNING_SWEEPS", 1)
    """Sweeps and runs on the cluster at once; the others wait as PENDING, reason QUEUED."""
    max_attempts: int = _env("SIMPO_MAX_ATTEMPTS", 3)
    """Submissions of one sweep's driver before a lost driver makes the sweep FAILED."""
    heartbeat_stale_s: float = _env("SIMPO_HEARTBEAT_STALE_S", 20.0)
    """A driver that Ray does not run any more counts as lost when its heartbeat stood still so long."""
    heartbeat_hung_s: float = _env("SIMPO_HEARTBEAT_HUNG_S", 300.0)
    """A driver that Ray says is running is stopped when its heartbeat stood still so long."""
    driver_python: str = _env("SIMPO_DRIVER_PYTHON", sys.executable)
    """Python with this package on the Ray nodes."""
    driver_resource: str | None = _env("SIMPO_DRIVER_RESOURCE", None)
    """Custom Ray resource of the nodes that may run drivers; unset: the head."""
    driver_stop_s: int = _env("SIMPO_DRIVER_STOP_S", 15)
    """Seconds a stopped driver has to write its last records before Ray kills it."""
    submit_by: str = _env("SIMPO_SUBMIT_BY", "jobs")
    """How drivers start: jobs (the Jobs API of a standing Ray cluster) or rayjob (each a RayJob, queued by Kueue)."""
    rayjob_template: str = _env("SIMPO_RAYJOB_TEMPLATE", "simpo-sweep-template")
    """Name of the suspended RayJob whose pods every submitted one has."""
    deploy_by: str = _env("SIMPO_DEPLOY_BY", "serve")
    """How models are deployed: serve (Serve's REST API) or rayservice (the configuration of a KubeRay RayService)."""
    rayservice: str = _env("SIMPO_RAYSERVICE", "simpo-serving")
    """Name of that RayService."""
    kube_force: bool = _env("SIMPO_KUBE_FORCE", False)
    """Take the RayService's configuration back from whoever else edited it. False: say so, and leave it."""
    kube_namespace: str | None = _env("SIMPO_KUBE_NAMESPACE", None)
    """Namespace of these objects; unset: the pod's own, or that of the kubeconfig's context."""
    kubeconfig: str | None = _env("SIMPO_KUBECONFIG", None)
    """Way to the Kubernetes API outside a cluster, a file as kubectl has it; unset: the pod's ServiceAccount."""
    project_sweeps: int | None = _env("SIMPO_PROJECT_SWEEPS", None)
    """Sweeps and runs of one project at once, where its quotas say nothing else; unset: max_running_sweeps alone."""
    project_trials: int | None = _env("SIMPO_PROJECT_TRIALS", None)
    """Trials of one project at once, likewise."""
    project_hours: float | None = _env("SIMPO_PROJECT_HOURS", None)
    """Accelerator-hours of one project, likewise."""
    project_hours_period: str = _env("SIMPO_PROJECT_HOURS_PERIOD", "month")
    """What they are counted over: month (of the calendar, UTC) or total."""
    audit_days: int | None = _env("SIMPO_AUDIT_DAYS", None)
    """Days for which entries of the audit log are kept; unset: for ever."""
    oidc_issuer: str | None = _env("SIMPO_OIDC_ISSUER", None)
    """Take signed tokens of this OIDC issuer beside API keys: an https URL, exactly as in the tokens' `iss`."""
    oidc_audience: str | None = _env("SIMPO_OIDC_AUDIENCE", None)
    """What the tokens' `aud` must name."""
    oidc_jwks_url: str | None = _env("SIMPO_OIDC_JWKS_URL", None)
    """Where the issuer's keys are; unset: where its discovery document says."""
    oidc_project_claim: str = _env("SIMPO_OIDC_PROJECT_CLAIM", "simpo_project")
    """Claim with the project's name or id; with dots a way into objects."""
    oidc_role_claim: str = _env("SIMPO_OIDC_ROLE_CLAIM", "simpo_role")
    """Claim with the role, or with a list that holds one."""
    webhook_loopback: bool = _env("SIMPO_WEBHOOK_LOOPBACK", False)
    """Deliver webhooks to this machine too, by plain http and on any port: for development and tests alone."""
    webhook_timeout_s: float = _env("SIMPO_WEBHOOK_TIMEOUT_S", 10.0)
    """Seconds that one attempt to deliver may take in all."""
    webhook_disable_after_s: float = _env("SIMPO_WEBHOOK_DISABLE_AFTER_S", 259200.0)
    """A webhook to which nothing got through for so long is DISABLED."""
    log_format: str = _env("SIMPO_LOG_FORMAT", "auto")
    """json: one object a line; text: for people; auto: text on a terminal, else json."""
    log_level: str = _env("SIMPO_LOG_LEVEL", "INFO")
    """DEBUG, INFO (a line for every request), WARNING or ERROR."""
    drain_s: float = _env("SIMPO_DRAIN_S", 0.5)
    """Seconds after SIGTERM in which the API still answers, is not ready, and ends its event streams."""
    public_judges: bool = _env("SIMPO_PUBLIC_JUDGES", False)
    """Send judges' requests to public addresses alone, and keys only where <NAME>_URL says: for specs of strangers."""
    max_dataset_bytes: int = _env("SIMPO_MAX_DATASET_BYTES", 1 << 30)
    """Bytes of an uploaded dataset at most, as sent and as unpacked."""
    doctor_timeout_s: float = _env("SIMPO_DOCTOR_TIMEOUT_S", 600.0)
    """Seconds the doctor may look at a dataset."""
    doctor_memory_mb: int = _env("SIMPO_DOCTOR_MEMORY_MB", 4096)
    """MiB of address space the doctor may take, torch and tokenizer among them."""
    source_roots: str | None = _env("SIMPO_SOURCE_ROOTS", None)
    """Directories, with : between them, under which requests may name data and models by path; unset: anywhere."""
    production: bool = _env("SIMPO_PRODUCTION", False)
    """Refuse to start with a setting that is weak where strangers ask (`hardening.py` lists them)."""

    def __post_init__(self) -> None:
        if isinstance(self.store, str):
            try:
                parse_uri(self.store)
            except ConfigError as error:
                raise ConfigError(error.message, variable_of("store")) from error
        for name in ("ray_jobs_url", "ray_serve_url", "serve_url"):
            url = getattr(self, name)
            if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
                raise ConfigError(f"must look like http://host:port, not {url!r}", variable_of(name))
        if not self.database_url.startswith(("sqlite:///", "postgresql+psycopg://")):
            # The URL itself may hold a password: it is not repeated here.
            raise ConfigError("must start with sqlite:/// or postgresql+psycopg://", variable_of("database_url"))
        times = ("wake_s", "reconcile_interval_s", "heartbeat_stale_s", "heartbeat_hung_s", "doctor_timeout_s")
        for name in (*times, "webhook_timeout_s", "webhook_disable_after_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"must be greater than 0, not {getattr(self, name)}", variable_of(name))
        counts = ("max_running_sweeps", "max_attempts", "driver_stop_s", "max_dataset_bytes", "doctor_memory_mb")
        for name in (*counts, "model_cache_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, not {getattr(self, name)}", variable_of(name))
        if self.model_cache is not None and not Path(self.model_cache).is_absolute():
            raise ConfigError("must be an absolute path", variable_of("model_cache"))
        if self.max_adapters < 0:
            raise ConfigError(f"must be at least 0, not {self.max_adapters}", variable_of("max_adapters"))
        if self.max_waiting < 1:
            raise ConfigError(f"must be at least 1, not {self.max_waiting}", variable_of("max_waiting"))
        for name in ("project_sweeps", "project_trials", "project_hours"):
            limit = getattr(self, name)
            if limit is not None and not limit >= (0 if name == "project_hours" else 1):
                raise ConfigError(f"must not be {limit}: unset it for no limit", variable_of(name))
        if self.audit_days is not None and not 1 <= self.audit_days <= _CENTURY:
            raise ConfigError(
                f"must be 1 to {_CENTURY} days, not {self.audit_days}: unset it to keep all", variable_of("audit_days")
            )
        choices = {"submit_by": ("jobs", "rayjob"), "deploy_by": ("serve", "rayservice")}
        for name, words in (("log_format", ("auto", "json", "text")), ("log_level", _LEVELS), *choices.items()):
            if getattr(self, name) not in words:
                raise ConfigError(f"must be one of {', '.join(words)}", variable_of(name))
        if not 0 <= self.drain_s < 3600:
            raise ConfigError(f"must be 0 or more seconds, not {self.drain_s}", variable_of("drain_s"))
        period = self.project_hours_period
        if period not in ("month", "total"):
            raise ConfigError(f"must be month or total, not {period!r}", variable_of("project_hours_period"))
        if not all(Path(root).is_absolute() for root in (self.source_roots or "/").split(":")):
            raise ConfigError("must be absolute paths, with : between them", variable_of("source_roots"))
        for name in ("oidc_issuer", "oidc_jwks_url"):
            check_https(getattr(self, name), variable_of(name))
        if (self.oidc_issuer is None) != (self.oidc_audience is None):
            missing = "oidc_audience" if self.oidc_audience is None else "oidc_issuer"
            raise ConfigError("must be set too: issuer and audience go together", variable_of(missing))
        if not 0 <= self.bind_port < 65536:
            raise ConfigError(f"must be a port number, not {self.bind_port}", variable_of("bind_port"))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Settings of this process. An empty variable counts as unset.

        Raises:
            ConfigError: a value that cannot be honoured; the message names the variable.
        """
        values: dict[str, Any] = {}
        for item in fields(cls):
            text = environ.get(item.metadata["env"], "")
            if text:
                values[item.name] = _parse(item.metadata["env"], text, item.type)
        return cls(**values)

    def to_env(self) -> dict[str, str]:
        """The variables that make `from_env` give these settings again, for a process to be started."""
        pairs = ((item.metadata["env"], getattr(self, item.name)) for item in fields(self))
        return {name: str(int(v) if isinstance(v, bool) else v) for name, v in pairs if v is not None}

    @property
    def serve_dashboard_url(self) -> str:
        """Dashboard that takes Serve's configuration."""
        return self.ray_serve_url or self.ray_jobs_url

    def run_dir(self, sweep_id: str) -> Path:
        """Directory of one sweep or run, or of its working copy."""
        return self.local_store.absolute() / "sweeps" / sweep_id

    @property
    def datasets_dir(self) -> Path:
        """Directory of uploaded datasets."""
        return self.local_store.absolute() / "datasets"

    @property
    def bucket(self) -> str | None:
        """The store as s3://BUCKET/PREFIX; None where it is a directory."""
        return self.store.rstrip("/") if isinstance(self.store, str) else None

    @property
    def local_store(self) -> Path:
        """The store, or what this process has of it."""
        return self.copies if isinstance(self.store, str) else self.store


def variable_of(name: str) -> str:
    """The environment variable behind the setting `name`."""
    return next(str(item.metadata["env"]) for item in fields(Settings) if item.name == name)


def check_https(url: str | None, field: str) -> None:
    """Raises ConfigError for anything but None or an https URL with a host."""
    parts = urlsplit(url or "https://none")
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"must look like https://host/path, not {url!r}", field)


_CENTURY = 36525  # days: a longer time ends before the calendar begins
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_BOOLS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _parse(variable: str, text: str, kind: Any) -> Any:
    kind = next((each for each in get_args(kind) if each is not type(None)), kind)  # int of int | None
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise ConfigError(f"must be 1 or 0, not {text!r}", variable)
        return _BOOLS[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ConfigError(f"must be a number, not {text!r}", variable) from None
    if variable == "SIMPO_STORE" and text.startswith(S3):
        return text
    return Path(text) if kind is Path else text
