"""The registry: models, versions, where their aliases point. Aliases are moved by promotions alone."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import Response

from service import registry
from service.context import CallerDep, ContextDep, IdempotencyKey, bearer
from service.errors import invalid
from service.idempotency import Answer
from service.models_registry import ModelVersion, RegistryModel
from service.pages import PageQuery, etag, page, single
from service.routes.sweeps import PROBLEMS
from service.rows import name_taken
from service.schemas import PageOf
from service.schemas_registry import ModelIn, ModelOut, VersionIn, VersionOut, model_json, version_json
from service.winners import chosen

router = APIRouter(prefix="/v1/registry/models", tags=["registry"], dependencies=[bearer], responses=PROBLEMS)


class ModelQuery(PageQuery):
    """Of the list of models, by name; `after` is a name."""

    name: str | None = None


class VersionQuery(PageQuery):
    """Of the list of versions; `after` is a number."""

    after: Annotated[str, Field(json_schema_extra={"pattern": "^[0-9]{1,9}$"})] | None = None


VersionNumber = Annotated[int, Path(ge=1, lt=10**9)]


@router.post("", status_code=201, responses={201: {"model": ModelOut}})
def register_model(
    request: Request, body: ModelIn, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Register a name. A promotion does it by itself."""

    def effect(session: Session, now: datetime) -> Answer:
        if session.scalar(select(RegistryModel.id).where(RegistryModel.name == body.name)):
            raise name_taken("model", body.name, body.name)
        row = registry.model_for(session, body.name, caller, now)
        headers = {"location": f"{request.url.path.rstrip('/')}/{row.name}", "etag": etag(row.version)}
        return Answer(status=201, body=model_json(row, {}), headers=headers)

    return context.posts.run(request.url.path, body.model_dump(mode="json"), idempotency_key, caller, effect)


@router.get("", responses={200: {"model": PageOf[ModelOut]}})
def list_registered_models(request: Request, context: ContextDep, query: Annotated[ModelQuery, Query()]) -> Response:
    """Models by name."""
    wanted, name, down = select(RegistryModel), RegistryModel.name, query.order == "desc"
    if query.name is not None:
        wanted = wanted.where(name == query.name)
    if query.after is not None:
        wanted = wanted.where(name < query.after if down else name > query.after)
    with context.store.read() as session:
        found = session.scalars(wanted.order_by(name.desc() if down else name).limit(query.size + 1)).all()
        shown = [model_json(row, registry.aliases_of(session, row.id)) for row in found]
    return page(request, shown, query)


@router.get("/{model}", responses={200: {"model": ModelOut}})
def get_registered_model(request: Request, model: str, context: ContextDep) -> Response:
    """One model."""
    with context.store.read() as session:
        row = registry.model_named(session, model)
        aliases = registry.aliases_of(session, row.id)
    return single(request, model_json(row, aliases), row.version)


@router.post("/{model}/versions", status_code=201, responses={201: {"model": VersionOut}})
def create_version(
    request: Request,
    model: str,
    body: VersionIn,
    context: ContextDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Register a checkpoint; the version that it has already is answered again. No alias moves by that."""

    def effect(session: Session, now: datetime) -> Answer:
        row = registry.lock_model(session, registry.model_named(session, model).id)
        found = chosen(session, context.settings, body.sweep, body.checkpoint)
        version = registry.register(session, row, found, caller, now)
        shown = version_json(row, version, registry.aliases_of(session, row.id))
        return Answer(status=201, body=shown, headers={"location": f"{request.url.path.rstrip('/')}/{version.n}"})

    return context.posts.run(request.url.path, body.model_dump(mode="json"), idempotency_key, caller, effect)


@router.get("/{model}/versions", responses={200: {"model": PageOf[VersionOut]}})
def list_versions(
    request: Request, model: str, context: ContextDep, query: Annotated[VersionQuery, Query()]
) -> Response:
    """Versions, newest first."""
    if query.after is not None and not (query.after.isdecimal() and len(query.after) < 10):
        raise invalid([("/after", "must be the number of a version")])
    down = query.order == "desc"
    with context.store.read() as session:
        row = registry.model_named(session, model)
        wanted = select(ModelVersion).where(ModelVersion.model_id == row.id)
        if query.after is not None:
            wanted = wanted.where(ModelVersion.n < int(query.after) if down else ModelVersion.n > int(query.after))
        order = ModelVersion.n.desc() if down else ModelVersion.n
        found = session.scalars(wanted.order_by(order).limit(query.size + 1)).all()
        aliases = registry.aliases_of(session, row.id)
    return page(request, [version_json(row, version, aliases) for version in found], query)


@router.get("/{model}/versions/{version}", responses={200: {"model": VersionOut}})
def get_version(request: Request, model: str, version: VersionNumber, context: ContextDep) -> Response:
    """One version."""
    with context.store.read() as session:
        row = registry.model_named(session, model)
        found = registry.version_of(session, row, version)
        aliases = registry.aliases_of(session, row.id)
    return single(request, version_json(row, found, aliases), row.version)
