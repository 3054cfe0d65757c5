"""The Ray Serve application of one deployment: `build` is the import path that the deployer declares.

One replica class, whose constructor loads the checkpoint: Serve calls the application RUNNING only when that worked and
one token came out, and DEPLOY_FAILED, with the error, when it did not.
"""

import asyncio
import time
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from service.serving.catalogue import OneModel
from service.serving.data_plane import create_data_plane
from service.serving.deployer import SERVE_DEPLOYMENT
from service.serving.engines.base import Engine


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


class Model:
    """A loaded checkpoint behind OpenAI's endpoints."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._args = ModelArgs(**args)
        self._engine = _load(self._args)
        self._engine.warm_up()
        self._created = int(time.time())

    def __serve_build_asgi_app__(self) -> FastAPI:
        args = self._args
        model = OneModel(self._engine, name=args.name, revision=args.revision, created=self._created)
        return create_data_plane(model, max_new_tokens=args.max_new_tokens_limit)

    async def check_health(self) -> None:
        """Asked by Serve every 10 s; raising makes it replace the replica. A token must come out."""
        await asyncio.to_thread(self._engine.check_health)


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


def _load(args: ModelArgs) -> Engine:
    import torch  # noqa: PLC0415  # lazy: `build` runs in a process of its own, which must not pay for torch

    from service.serving.engines.transformers import TransformersEngine  # noqa: PLC0415  # lazy: as above
    from simpo.memory import keep_freed_pages  # noqa: PLC0415  # lazy: as above

    # One replica, one core: trials train on the others, and more threads slow both down.
    keep_freed_pages()
    torch.set_num_threads(1)
    return TransformersEngine.load(args.model_path, dtype=args.dtype, max_batch=args.max_batch)
