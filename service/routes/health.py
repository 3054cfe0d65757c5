"""Is it alive, may it be asked? Without a key, and without saying more than that."""

from typing import Any

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import PlainTextResponse, Response

from service.context import ContextDep, bearer
from service.errors import Unavailable
from service.metrics import CONTENT_TYPE
from service.schemas import Problem

router = APIRouter(tags=["health"])
_FIGURES: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers. Says nothing about what stands behind it."""
    # async: it needs no thread, and all of them may wait for a database that does not answer.
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": Problem}})
def readyz(context: ContextDep) -> dict[str, str]:
    """The database answers and the reconciler, if it runs here, is at work. Not ready: it is about to end."""
    if context.drain.begun:
        raise Unavailable("This process is about to end.", code="draining")
    try:
        context.store.ping()
    except SQLAlchemyError as error:
        raise Unavailable("The database does not answer.", code="database_unavailable") from error
    if context.settings.reconcile and not context.reconciler.alive:
        raise Unavailable("The reconciler is not running.", code="reconciler_stopped")
    return {"status": "ready"}


@router.get("/metrics", dependencies=[bearer], response_class=PlainTextResponse, responses=_FIGURES)
def metrics(context: ContextDep) -> Response:
    """What Prometheus asks for, of this process. It tells of all projects together, so its scope is one of its own."""
    return Response(context.metrics.exposition(), headers={"content-type": CONTENT_TYPE})
