"""The Ray Serve application of one deployment: `build` is the import path that the deployer declares.

One replica class, whose constructor loads the checkpoint: Serve calls the application RUNNING only when that worked and
one token came out, and DEPLOY_FAILED, with the error, when it did not.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from service.serving.catalogue import OneModel
from service.serving.data_plane import create_data_plane
from service.serving.deployer import SERVE_DEPLOYMENT
from service.serving.shelf import Shelf, Source

if TYPE_CHECKING:
    from service.serving.engines.transformers import TransformersEngine


class ModelArgs(BaseModel):
    """Arguments of one application, as the deployer declares them."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    name: str
    """What clients put into `model`."""
    model_path: str
    """Checkpoint directory on this node."""
    revision: int = 1
    """Changes when the same name shall serve something else."""
    max_batch: int = Field(32, ge=1)
    """Requests decoded together."""
    max_new_tokens_limit: int | None = Field(None, ge=1)
    """Most tokens of one answer; None: as many as the context holds."""
    dtype: str = "float32"
    """Weights and arithmetic: float32 or bfloat16."""
    max_adapters: int = Field(0, ge=0)
    """0: this checkpoint alone. Else it is a base, and so many adapters stay loaded beside it; their names come with
    `user_config`, which Serve changes without a restart."""


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


class SharedConfig(BaseModel):
    """The `user_config` of a base with adapters."""

    model_config = ConfigDict(extra="forbid")

    models: dict[str, SourceArgs]
    """Name -> where it leads. All of them: what is missing is not served any more."""


class Model:
    """A loaded checkpoint behind OpenAI's endpoints."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._args = ModelArgs(**args)
        self._engine = _load(self._args)
        self._engine.warm_up()
        self._catalogue = self._one() if self._args.max_adapters == 0 else self._shelf()

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Called by Serve with the `user_config`, at the start and at each change, while answers go on."""
        assert isinstance(self._catalogue, Shelf), "only a base with adapters is declared with a user_config"
        models = SharedConfig(**config).models
        self._catalogue.declare({name: Source(**source.model_dump(exclude={"id"})) for name, source in models.items()})

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_data_plane(self._catalogue, max_new_tokens=self._args.max_new_tokens_limit)

    async def check_health(self) -> None:
        """Asked by Serve every 10 s; raising makes it replace the replica. A token must come out."""
        await asyncio.to_thread(self._engine.check_health)

    def _one(self) -> OneModel:
        created = int(time.time())
        return OneModel(self._engine, name=self._args.name, revision=self._args.revision, created=created)

    def _shelf(self) -> Shelf:
        return Shelf(self._engine, capacity=self._args.max_adapters)


def build(args: dict[str, Any]) -> serve.Application:
    """The application for these arguments. Raises pydantic.ValidationError on an unknown one."""
    deployment = serve.deployment(
        serve.ingress()(Model),
        name=SERVE_DEPLOYMENT,
        # A checkpoint that does not load will not load the second time: one attempt, and the person sees why.
        max_constructor_retry_count=1,
        graceful_shutdown_wait_loop_s=0.5,
    )
    return deployment.bind(ModelArgs(**args).model_dump())


def _load(args: ModelArgs) -> "TransformersEngine":
    import torch  # noqa: PLC0415  # lazy: `build` runs in a process of its own, which must not pay for torch

    from service.serving.engines.transformers import TransformersEngine  # noqa: PLC0415  # lazy: as above
    from simpo.memory import keep_freed_pages  # noqa: PLC0415  # lazy: as above

    # One replica, one core: trials train on the others, and more threads slow both down.
    keep_freed_pages()
    torch.set_num_threads(1)
    adapters = args.max_adapters > 0
    return TransformersEngine.load(args.model_path, dtype=args.dtype, max_batch=args.max_batch, adapters=adapters)
