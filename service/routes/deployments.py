"""Deployments: a wish names a sweep and one of its checkpoints; the reconciler brings it to Serve."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse, Response

from service import events, registry, rows
from service.context import CallerDep, ContextDep, IdempotencyKey, bearer
from service.errors import Conflict, illegal_transition, invalid
from service.idempotency import Answer
from service.models import Deployment
from service.pages import PageQuery, check_if_match, etag, page, single, states_in, words_of
from service.routes.sweeps import PROBLEMS
from service.schemas import DeploymentIn, DeploymentOut, PageOf, deployment_json
from service.settings import Settings
from service.states import DeploymentState
from service.winners import model_path, shared_base

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
        row = rows.new_deployment(body.name, source, caller.key_id, now, project=caller.project)
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


@router.get("/{deployment_id}", responses={200: {"model": DeploymentOut}})
def get_deployment(request: Request, deployment_id: str, context: ContextDep) -> Response:
    """One deployment; a deleted one too."""
    with context.store.read() as session:
        row = session.get(Deployment, deployment_id)
    if row is None:
        raise rows.no_such("deployment", deployment_id)
    return single(request, deployment_json(row), row.version)


@router.delete("/{deployment_id}", responses={200: {"model": DeploymentOut}})
def delete_deployment(request: Request, deployment_id: str, context: ContextDep, caller: CallerDep) -> Response:
    """Take a model away, guarded by If-Match. The row stays; its name is free once Serve has stopped it."""
    with context.store.write() as session:
        row = session.scalar(select(Deployment).where(Deployment.id == deployment_id).with_for_update())
        if row is None:
            raise rows.no_such("deployment", deployment_id)
        check_if_match(request, row.version)
        if row.desired != "DELETE":
            rows.want_deletion(session, row, caller.key_id, context.clock.now())
        elif row.state == DeploymentState.DELETED:
            raise illegal_transition("deployment", row.state, "delete", [])
    context.reconciler.wake()
    return JSONResponse(deployment_json(row), 200, {"etag": etag(row.version)})


def _source(session: Session, settings: Settings, body: DeploymentIn, project: str) -> dict[str, Any]:
    """The columns that say what is served. Raises Invalid (422), Conflict (409)."""
    if (body.sweep is None) == (body.model is None):
        raise invalid([("/sweep", "name either a sweep, or a model as MODEL@production")])
    if body.sweep is not None:
        path = model_path(session, settings, body.sweep, body.checkpoint)
        base = shared_base(settings, path)
        return {"sweep_id": body.sweep, "checkpoint": body.checkpoint, "model_path": path, "base_path": base}
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
    }
