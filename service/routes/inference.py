"""The data plane at the same address (embedded mode): OpenAI's routes, passed on to Ray Serve as they stream."""

import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

import httpx
from fastapi import APIRouter, Request
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from service.canary_watch import candidate
from service.context import CallerDep, Context, ContextDep, bearer
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
from service.serving.declared import DesiredDeployment
from service.serving.disconnect import CLIENT_CLOSED_REQUEST, ClientGone, unless_gone
from service.serving.meter import Ticket
from service.serving.onward import Onward, whole
from service.serving.watched import Watched
from service.states import DeploymentState

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1", tags=["inference"], dependencies=[bearer])

_PASSED_ON = ("content-type", "retry-after", "cache-control", VERSION)


@router.post("/chat/completions", responses=STREAMED, openapi_extra=asked(ChatIn))
async def chat_completions(request: Request, context: ContextDep) -> Response:
    """OpenAI's chat completions, by the deployment that `model` names; streamed when asked for."""
    return await _forward(request, context, "/v1/chat/completions")


@router.post("/completions", responses=STREAMED, openapi_extra=asked(CompletionIn))
async def completions(request: Request, context: ContextDep) -> Response:
    """OpenAI's completions, likewise."""
    return await _forward(request, context, "/v1/completions")


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


async def _forward(request: Request, context: Context, path: str) -> Response:
    body = await request.body()
    values = _values(body)
    deployment = await _known(context, request.state.caller.project, values["model"])
    try:
        ticket = await context.meter.admit(request.state.caller, asked_tokens(values))
    except TooMany:
        context.metrics.limited.inc()
        raise
    watched = Watched(context.metrics, context.clock, deployment.name)
    account = Account(partial(_settle, request, deployment, ticket, watched), watched.events)
    limits = {} if ticket is None else ticket.headers
    # The caller's key stays here: Serve knows no keys. Identity: the bytes are passed on as they are.
    headers = {
        ASKED: "1",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "x-request-id": request.state.request_id,
        **traceparent(),
    }
    try:
        answer, reading = await _answer(request, context, deployment, values, path, headers)
    except ClientGone:
        watched.close()
        # What was held for it stays taken: whoever leaves early asks for as much as whoever waits.
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except Unavailable:
        account.close()
        raise
    account.begin(answer.headers)
    watched.begin(answer.status_code, answer.headers.get(VERSION, ""))
    passed = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
    streamed = _is_stream(answer)
    if reading is not None:
        reading.begin(answer.status_code, streamed=streamed)
    if streamed:
        chunks = _events(answer, deployment.name, account, reading)
        return StreamingResponse(chunks, answer.status_code, {**passed, **limits})
    account.whole(answer.content)
    if reading is not None:
        reading.whole(answer.content)
        reading.close()
    return Response(answer.content, answer.status_code, {**passed, **limits})


async def _answer(
    request: Request,
    context: Context,
    deployment: Deployment,
    values: Mapping[str, Any],
    path: str,
    headers: Mapping[str, str],
) -> tuple[httpx.Response, Reading | None]:
    """The head of a stream, or a whole answer. While there is a candidate: of whom, too.

    What a candidate cannot answer, the champion does: nobody is worse off for being drawn. Raises Unavailable (503).
    """
    cause: Exception | None = None
    for declared, reading in await _drawn(context, deployment, values):
        wakes = deployment.idle_s is not None and declared.variant is None
        if wakes:
            await unless_gone(request, context.waking.wait(deployment.id, deployment.name, declared.route_prefix))
        if reading is not None:
            reading.ask()
        sent = _sent(context.models, declared.route_prefix + path, await request.body(), headers)
        try:
            answer = await unless_gone(request, sent)
        except httpx.HTTPError as error:
            cause = error
        else:
            # Anything else is in Serve's own words (no replica, too many waiting), not in the model's.
            worded = answer.headers.get("content-type", "").startswith(("application/json", "text/event-stream"))
            if worded and (answer.status_code < 500 or declared.variant is None):
                if wakes:
                    context.waking.saw(deployment.id)
                return answer, reading
            await answer.aclose()
        if reading is not None:
            reading.fail()
            reading.close()
    raise _no_answer(deployment.name) from cause


async def _sent(models: Onward, path: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
    """Of a stream its head, any other answer whole."""
    answer = await models.ask("POST", path, content=body, headers=headers)
    return answer if _is_stream(answer) else await whole(answer)


def _is_stream(answer: httpx.Response) -> bool:
    return bool(answer.headers.get("content-type", "").startswith("text/event-stream"))


async def _drawn(
    context: Context, deployment: Deployment, values: Mapping[str, Any]
) -> Sequence[tuple[DesiredDeployment, Reading | None]]:
    """Who is to answer a request, and who in their place."""
    champion = desired(deployment)
    live = await context.arms.live(deployment.id)
    if live is None:
        return [(champion, None)]
    tries = [(champion, Reading(context.arms, live, "champion", context.clock))]
    if live.arm(values.get("user")) == "candidate":
        reading = Reading(context.arms, live, "candidate", context.clock)
        tries.insert(0, (candidate(champion, live.revision, champion.model_path), reading))
    return tries


async def _events(answer: httpx.Response, name: str, account: Account, reading: Reading | None) -> AsyncIterator[bytes]:
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
    except httpx.HTTPError as error:
        log.warning("the stream of %s broke: %s", name, type(error).__name__)
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
    request: Request, deployment: Deployment, ticket: Ticket | None, watched: Watched, read: int, written: int
) -> None:
    watched.close(read, written)
    request.state.told = {"model": deployment.name, "prompt_tokens": read, "completion_tokens": written}
    if ticket is not None:
        ticket.settle(read + written)


async def _chunks(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
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


async def _known(context: Context, project: str, name: str) -> Deployment:
    """A deployment of the caller's, from memory where it was READY a moment ago: no query, no thread."""
    for row in context.directory.remembered(project) or ():
        if row.name == name and _ready(row):
            return row
    changes = context.directory.changes
    rows = await run_in_threadpool(_deployments, context)
    context.directory.remember(project, rows, changes)
    return _chosen(rows, name)


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
