"""The data plane at the same address (embedded mode): OpenAI's routes, passed on to Ray Serve as they stream."""

import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from service.canary_watch import candidate
from service.context import CallerDep, Context, ContextDep, Gateway, bearer, gateway_of, narrowed
from service.errors import BadRequest, NotFound, TooMany, Unavailable
from service.logs import traceparent
from service.models import Deployment
from service.rollout import desired
from service.rows import want_deletion
from service.schemas_tuning import (
    STREAMED,
    ChatIn,
    CompletionIn,
    DeletedOut,
    ServedModelOut,
    ServedModelsOut,
    asked,
)
from service.serving.accounts import ASKED, Account, asked_tokens
from service.serving.arms import Reading
from service.serving.catalogue import VERSION
from service.serving.directory import Served
from service.serving.disconnect import CLIENT_CLOSED_REQUEST, ClientGone, unless_gone
from service.serving.meter import Ticket
from service.serving.onward import Answer, NoAnswer, Onward
from service.serving.watched import Watched
from service.states import DeploymentState

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1", tags=["inference"], dependencies=[bearer])

_PASSED_ON = ("content-type", "retry-after", "cache-control", VERSION)


@router.post("/chat/completions", responses=STREAMED, openapi_extra=asked(ChatIn))
async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions, by the deployment that `model` names; streamed when asked for."""
    return await _forward(request, "/v1/chat/completions")


@router.post("/completions", responses=STREAMED, openapi_extra=asked(CompletionIn))
async def completions(request: Request) -> Response:
    """OpenAI's completions, likewise."""
    return await _forward(request, "/v1/completions")


@router.get("/models", responses={200: {"model": ServedModelsOut}})
def list_models(context: ContextDep) -> Response:
    """Deployments that answer now."""
    return JSONResponse({"object": "list", "data": [_model(row) for row in _deployments(context) if _ready(row)]})


@router.get("/models/{model}", responses={200: {"model": ServedModelOut}})
def get_model(model: str, context: ContextDep) -> Response:
    """One of them."""
    return JSONResponse(_model(_find(context, model)))


@router.delete("/models/{model}", responses={200: {"model": DeletedOut}})
def delete_model(model: str, context: ContextDep, caller: CallerDep) -> Response:
    """Take a deployment away, as OpenAI's client does: by its name, without If-Match. Its checkpoint stays."""
    with context.store.write() as session:
        wanted = select(Deployment).where(Deployment.name == model, Deployment.state != DeploymentState.DELETED)
        row = session.scalar(wanted.with_for_update())
        if row is None:
            raise NotFound(f"The model {model!r} does not exist.", code="model_not_found")
        if row.desired != "DELETE":
            want_deletion(session, row, caller.key_id, context.clock.now())
    context.reconciler.wake()
    return JSONResponse({"id": model, "object": "model", "deleted": True})


STRAIGHT = [
    route
    for route in router.routes
    if isinstance(route, APIRoute) and route.endpoint in (chat_completions, completions)
]
"""Routes that are not to pass through the framework."""


async def _forward(request: Request, path: str) -> Response:
    gateway, state = gateway_of(request), request.state
    caller = state.caller
    body = await request.body()
    values = _values(body)
    deployment = await _known(request, gateway, values["model"])
    try:
        ticket = await gateway.meter.admit(caller, partial(asked_tokens, values))
    except TooMany:
        gateway.metrics.limited.inc()
        raise
    watched = Watched(gateway.metrics, gateway.clock, deployment.name)
    account = Account(partial(_settle, request, deployment, ticket, watched), watched.events)
    limits = {} if ticket is None else ticket.headers
    # The caller's key stays here: Serve knows no keys. Identity: the bytes are passed on as they are.
    headers = {
        ASKED: "1",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "x-request-id": state.request_id,
        **traceparent(),
    }
    try:
        sending = _Sending(path=path, body=body, headers=headers)
        answer, whole, reading = await _answer(request, gateway, deployment, values, sending)
    except ClientGone:
        watched.close()
        # What was held for it stays taken: whoever leaves early asks for as much as whoever waits.
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except Unavailable:
        account.close()
        raise
    account.begin(answer.headers)
    watched.begin(answer.status, answer.headers.get(VERSION, ""))
    passed = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
    if reading is not None:
        reading.begin(answer.status, streamed=whole is None)
    if whole is None:
        chunks = _events(answer, deployment.name, account, reading)
        return StreamingResponse(chunks, answer.status, {**passed, **limits})
    account.whole(whole)
    if reading is not None:
        reading.whole(whole)
        reading.close()
    return Response(whole, answer.status, {**passed, **limits})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sending:
    """What goes to whoever answers."""

    path: str
    body: bytes
    headers: Mapping[str, str]


async def _answer(
    request: Request, gateway: Gateway, deployment: Served, values: Mapping[str, Any], sending: _Sending
) -> tuple[Answer, bytes | None, Reading | None]:
    """The head of an answer, and its body where it is no stream. While there is a candidate: of whom, too.

    What a candidate cannot answer, the champion does: nobody is worse off for being drawn. Raises Unavailable (503).
    """
    cause: Exception | None = None
    for prefix, reading in await _drawn(gateway, deployment, values):
        is_champion = prefix == deployment.prefix
        wakes = deployment.idle_s is not None and is_champion
        if wakes:
            await unless_gone(request, gateway.waking.wait(deployment.id, deployment.name, prefix))
        if reading is not None:
            reading.ask()
        try:
            answer, whole = await unless_gone(request, _sent(gateway.models, prefix, sending))
        except NoAnswer as error:
            cause = error
        else:
            # Anything else is in Serve's own words (no replica, too many waiting), not in the model's.
            worded = answer.headers.get("content-type", "").startswith(("application/json", "text/event-stream"))
            if worded and (answer.status < 500 or is_champion):
                if wakes:
                    gateway.waking.saw(deployment.id)
                return answer, whole, reading
            await answer.aclose()
        if reading is not None:
            reading.fail()
            reading.close()
    raise _no_answer(deployment.name) from cause


async def _sent(models: Onward, prefix: str, sending: _Sending) -> tuple[Answer, bytes | None]:
    """Of a stream its head, any other answer whole."""
    answer = await models.ask("POST", prefix + sending.path, content=sending.body, headers=sending.headers)
    is_stream = answer.headers.get("content-type", "").startswith("text/event-stream")
    return answer, None if is_stream else await answer.whole()


async def _drawn(
    gateway: Gateway, deployment: Served, values: Mapping[str, Any]
) -> Sequence[tuple[str, Reading | None]]:
    """Where Serve has who is to answer a request, and who in their place."""
    live = await gateway.arms.live(deployment.id)
    if live is None:
        return [(deployment.prefix, None)]
    tries = [(deployment.prefix, Reading(gateway.arms, live, "champion", gateway.clock))]
    if live.arm(values.get("user")) == "candidate":
        champion = deployment.champion
        reading = Reading(gateway.arms, live, "candidate", gateway.clock)
        tries.insert(0, (candidate(champion, live.revision, champion.model_path).route_prefix, reading))
    return tries


async def _events(answer: Answer, name: str, account: Account, reading: Reading | None) -> AsyncIterator[bytes]:
    """Whole events, as they come. A replica that dies leaves a stream without its end: then the last event says so."""
    held, last = b"", b""
    try:
        async for chunk in _chunks(answer):
            whole, end, held = (held + chunk).rpartition(b"\n\n")
            whole = account.events(whole) if whole else whole
            if whole:
                last = whole.rpartition(b"\n\n")[2]
                if reading is not None:
                    reading.events(whole)
                yield whole + end
    except NoAnswer as error:
        log.warning("the stream of %s broke: %s", name, error)
    finally:
        account.close()
    broken = not last.startswith((b"data: [DONE]", b'data: {"error"'))
    if reading is not None:
        if broken:
            reading.fail()
        reading.close()
    if broken:
        text = f"The model {name!r} stopped in the middle of its answer; ask again."
        fault = {"message": text, "type": "server_error", "param": None, "code": "model_unavailable"}
        yield b"data: " + json.dumps({"error": fault}).encode() + b"\n\n"


def _settle(
    request: Request, deployment: Served, ticket: Ticket | None, watched: Watched, read: int, written: int
) -> None:
    watched.close(read, written)
    request.state.told = {"model": deployment.name, "prompt_tokens": read, "completion_tokens": written}
    if ticket is not None:
        ticket.settle(read + written)


async def _chunks(answer: Answer) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.pieces():
            yield chunk
    finally:
        # Also when the client went away: the replica then stops generating.
        await answer.aclose()


def _values(body: bytes) -> dict[str, Any]:
    """The body, with a name in `model`. Raises BadRequest (400)."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.") from None
    name = values.get("model") if isinstance(values, dict) else None
    if not isinstance(name, str) or not name:
        raise BadRequest("Name a deployment in `model`.", errors=[("/model", "is required")])
    found: dict[str, Any] = values
    return found


async def _known(request: Request, gateway: Gateway, name: str) -> Served:
    """A deployment of the caller's, from memory where it was READY a moment ago: no query, no thread."""
    project = request.state.caller.project
    remembered = gateway.directory.remembered(project)
    if remembered is not None and name in remembered:
        return remembered[name]
    changes = gateway.directory.changes
    rows = await run_in_threadpool(_deployments, narrowed(request))
    served = {row.name: _served(row) for row in rows if _ready(row)}
    gateway.directory.remember(project, served, changes)
    return served[_chosen(rows, name).name]


def _served(row: Deployment) -> Served:
    champion = desired(row)
    return Served(id=row.id, name=row.name, prefix=champion.route_prefix, champion=champion, idle_s=row.idle_s)


def _find(context: Context, name: str) -> Deployment:
    return _chosen(_deployments(context), name)


def _chosen(rows: Sequence[Deployment], name: str) -> Deployment:
    for row in rows:
        if row.name == name and _ready(row):
            return row
        if row.name == name and row.state == DeploymentState.PENDING:
            raise Unavailable(f"The model {name!r} is not ready yet: {row.message}", code="model_not_ready")
        if row.name == name and row.state == DeploymentState.FAILED and row.ready_revision is not None:
            raise _no_answer(name)  # it answered before: Serve starts its replicas again
    names = ", ".join(row.name for row in rows if _ready(row)) or "none yet"
    raise NotFound(
        f"The model {name!r} does not exist. Deployed: {names}.",
        code="model_not_found",
        errors=[("/model", "is no deployment")],
    )


def _deployments(context: Context) -> list[Deployment]:
    with context.store.read() as session:
        wanted = select(Deployment).where(Deployment.state != DeploymentState.DELETED).order_by(Deployment.id)
        return list(session.scalars(wanted))


def _ready(row: Deployment) -> bool:
    return row.state == DeploymentState.READY and row.desired == "SERVE"


def _model(row: Deployment) -> dict[str, Any]:
    created = int(row.created_at.timestamp())
    return {"id": row.name, "object": "model", "created": created, "owned_by": "simpo"}


def _no_answer(name: str) -> Unavailable:
    return Unavailable(f"The model {name!r} does not answer now.", code="model_unavailable")
