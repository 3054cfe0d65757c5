"""Histories: one URL each, as a JSON list, or as a stream that goes on to the end of what has one."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from service import events
from service.context import Context, ContextDep, bearer
from service.datasets import ready
from service.models import COMPARISON, EVALUATION, Deployment
from service.models_registry import Promotion
from service.pages import PageQuery, page
from service.promotions import no_such_promotion
from service.registry import model_named
from service.routes.sweeps import PROBLEMS, find
from service.rows import no_such
from service.schemas import EventOut, PageOf

sweeps = APIRouter(prefix="/v1/sweeps", tags=["sweeps"], dependencies=[bearer], responses=PROBLEMS)
runs = APIRouter(prefix="/v1/runs", tags=["runs"], dependencies=[bearer], responses=PROBLEMS)
rest = APIRouter(prefix="/v1", dependencies=[bearer], responses=PROBLEMS)

_PROMOTION = "promotion"
_CURSOR = {"pattern": r"^evt_\d{1,15}$"}
LastEventId = Annotated[
    str | None, Header(description="Resume a stream after this event.", json_schema_extra=_CURSOR)
]
LISTED: dict[int | str, dict[str, Any]] = {200: {"model": PageOf[EventOut]}}


class ListQuery(PageQuery):
    """Of the list."""

    order: Literal["asc", "desc"] = "asc"
    after: Annotated[str, Field(json_schema_extra=_CURSOR)] | None = None


class EventQuery(ListQuery):
    """Of the list and the stream."""

    stream: bool = False
    """True: server-sent events, as with Accept: text/event-stream."""


@sweeps.get("/{sweep_id}/events", responses=LISTED)
async def sweep_events(
    request: Request,
    sweep_id: str,
    context: ContextDep,
    query: Annotated[EventQuery, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    """What happened, oldest first. As a stream: each event once, a comment every 15 s, `event: done` at the end."""
    return await _events(request, "sweep", sweep_id, context, query, last_event_id)


@runs.get("/{run_id}/events", responses=LISTED)
async def run_events(
    request: Request,
    run_id: str,
    context: ContextDep,
    query: Annotated[EventQuery, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    """What happened, likewise."""
    return await _events(request, "run", run_id, context, query, last_event_id)


@rest.get("/evaluations/{evaluation_id}/events", responses=LISTED, tags=["evaluations"])
async def evaluation_events(
    request: Request,
    evaluation_id: str,
    context: ContextDep,
    query: Annotated[EventQuery, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    """What happened, likewise."""
    return await _events(request, EVALUATION, evaluation_id, context, query, last_event_id)


@rest.get("/comparisons/{comparison_id}/events", responses=LISTED, tags=["comparisons"])
async def comparison_events(
    request: Request,
    comparison_id: str,
    context: ContextDep,
    query: Annotated[EventQuery, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    """What happened, likewise: how far the methods have come."""
    return await _events(request, COMPARISON, comparison_id, context, query, last_event_id)


@rest.get("/promotions/{promotion_id}/events", responses=LISTED, tags=["promotions"])
async def promotion_events(
    request: Request,
    promotion_id: str,
    context: ContextDep,
    query: Annotated[EventQuery, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    """Every step with its evidence, likewise. The stream ends where no step is left but a rollback."""
    return await _events(request, _PROMOTION, promotion_id, context, query, last_event_id)


@rest.get("/deployments/{deployment_id}/events", responses=LISTED, tags=["deployments"])
def deployment_events(
    request: Request, deployment_id: str, context: ContextDep, query: Annotated[ListQuery, Query()]
) -> Response:
    """What happened to a deployment, as a list."""
    with context.store.read() as session:
        if session.get(Deployment, deployment_id) is None:
            raise no_such("deployment", deployment_id)
    return _page(request, deployment_id, context, query)


@rest.get("/datasets/{dataset_id}/events", responses=LISTED, tags=["datasets"])
def dataset_events(
    request: Request, dataset_id: str, context: ContextDep, query: Annotated[ListQuery, Query()]
) -> Response:
    """What happened to a dataset, as a list, until it is deleted; from then on the audit log has it."""
    with context.store.read() as session:
        ready(session, dataset_id)
    return _page(request, dataset_id, context, query)


@rest.get("/registry/models/{model}/events", responses=LISTED, tags=["registry"])
def model_events(
    request: Request, model: str, context: ContextDep, query: Annotated[ListQuery, Query()]
) -> Response:
    """Versions registered and aliases moved, as a list."""
    with context.store.read() as session:
        model_id = model_named(session, model).id
    return _page(request, model_id, context, query)


async def _events(
    request: Request, kind: str, parent_id: str, context: Context, query: EventQuery, last_event_id: str | None
) -> Response:
    resumed = events.seq_of(last_event_id, "/last-event-id")
    if query.stream or "text/event-stream" in request.headers.get("accept", ""):
        # The header is newer: a client that resumes by itself keeps its first URL.
        after = resumed or events.seq_of(query.after)
        await run_in_threadpool(_check, context, kind, parent_id)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(context.hub.stream(parent_id, after), headers=headers, media_type="text/event-stream")
    return await run_in_threadpool(_listed, request, kind, parent_id, context, query)


def _check(context: Context, kind: str, parent_id: str) -> None:
    with context.store.read() as session:
        if kind != _PROMOTION:
            find(session, kind, parent_id)
        elif session.get(Promotion, parent_id) is None:
            raise no_such_promotion(parent_id)


def _listed(request: Request, kind: str, parent_id: str, context: Context, query: EventQuery) -> Response:
    _check(context, kind, parent_id)
    return _page(request, parent_id, context, query)


def _page(request: Request, parent_id: str, context: Context, query: ListQuery) -> Response:
    after = events.seq_of(query.after)
    with context.store.read() as session:
        found = events.read(session, parent_id, after=after, limit=query.size + 1, order=query.order)
    return page(request, [events.to_json(event) for event in found], query)
