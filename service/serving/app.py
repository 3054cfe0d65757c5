"""The Ray Serve application of one deployment: `build` is the import path that the deployer declares.

One replica class, whose constructor loads the checkpoint: Serve calls the application RUNNING only when that worked and
one token came out, and DEPLOY_FAILED, with the error, when it did not.
"""

import asyncio
import time
from typing import Any, Literal, Self

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve import metrics as ray_metrics

from service.serving.catalogue import OneModel
from service.serving.data_plane import create_data_plane
from service.serving.declared import SERVE_DEPLOYMENT
from service.serving.engine_metrics import EngineMetrics, Kit
from service.serving.shelf import Base, Shelf, Source
from sweeps.checkpoint_cache import MAX_BYTES, CheckpointCache, Copy
from sweeps.working_copy import is_remote


class ModelArgs(BaseModel):
    """Arguments of one application, as the deployer declares them."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    name: str
    """What clients put into `model`."""
    model_path: str
    """Checkpoint directory on this node, or s3://BUCKET/PREFIX of one that is fetched."""
    cache_dir: str | None = None
    """Where what is fetched is kept on this node; None: under the temporary directory."""
    cache_bytes: int = Field(MAX_BYTES, ge=1)
    """Of all that is kept there."""
    revision: int = 1
    """Changes when the same name shall serve something else."""
    max_batch: int = Field(64, ge=1)
    """Requests decoded together."""
    max_new_tokens_limit: int | None = Field(None, ge=1)
    """Most tokens of one answer; None: as many as the context holds."""
    dtype: str = "float32"
    """Weights and arithmetic: float32 or bfloat16."""
    max_adapters: int = Field(0, ge=0)
    """0: this checkpoint alone. Else it is a base, and so many adapters stay loaded beside it; their names come with
    `user_config`, which Serve changes without a restart."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates the text."""
    vllm_python: str | None = None
    """For vllm: a Python that has it, on this node."""

    @model_validator(mode="after")
    def _vllm_has_a_python(self) -> Self:
        if self.engine == "vllm" and not self.vllm_python:
            raise ValueError("engine: vllm needs a Python that has it: set SIMPO_VLLM_PYTHON where the service runs")
        return self


class SourceArgs(BaseModel):
    """Where a name leads, in a `user_config`."""

    model_config = ConfigDict(extra="forbid")

    id: str = ""
    """The deployment's, for whoever declared it."""
    path: str | None
    """Checkpoint with the adapter on this node; None: the base itself."""
    revision: int = 1
    """Changes when the name shall mean something else."""
    created: int = 0
    """Unix time."""
    idle_s: int | None = None
    """For whoever declared it, likewise: Serve's autoscaler knows what holds for all of them."""


class SharedConfig(BaseModel):
    """The `user_config` of a base with adapters."""

    model_config = ConfigDict(extra="forbid")

    models: dict[str, SourceArgs]
    """Name -> where it leads. All of them: what is missing is not served any more."""


class Model:
    """A loaded checkpoint behind OpenAI's endpoints."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._args = ModelArgs(**args)
        self._copy = _copy(self._args)  # kept open: nobody removes what this replica may read again
        self._engine = _load(self._args, self._args.model_path if self._copy is None else str(self._copy.path))
        self._engine.warm_up()
        self._metrics = EngineMetrics(_RAY_KIT, engine=self._args.engine)
        self._metrics.sample_for_ever(self._engine.occupancy)
        self._catalogue = self._one() if self._args.max_adapters == 0 else self._shelf()

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Called by Serve with the `user_config`, at the start and at each change, while answers go on."""
        assert isinstance(self._catalogue, Shelf), "only a base with adapters is declared with a user_config"
        models = SharedConfig(**config).models
        self._catalogue.declare(
            {name: Source(**source.model_dump(exclude={"id", "idle_s"})) for name, source in models.items()}
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        limit = self._args.max_new_tokens_limit
        return create_data_plane(self._catalogue, max_new_tokens=limit, metrics=self._metrics)

    async def check_health(self) -> None:
        """Asked by Serve every 10 s; raising makes it replace the replica. A token must come out."""
        await asyncio.to_thread(self._engine.check_health)

    def _one(self) -> OneModel:
        created = int(time.time())
        return OneModel(self._engine, name=self._args.name, revision=self._args.revision, created=created)

    def _shelf(self) -> Shelf:
        return Shelf(self._engine, capacity=self._args.max_adapters)


_DRAIN_S = 300.0
_RAY_KIT = Kit(counter=ray_metrics.Counter, gauge=ray_metrics.Gauge, histogram=ray_metrics.Histogram)


def build(args: dict[str, Any]) -> serve.Application:
    """The application for these arguments. Raises pydantic.ValidationError on an unknown one."""
    deployment = serve.deployment(
        serve.ingress()(Model),
        name=SERVE_DEPLOYMENT,
        # A checkpoint that does not load will not load the second time: one attempt, and the person sees why.
        max_constructor_retry_count=1,
        graceful_shutdown_wait_loop_s=0.5,
        # A replica that is to go answers what it has begun; Serve's own 20 s would cut long streams off.
        graceful_shutdown_timeout_s=_DRAIN_S,
    )
    return deployment.bind(ModelArgs(**args).model_dump())


def _copy(args: ModelArgs) -> Copy | None:
    """This node's copy of a checkpoint in an object store; None where it needs none."""
    if not is_remote(args.model_path):
        return None
    return CheckpointCache(args.cache_dir, max_bytes=args.cache_bytes).hold(args.model_path)


def _load(args: ModelArgs, path: str) -> Base:
    import torch  # noqa: PLC0415  # lazy: `build` runs in a process of its own, which must not pay for torch

    from service.serving.engines.transformers import TransformersEngine  # noqa: PLC0415  # lazy: as above
    from simpo.memory import keep_freed_pages  # noqa: PLC0415  # lazy: as above

    # One replica, one core: trials train on the others, and more threads slow both down.
    torch.set_num_threads(1)
    if args.engine == "vllm":
        assert args.vllm_python is not None, "refused above"
        from service.serving.engines.vllm import VllmEngine  # noqa: PLC0415  # lazy: as above

        return VllmEngine.load(
            path,
            python=args.vllm_python,
            dtype=args.dtype,
            max_batch=args.max_batch,
            max_adapters=args.max_adapters,
        )
    adapters = args.max_adapters > 0
    engine = TransformersEngine.load(path, dtype=args.dtype, max_batch=args.max_batch, adapters=adapters)
    keep_freed_pages()  # from now on: what loading and packing freed has gone back to the system
    return engine
