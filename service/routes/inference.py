"""The data plane at the same address (embedded mode): OpenAI's routes, passed on to Ray Serve as they stream."""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import APIRouter, Request
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from service.context import CallerDep, Context, ContextDep, bearer
from service.errors import BadRequest, NotFound, Unavailable
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
from service.serving.disconnect import CLIENT_CLOSED_REQUEST, ClientGone, unless_gone
from service.states import DeploymentState

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1", tags=["inference"], dependencies=[bearer])

_PASSED_ON = ("content-type", "retry-after", "cache-control")


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
    deployment = await run_in_threadpool(_find, context, _model_name(body))
    # The caller's key stays here: Serve knows no keys. Identity: the bytes are passed on as they are.
    headers = {
        "content-type": "application/json",
        "accept-encoding": "identity",
        "x-request-id": request.state.request_id,
        **traceparent(),
    }
    prefix = desired(deployment).route_prefix
    onward = context.models.build_request("POST", prefix + path, content=body, headers=headers)
    try:
        answer = await unless_gone(request, context.models.send(onward, stream=True))
    except httpx.HTTPError as error:
        raise _no_answer(deployment.name) from error
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if not answer.headers.get("content-type", "").startswith(("application/json", "text/event-stream")):
        # Serve's own words (no replica, too many waiting), not the model's.
        await answer.aclose()
        raise _no_answer(deployment.name)
    passed = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
    streamed = passed["content-type"].startswith("text/event-stream")
    chunks = _events(answer, deployment.name) if streamed else _chunks(answer)
    return StreamingResponse(chunks, answer.status_code, passed)


async def _events(answer: httpx.Response, name: str) -> AsyncIterator[bytes]:
    """Whole events, as they come. A replica that dies leaves a stream without its end: then the last event says so."""
    held, last = b"", b""
    try:
        async for chunk in _chunks(answer):
            whole, end, held = (held + chunk).rpartition(b"\n\n")
            if whole:
                last = whole.rpartition(b"\n\n")[2]
                yield whole + end
    except httpx.HTTPError as error:
        log.warning("the stream of %s broke: %s", name, type(error).__name__)
    if not last.startswith((b"data: [DONE]", b'data: {"error"')):
        text = f"The model {name!r} stopped in the middle of its answer; ask again."
        fault = {"message": text, "type": "server_error", "param": None, "code": "model_unavailable"}
        yield b"data: " + json.dumps({"error": fault}).encode() + b"\n\n"


async def _chunks(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        # Also when the client went away: the replica then stops generating.
        await answer.aclose()


def _model_name(body: bytes) -> str:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.") from None
    name = values.get("model") if isinstance(values, dict) else None
    if not isinstance(name, str) or not name:
        raise BadRequest("Name a deployment in `model`.", errors=[("/model", "is required")])
    return name


def _find(context: Context, name: str) -> Deployment:
    rows = _deployments(context)
    for row in rows:
        if row.name == name and _ready(row):
            return row
        if row.name == name and row.state == DeploymentState.PENDING:
            raise Unavailable(f"The model {name!r} is not ready yet: {row.message}", code="model_not_ready")
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
