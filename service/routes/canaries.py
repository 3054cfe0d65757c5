"""Roll-outs: a candidate beside the champion of a deployment, its share of the requests, and the ways on and back."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse, Response

from service import canaries, registry, rows
from service.auth import Caller
from service.canary_watch import counted
from service.context import CallerDep, Context, ContextDep, IdempotencyKey, bearer
from service.errors import invalid
from service.idempotency import Answer
from service.models import Deployment
from service.models_canaries import Canary, DeploymentRevision
from service.pages import check_if_match, etag
from service.routes.sweeps import PROBLEMS
from service.schemas import DeploymentOut, deployment_json
from service.schemas_canaries import CanaryIn, CanaryOut, RollbackIn, WeightIn, canary_json, guard_json
from service.serving.verdict import Guard, judge
from service.settings import Settings
from service.winners import model_path, shared_base

router = APIRouter(prefix="/v1/deployments", tags=["deployments"], dependencies=[bearer], responses=PROBLEMS)

Effect = Callable[[Session, Deployment, datetime], Any]


@router.post("/{deployment_id}/canary", status_code=202, responses={202: {"model": CanaryOut}})
def create_canary(
    request: Request,
    deployment_id: str,
    body: CanaryIn,
    context: ContextDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Put a candidate beside the champion. It answers its share once READY; one that does not load answers nobody."""

    def effect(session: Session, row: Deployment, now: datetime) -> None:
        wish = canaries.Candidate(
            source=_source(session, context.settings, body),
            weight=body.weight,
            sticky=body.sticky,
            guard=guard_json(body.guard),
        )
        canaries.start(session, row, wish, caller.key_id, now)

    return _wish(request, context, caller, deployment_id, body.model_dump(mode="json"), idempotency_key, effect)


@router.get("/{deployment_id}/canary", responses={200: {"model": CanaryOut}})
def get_canary(deployment_id: str, context: ContextDep) -> Response:
    """The newest candidate, over or not: how both versions answer, and the verdict that ended it."""
    with context.store.read() as session:
        row = session.get(Deployment, deployment_id)
        if row is None:
            raise rows.no_such("deployment", deployment_id)
        body = _shown(session, row, context.clock.now())
    return JSONResponse(body, 200, {"etag": etag(row.version)})


@router.patch("/{deployment_id}", responses={200: {"model": CanaryOut}})
def set_weight(
    request: Request, deployment_id: str, body: WeightIn, context: ContextDep, caller: CallerDep
) -> Response:
    """Change the candidate's share, guarded by If-Match with the deployment's ETag. It holds for the next request."""
    if body.weight is None and body.sticky is None:
        raise invalid([("/weight", "is required: percent of the requests that the candidate answers")])
    with context.store.write() as session:
        row = _locked(session, deployment_id)
        check_if_match(request, row.version)
        now = context.clock.now()
        canaries.reweigh(session, row, caller.key_id, now, weight=body.weight, sticky=body.sticky)
        shown = _shown(session, row, now)
    return JSONResponse(shown, 200, {"etag": etag(row.version)})


@router.post("/{deployment_id}/promote", status_code=202, responses={202: {"model": CanaryOut}})
def promote_canary(
    request: Request, deployment_id: str, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Let the candidate become the champion: it answers everybody from now on."""

    def effect(session: Session, row: Deployment, now: datetime) -> None:
        canaries.promote(session, row, caller.key_id, now)

    return _wish(request, context, caller, deployment_id, None, idempotency_key, effect)


@router.post("/{deployment_id}/abort", status_code=202, responses={202: {"model": CanaryOut}})
def abort_canary(
    request: Request, deployment_id: str, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Take the candidate away: the champion answers everybody from now on."""

    def effect(session: Session, row: Deployment, now: datetime) -> None:
        canaries.abort(session, row, caller.key_id, now)

    return _wish(request, context, caller, deployment_id, None, idempotency_key, effect)


@router.post("/{deployment_id}/rollback", status_code=202, responses={202: {"model": DeploymentOut}})
def roll_back_deployment(
    request: Request,
    deployment_id: str,
    context: ContextDep,
    caller: CallerDep,
    body: RollbackIn | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Go back, whatever is going on: a candidate is taken away; without one, the champion before comes back."""
    revision = None if body is None else body.revision

    def effect(session: Session, row: Deployment, now: datetime) -> None:
        canaries.roll_back(session, row, revision, caller.key_id, now)

    said = None if body is None else body.model_dump(mode="json")
    return _wish(request, context, caller, deployment_id, said, idempotency_key, effect, of_canary=False)


def _wish(
    request: Request,
    context: Context,
    caller: Caller,
    deployment_id: str,
    body: dict[str, Any] | None,
    key: str | None,
    effect: Effect,
    *,
    of_canary: bool = True,
) -> Response:
    def stored(session: Session, now: datetime) -> Answer:
        row = _locked(session, deployment_id)
        effect(session, row, now)
        session.flush()
        shown = _shown(session, row, now) if of_canary else deployment_json(row)
        return Answer(status=202, body=shown, headers={"etag": etag(row.version)})

    response = context.posts.run(request.url.path, body, key, caller, stored)
    context.reconciler.wake()
    return response


def _locked(session: Session, deployment_id: str) -> Deployment:
    row = rows.lock_deployment(session, deployment_id)
    if row is None:
        raise rows.no_such("deployment", deployment_id)
    return row


def _shown(session: Session, row: Deployment, now: datetime) -> dict[str, Any]:
    canary: Canary = canaries.newest_canary(session, row.id)
    revision = session.get_one(DeploymentRevision, (row.id, canary.revision))
    window_s = (canary.guard or {}).get("window_s", Guard().window_s)
    figures = (canary.verdict or {}).get("figures") or judge(*counted(session, canary, now, window_s), Guard()).figures
    return canary_json(row, canary, revision, figures)


def _source(session: Session, settings: Settings, body: CanaryIn) -> dict[str, Any]:
    """What the candidate serves. Raises Invalid (422), NotFound (404), Conflict (409)."""
    if (body.sweep is None) == (body.model is None):
        raise invalid([("/sweep", "name either a sweep, or a model with its model_version")])
    if body.sweep is not None:
        if body.model_version is not None:
            raise invalid([("/model_version", "is of a model: a sweep has checkpoints")])
        path = model_path(session, settings, body.sweep, body.checkpoint)
        base = shared_base(settings, path)
        return {"sweep_id": body.sweep, "checkpoint": body.checkpoint, "model_path": path, "base_path": base}
    if body.model_version is None:
        raise invalid([("/model_version", "is required with a model")])
    if "checkpoint" in body.model_fields_set:
        raise invalid([("/checkpoint", "is of a sweep: a version is one checkpoint for good")])
    version = registry.version_of(session, registry.model_named(session, str(body.model)), body.model_version)
    source = {"sweep_id": version.sweep_id, "checkpoint": version.checkpoint, "model_path": version.model_path}
    return {**source, "model_version": version.n}
