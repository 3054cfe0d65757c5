"""Is it alive, may it be asked? Without a key, and without saying more than that."""

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError

from service.context import ContextDep
from service.errors import Unavailable
from service.schemas import Problem

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process answers. Says nothing about what stands behind it."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": Problem}})
def readyz(context: ContextDep) -> dict[str, str]:
    """The database answers and the reconciler, if it runs here, is at work."""
    try:
        context.store.ping()
    except SQLAlchemyError as error:
        raise Unavailable("The database does not answer.", code="database_unavailable") from error
    if context.settings.reconcile and not context.reconciler.alive:
        raise Unavailable("The reconciler is not running.", code="reconciler_stopped")
    return {"status": "ready"}
