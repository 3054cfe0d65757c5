"""Projects, for those who run the installation."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import Response

from service import projects
from service.context import CallerDep, ContextDep, IdempotencyKey, bearer
from service.idempotency import Answer
from service.models_people import Project
from service.pages import PageQuery, etag, page, single
from service.routes.sweeps import PROBLEMS
from service.schemas import PageOf
from service.schemas_people import ProjectIn, ProjectOut, project_json

router = APIRouter(prefix="/v1/projects", tags=["projects"], dependencies=[bearer], responses=PROBLEMS)


class ProjectQuery(PageQuery):
    """Filters of the list. Archived ones are shown only when asked for by state."""

    state: Literal["ACTIVE", "ARCHIVED"] = "ACTIVE"
    name: Annotated[str, Field(max_length=63)] | None = None


@router.post("", status_code=201, responses={201: {"model": ProjectOut}})
def create_project(
    request: Request, body: ProjectIn, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make a project; `POST /v1/keys` with its id makes the first key."""

    def effect(session: Session, now: datetime) -> Answer:
        row = projects.create(session, body.name, caller, now)
        headers = {"location": f"/v1/projects/{row.id}", "etag": etag(row.version)}
        return Answer(status=201, body=project_json(row), headers=headers)

    return context.posts.run(request.url.path, body.model_dump(mode="json"), idempotency_key, caller, effect)


@router.get("", responses={200: {"model": PageOf[ProjectOut]}})
def list_projects(request: Request, context: ContextDep, query: Annotated[ProjectQuery, Query()]) -> Response:
    """Projects, newest first; the default one is the first of all."""
    wanted = select(Project).where((Project.archived_at.is_(None)) == (query.state == "ACTIVE"))
    if query.name is not None:
        wanted = wanted.where(Project.name == query.name)
    down = query.order == "desc"
    if query.after is not None:
        wanted = wanted.where(Project.id < query.after if down else Project.id > query.after)
    with context.store.read() as session:
        found = session.scalars(wanted.order_by(Project.id.desc() if down else Project.id).limit(query.size + 1)).all()
    return page(request, [project_json(row) for row in found], query)


@router.get("/{project_id}", responses={200: {"model": ProjectOut}})
def get_project(request: Request, project_id: str, context: ContextDep) -> Response:
    """One project; an archived one too."""
    with context.store.read() as session:
        row = projects.find(session, project_id)
    return single(request, project_json(row), row.version)


@router.post("/{project_id}/archive", responses={200: {"model": ProjectOut}})
def archive_project(
    request: Request, project_id: str, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Close a project: its keys open nothing within five seconds. What runs in it goes on to its end, and all stays."""

    def effect(session: Session, now: datetime) -> Answer:
        row = projects.archive(session, project_id, now)
        return Answer(status=200, body=project_json(row), headers={"etag": etag(row.version)})

    return context.posts.run(request.url.path, None, idempotency_key, caller, effect)
