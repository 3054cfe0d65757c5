"""The audit log, as pages or as lines: who changed what, and who was refused."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from pydantic_core import to_json
from sqlalchemy import Select, select
from starlette.responses import Response, StreamingResponse

from service.clock import Moment
from service.context import CallerDep, ContextDep, bearer
from service.keys import project_for
from service.models_people import AuditEntry
from service.pages import PageQuery, page
from service.routes.sweeps import PROBLEMS
from service.schemas import PageOf
from service.schemas_people import AuditOut, audit_json
from service.store import Store

router = APIRouter(prefix="/v1/audit", tags=["audit"], dependencies=[bearer], responses=PROBLEMS)

LINES = "application/x-ndjson"
_LINE = {"type": "string", "description": "AuditOut as JSON, one a line"}
_AT_ONCE = 500
"""Rows of an export in memory."""


class AuditQuery(PageQuery):
    """Filters of the log; those that are given hold together."""

    actor: Annotated[str, Field(max_length=40)] | None = None
    """Id of a key."""
    target: Annotated[str, Field(max_length=127)] | None = None
    """Id of what was changed."""
    action: Annotated[str, Field(max_length=200)] | None = None
    """Method and route, e.g. POST /v1/sweeps."""
    outcome: Literal["done", "refused"] | None = None
    request_id: Annotated[str, Field(max_length=64)] | None = None
    since: Moment | None = None
    """From this time on."""
    until: Moment | None = None
    """Before this time."""
    project: Annotated[str, Field(max_length=63)] | None = None
    """Id or name; another than the caller's for operators alone."""
    format: Literal["json", "jsonl"] = "json"
    """jsonl: all of it, one JSON object a line, as with Accept: application/x-ndjson. Pages do not count then."""


@router.get("", responses={200: {"model": PageOf[AuditOut], "content": {LINES: {"schema": _LINE}}}})
def list_audit(
    request: Request, context: ContextDep, caller: CallerDep, query: Annotated[AuditQuery, Query()]
) -> Response:
    """What was changed and refused in the project, newest first."""
    with context.everything.read() as session:
        project = project_for(session, caller, query.project)
    store, wanted = context.within(project).store, _filtered(query)
    if query.format == "jsonl" or LINES in request.headers.get("accept", ""):
        return StreamingResponse(_lines(store, wanted, query), media_type=LINES, headers={"cache-control": "no-store"})
    with store.read() as session:
        found = session.scalars(_after(wanted, query, query.after).limit(query.size + 1)).all()
    return page(request, [audit_json(row) for row in found], query)


def _filtered(query: AuditQuery) -> Select[AuditEntry]:
    wanted = select(AuditEntry)
    same: dict[Any, str | None] = {
        AuditEntry.actor: query.actor,
        AuditEntry.object: query.target,
        AuditEntry.action: query.action,
        AuditEntry.outcome: query.outcome,
        AuditEntry.request_id: query.request_id,
    }
    for column, value in same.items():
        if value is not None:
            wanted = wanted.where(column == value)
    if query.since is not None:
        wanted = wanted.where(AuditEntry.created_at >= query.since)
    if query.until is not None:
        wanted = wanted.where(AuditEntry.created_at < query.until)
    return wanted


def _after(wanted: Select[AuditEntry], query: AuditQuery, after: str | None) -> Select[AuditEntry]:
    down = query.order == "desc"
    if after is not None:
        wanted = wanted.where(AuditEntry.id < after if down else AuditEntry.id > after)
    return wanted.order_by(AuditEntry.id.desc() if down else AuditEntry.id)


def _lines(store: Store, wanted: Select[AuditEntry], query: AuditQuery) -> Iterator[bytes]:
    """Short transactions, one after another: a slow reader holds none open."""
    after = query.after
    while True:
        with store.read() as session:
            found = session.scalars(_after(wanted, query, after).limit(_AT_ONCE)).all()
        yield b"".join(to_json(audit_json(row)) + b"\n" for row in found)
        if len(found) < _AT_ONCE:
            return
        after = found[-1].id
