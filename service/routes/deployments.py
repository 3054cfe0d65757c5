"""Deployments: a wish names a sweep and one of its checkpoints; the reconciler brings it to Serve."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse, Response

from service import events, registry, rows
from service.canaries import live_canary
from service.context import CallerDep, ContextDep, IdempotencyKey, bearer
from service.errors import Conflict, illegal_transition, invalid
from service.idempotency import Answer
from service.models import Deployment
from service.models_canaries import DeploymentRevision
from service.pages import PageQuery, check_if_match, etag, page, single, states_in, words_of
from service.routes.sweeps import PROBLEMS
from service.schemas import DeploymentIn, DeploymentOut, PageOf, ScalingIn, deployment_json
from service.schemas_canaries import DeploymentShown, candidate_json
from service.settings import Settings
from service.states import DeploymentState
from service.winners import method_winner, model_path, refuse_missing_engine, shared_base

_IDLE_S = 600

router = APIRouter(prefix="/v1/deployments", tags=["deployments"], dependencies=[bearer], responses=PROBLEMS)


class DeploymentQuery(PageQuery):
    """Filters of the list. Deleted ones are shown only when asked for by state."""

    state: Annotated[str, Field(json_schema_extra={"pattern": words_of(DeploymentState)})] | None = None
    name: str | None = None


@router.post("", status_code=202, responses={202: {"model": DeploymentOut}})
def create_deployment(
    request: Request,
    body: DeploymentIn,
    context: ContextDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Ask for a checkpoint behind a name. READY says that it answers."""

    def effect(session: Session, now: datetime) -> Answer:
        source = _source(session, context.settings, body, caller.project)
        taken = select(Deployment.id).where(Deployment.name == body.name, Deployment.state != DeploymentState.DELETED)
        if existing := session.scalar(taken):
            raise rows.name_taken("deployment", body.name, existing)
        idle_s = _idle_s(body)
        row = rows.new_deployment(body.name, {**source, "idle_s": idle_s}, caller.key_id, now, project=caller.project)
        session.add(row)
        facts = {"name": row.name, "sweep": row.sweep_id, "checkpoint": row.checkpoint, "model": row.follows}
        events.append(session, row, "deployment.requested", "Accepted.", facts, now=now, actor=caller.key_id)
        session.flush()
        headers = {"location": f"{request.url.path.rstrip('/')}/{row.id}", "etag": etag(row.version)}
        return Answer(status=202, body=deployment_json(row), headers=headers)

    response = context.posts.run(request.url.path, body.model_dump(mode="json"), idempotency_key, caller, effect)
    context.reconciler.wake()
    return response


@router.get("", responses={200: {"model": PageOf[DeploymentOut]}})
def list_deployments(request: Request, context: ContextDep, query: Annotated[DeploymentQuery, Query()]) -> Response:
    """Deployments, newest first."""
    wanted = select(Deployment)
    if query.state is None:
        wanted = wanted.where(Deployment.state != DeploymentState.DELETED)
    else:
        wanted = wanted.where(Deployment.state.in_(states_in(query.state, DeploymentState)))
    if query.name is not None:
        wanted = wanted.where(Deployment.name == query.name)
    newest_first = query.order == "desc"
    if query.after is not None:
        wanted = wanted.where(Deployment.id < query.after if newest_first else Deployment.id > query.after)
    order = Deployment.id.desc() if newest_first else Deployment.id
    with context.store.read() as session:
        found = session.scalars(wanted.order_by(order).limit(query.size + 1)).all()
    return page(request, [deployment_json(row) for row in found], query)


@router.get("/{deployment_id}", responses={200: {"model": DeploymentShown}})
def get_deployment(request: Request, deployment_id: str, context: ContextDep) -> Response:
    """One deployment, with the candidate beside it; a deleted one too."""
    with context.store.read() as session:
        row = session.get(Deployment, deployment_id)
        if row is None:
            raise rows.no_such("deployment", deployment_id)
        # Each change of a candidate has its event, and so a version of the deployment's row: the ETag holds for both.
        candidate = _candidate(session, deployment_id)
    return single(request, {**deployment_json(row), "candidate": candidate}, row.version)


@router.delete("/{deployment_id}", responses={200: {"model": DeploymentOut}})
def delete_deployment(request: Request, deployment_id: str, context: ContextDep, caller: CallerDep) -> Response:
    """Take a model away, guarded by If-Match. The row stays; its name is free once Serve has stopped it."""
    with context.store.write() as session:
        row = rows.lock_deployment(session, deployment_id)
        if row is None:
            raise rows.no_such("deployment", deployment_id)
        check_if_match(request, row.version)
        if row.desired != "DELETE":
            rows.want_deletion(session, row, caller.key_id, context.clock.now())
        elif row.state == DeploymentState.DELETED:
            raise illegal_transition("deployment", row.state, "delete", [])
    context.reconciler.wake()
    return JSONResponse(deployment_json(row), 200, {"etag": etag(row.version)})


@router.post("/{deployment_id}/scaling", status_code=202, responses={202: {"model": DeploymentOut}})
def scale_deployment(
    request: Request,
    deployment_id: str,
    body: ScalingIn,
    context: ContextDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Say whether a deployment may sleep while nobody asks. Its replicas are not started anew."""

    def effect(session: Session, now: datetime) -> Answer:
        idle_s = _idle_s(body)
        row = rows.lock_deployment(session, deployment_id)
        if row is None:
            raise rows.no_such("deployment", deployment_id)
        if row.desired != "SERVE":
            raise illegal_transition("deployment", row.state, "scale", [])
        if row.idle_s != idle_s:
            facts = {"name": row.name, "before": row.idle_s, "idle_s": idle_s}
            text = "Its replicas are to stay." if idle_s is None else f"May sleep after {idle_s} s without a request."
            row.idle_s = idle_s
            events.append(session, row, "deployment.scaling_changed", text, facts, now=now, actor=caller.key_id)
        session.flush()
        return Answer(status=202, body=deployment_json(row), headers={"etag": etag(row.version)})

    response = context.posts.run(request.url.path, body.model_dump(mode="json"), idempotency_key, caller, effect)
    context.reconciler.wake()
    return response


def _idle_s(body: DeploymentIn | ScalingIn) -> int | None:
    """Raises Invalid (422) where a time is given to what never sleeps."""
    if body.min_replicas == 0:
        return body.idle_s or _IDLE_S
    if body.idle_s is not None:
        raise invalid([("/idle_s", "is for min_replicas: 0; a deployment with a replica for good is never idle")])
    return None


def _candidate(session: Session, deployment_id: str) -> dict[str, Any] | None:
    canary = live_canary(session, deployment_id, lock=False)
    if canary is None:
        return None
    return candidate_json(canary, session.get_one(DeploymentRevision, (deployment_id, canary.revision)))


def _source(session: Session, settings: Settings, body: DeploymentIn, project: str) -> dict[str, Any]:
    """The columns that say what is served. Raises Invalid (422), Conflict (409)."""
    if sum(each is not None for each in (body.sweep, body.comparison, body.model)) != 1:
        raise invalid([("/sweep", "name either a sweep, or a comparison, or a model as MODEL@production")])
    if body.method is not None and body.comparison is None:
        raise invalid([("/method", "is for a comparison: a sweep has one winner")])
    refuse_missing_engine(settings, body.engine)
    if body.comparison is not None:
        if "checkpoint" in body.model_fields_set:
            raise invalid([("/checkpoint", "is for a sweep: name a method, whose winner is deployed")])
        won = method_winner(session, settings, body.comparison, body.method)
        served = {"sweep_id": won.sweep_id, "checkpoint": won.checkpoint, "model_path": won.path, "engine": body.engine}
        return {**served, "base_path": shared_base(settings, won.path)}
    if body.sweep is not None:
        path = model_path(session, settings, body.sweep, body.checkpoint)
        base = shared_base(settings, path)
        columns = {"sweep_id": body.sweep, "checkpoint": body.checkpoint, "model_path": path, "base_path": base}
        return {**columns, "engine": body.engine}
    if "checkpoint" in body.model_fields_set:
        raise invalid([("/checkpoint", "is for a sweep: what a model serves is where its alias points")])
    target = registry.followed(session, project, str(body.model))
    if target is None:
        raise Conflict(f"{body.model} points nowhere yet: promote a version first.", code="alias_not_set")
    version = target.version
    return {
        "sweep_id": version.sweep_id,
        "checkpoint": version.checkpoint,
        "model_path": version.model_path,
        "follows": body.model,
        "model_version": version.n,
        "engine": body.engine,
    }
