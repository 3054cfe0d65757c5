"""The history of a sweep or run: one URL, as a JSON list or as a stream that goes on to the end."""

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from service import events
from service.context import Context, ContextDep, bearer
from service.pages import PageQuery, page
from service.routes.sweeps import PROBLEMS, find

sweeps = APIRouter(prefix="/v1/sweeps", tags=["sweeps"], dependencies=[bearer], responses=PROBLEMS)
runs = APIRouter(prefix="/v1/runs", tags=["runs"], dependencies=[bearer], responses=PROBLEMS)

LastEventId = Annotated[str | None, Header(description="Resume a stream after this event.")]


class EventQuery(PageQuery):
    """Of the list and the stream."""

    order: Literal["asc", "desc"] = "asc"
    stream: bool = False
    """True: server-sent events, as with Accept: text/event-stream."""


@sweeps.get("/{sweep_id}/events")
async def sweep_events(
    request: Request,
    sweep_id: str,
    context: ContextDep,
    query: Annotated[EventQuery, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    """What happened, oldest first. As a stream: each event once, a comment every 15 s, `event: done` at the end."""
    return await _events(request, "sweep", sweep_id, context, query, last_event_id)


@runs.get("/{run_id}/events")
async def run_events(
    request: Request,
    run_id: str,
    context: ContextDep,
    query: Annotated[EventQuery, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    """What happened, likewise."""
    return await _events(request, "run", run_id, context, query, last_event_id)


async def _events(
    request: Request, kind: str, parent_id: str, context: Context, query: EventQuery, last_event_id: str | None
) -> Response:
    if query.stream or "text/event-stream" in request.headers.get("accept", ""):
        # The header is newer: a client that resumes by itself keeps its first URL.
        after = events.seq_of(last_event_id, "/last-event-id") or events.seq_of(query.after)
        await run_in_threadpool(_check, context, kind, parent_id)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(context.hub.stream(parent_id, after), headers=headers, media_type="text/event-stream")
    return await run_in_threadpool(_listed, request, kind, parent_id, context, query)


def _check(context: Context, kind: str, parent_id: str) -> None:
    with context.store.read() as session:
        find(session, kind, parent_id)


def _listed(request: Request, kind: str, parent_id: str, context: Context, query: EventQuery) -> Response:
    after = events.seq_of(query.after)
    with context.store.read() as session:
        find(session, kind, parent_id)
        found = events.read(session, parent_id, after=after, limit=query.size + 1, order=query.order)
    return page(request, [events.to_json(event) for event in found], query)
