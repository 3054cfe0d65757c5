"""API keys: made, listed, renewed and ended by those who administer a project; `GET /v1/me` says who one is."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field
from pydantic_core import to_json
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import Response

from service import keys
from service.auth import Caller
from service.context import CallerDep, Context, ContextDep, IdempotencyKey, bearer
from service.idempotency import Answer
from service.keys import KeyState
from service.models import ApiKey
from service.pages import PageQuery, digest_tag, page, whole
from service.routes.sweeps import PROBLEMS
from service.schemas import PageOf
from service.schemas_people import KeyIn, KeyOut, LimitsIn, MeOut, RotateIn, key_json, me_json
from service.scopes import allows

router = APIRouter(prefix="/v1/keys", tags=["keys"], dependencies=[bearer], responses=PROBLEMS)
me = APIRouter(prefix="/v1/me", tags=["keys"], dependencies=[bearer], responses=PROBLEMS)


class KeyQuery(PageQuery):
    """Filters of the list. Revoked ones are shown only when asked for by state."""

    state: KeyState | None = None
    name: Annotated[str, Field(max_length=63)] | None = None
    project: Annotated[str, Field(max_length=63)] | None = None
    """Id or name; another than the caller's for operators alone."""


@me.get("", responses={200: {"model": MeOut}})
def who_am_i(request: Request, caller: CallerDep) -> Response:
    """The key that asks: its project, role and scopes."""
    return whole(request, me_json(caller))


@router.post("", status_code=201, responses={201: {"model": KeyOut}, 404: {}})
def create_key(
    request: Request, body: KeyIn, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make a key with no more rights than one's own. `key` is in this answer alone: a repeated request shows null."""
    with context.everything.read() as session:
        project = keys.project_for(session, caller, body.project)

    def effect(session: Session, now: datetime) -> Answer:
        row, secret = keys.create(
            session,
            name=body.name,
            project=project,
            role=body.role,
            scopes=body.scopes,
            expires_at=body.expires_at,
            limits=body.limits.model_dump(),
            caller=caller,
            now=now,
        )
        shown = key_json(row, now)
        headers = {"location": f"/v1/keys/{row.id}", "etag": digest_tag(to_json(shown))}
        return Answer(status=201, body=shown, headers=headers, once={"key": secret.key})

    posts = context.within(project).posts
    return posts.run(request.url.path, body.model_dump(mode="json"), idempotency_key, caller, effect)


@router.get("", responses={200: {"model": PageOf[KeyOut]}})
def list_keys(
    request: Request, context: ContextDep, caller: CallerDep, query: Annotated[KeyQuery, Query()]
) -> Response:
    """Keys of the project, newest first."""
    now = context.clock.now()
    with context.everything.read() as session:
        project = keys.project_for(session, caller, query.project)
    over = ApiKey.expires_at.is_not(None) & (ApiKey.expires_at <= now)
    states = {
        None: ApiKey.revoked_at.is_(None),
        KeyState.REVOKED: ApiKey.revoked_at.is_not(None),
        KeyState.EXPIRED: ApiKey.revoked_at.is_(None) & over,
        KeyState.ACTIVE: ApiKey.revoked_at.is_(None) & ~over,
    }
    wanted = select(ApiKey).where(states[query.state])
    if query.name is not None:
        wanted = wanted.where(ApiKey.name == query.name)
    down = query.order == "desc"
    if query.after is not None:
        wanted = wanted.where(ApiKey.id < query.after if down else ApiKey.id > query.after)
    with context.within(project).store.read() as session:
        found = session.scalars(wanted.order_by(ApiKey.id.desc() if down else ApiKey.id).limit(query.size + 1)).all()
    return page(request, [key_json(row, now) for row in found], query)


@router.get("/{key_id}", responses={200: {"model": KeyOut}})
def get_key(request: Request, key_id: str, context: ContextDep, caller: CallerDep) -> Response:
    """One key; a revoked one too."""
    with _looking_after(context, caller, key_id).store.read() as session:
        return whole(request, key_json(keys.find(session, key_id), context.clock.now()))


@router.post("/{key_id}/rotate", status_code=201, responses={201: {"model": KeyOut}})
def rotate_key(
    request: Request,
    key_id: str,
    context: ContextDep,
    caller: CallerDep,
    body: RotateIn | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Give a key a new secret. The one before goes on for `grace_s` seconds, so that nobody is cut off meanwhile."""
    wanted = body or RotateIn()

    def effect(session: Session, now: datetime) -> Answer:
        row, secret = keys.rotate(session, key_id, wanted.grace_s, caller, now)
        return Answer(status=201, body=key_json(row, now), once={"key": secret.key})

    posts = _looking_after(context, caller, key_id).posts
    return posts.run(request.url.path, wanted.model_dump(mode="json"), idempotency_key, caller, effect)


@router.post("/{key_id}/limits", responses={200: {"model": KeyOut}})
def limit_key(
    request: Request,
    key_id: str,
    body: LimitsIn,
    context: ContextDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Change what a key may ask of models; null lifts a limit. What is said holds five seconds later at the latest."""
    given = body.model_dump(exclude_unset=True)

    def effect(session: Session, now: datetime) -> Answer:
        return Answer(status=200, body=key_json(keys.limit(session, key_id, given, caller, now), now))

    posts = _looking_after(context, caller, key_id).posts
    return posts.run(request.url.path, given, idempotency_key, caller, effect)


@router.post("/{key_id}/revoke", responses={200: {"model": KeyOut}})
def revoke_key(
    request: Request, key_id: str, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """End a key for good. It opens nothing five seconds later at the latest."""

    def effect(session: Session, now: datetime) -> Answer:
        return Answer(status=200, body=key_json(keys.revoke(session, key_id, caller, now), now))

    posts = _looking_after(context, caller, key_id).posts
    return posts.run(request.url.path, None, idempotency_key, caller, effect)


def _looking_after(context: Context, caller: Caller, key_id: str) -> Context:
    """The caller's own project; for an operator, that of the key."""
    if not allows(caller.scopes, "operator"):
        return context
    with context.everything.read() as session:
        row = session.get(ApiKey, key_id)
    return context if row is None else context.within(row.project)
