"""The HTTP side of one deployment: OpenAI's three endpoints over an engine. Knows neither Ray nor torch.

It has no keys of its own: the service's gateway checks them and forwards, and nothing else may reach this port.
"""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from service.serving.engines.base import Engine, EngineError, FinishReason, Sampling
from service.serving.openai import (
    MAX_BODY_BYTES,
    SSE_DONE,
    Answer,
    ChatRequest,
    CompletionRequest,
    WireError,
    model_entry,
    model_list,
    sse,
    unknown_model,
)
from simpo.errors import SimPOError

_log = logging.getLogger(__name__)


def create_data_plane(
    engine: Engine, *, name: str, revision: int, created: int, max_new_tokens: int | None = None
) -> FastAPI:
    """The application that answers for the model `name`.

    Args:
        engine: the loaded model.
        name: what clients must put into `model`.
        revision: shown as `system_fingerprint`: answers to one seed may differ between revisions.
        created: Unix time, for /v1/models.
        max_new_tokens: most tokens of one answer; None: as many as the context holds.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    limit = engine.context_length if max_new_tokens is None else max_new_tokens
    fingerprint = f"rev-{revision}"

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return model_list(name, created)

    @app.get("/v1/models/{model}")
    async def get_model(model: str) -> dict[str, Any]:
        _check_model(model, name)
        return model_entry(name, created)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        chat = ChatRequest.parse(await _body(request))
        _check_model(chat.model, name)
        prompt_ids = await _encoded(lambda: engine.encode_chat([m.turn() for m in chat.messages]), "messages")
        sampling = chat.sampling(len(prompt_ids), engine.context_length, limit)
        answer = Answer(name, chat=True, fingerprint=fingerprint, include_usage=chat.include_usage)
        return await _respond(engine, prompt_ids, sampling, answer, stream=chat.stream)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        completion = CompletionRequest.parse(await _body(request))
        _check_model(completion.model, name)
        prompt_ids = await _encoded(lambda: _prompt_ids(engine, completion), "prompt")
        sampling = completion.sampling(len(prompt_ids), engine.context_length, limit)
        answer = Answer(name, chat=False, fingerprint=fingerprint, include_usage=completion.include_usage)
        return await _respond(engine, prompt_ids, sampling, answer, stream=completion.stream)

    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


async def _body(request: Request) -> bytes:
    """The whole body. Raises WireError when it is larger than any prompt of a sane context."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise WireError(f"the body exceeds {MAX_BODY_BYTES // 2**20} MiB; shorten it", code="too_large", status=413)
    return bytes(body)


def _check_model(wanted: str, served: str) -> None:
    if wanted != served:
        raise unknown_model(wanted, served)


async def _encoded(encode: Callable[[], list[int]], field: str) -> list[int]:
    """Prompt ids, made outside the event loop. Raises WireError when the template refuses the prompt."""
    try:
        return await run_in_threadpool(encode)
    except SimPOError as error:
        raise WireError(str(error), field, "invalid_value") from error


def _prompt_ids(engine: Engine, request: CompletionRequest) -> list[int]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return engine.encode_text(prompt)
    if isinstance(prompt[0], str):
        return engine.encode_text(prompt[0])
    ids = [int(token) for token in prompt]
    if min(ids) < 0 or max(ids) >= engine.vocab_size:
        raise WireError(f"prompt: token ids are 0 to {engine.vocab_size - 1}", "prompt", "invalid_value")
    return ids


async def _respond(
    engine: Engine, prompt_ids: list[int], sampling: Sampling, answer: Answer, *, stream: bool
) -> Response:
    if stream:
        events = _events(engine, prompt_ids, sampling, answer)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    text, tokens = "", 0
    finish_reason: FinishReason = "length"
    # aclosing: a request that is cancelled (its client went away) stops the engine's work for it.
    async with aclosing(engine.stream(prompt_ids, sampling)) as pieces:
        async for piece in pieces:
            text += piece.text
            tokens += piece.num_tokens
            finish_reason = piece.finish_reason or finish_reason
    return JSONResponse(answer.whole(text, finish_reason, len(prompt_ids), tokens))


async def _events(engine: Engine, prompt_ids: list[int], sampling: Sampling, answer: Answer) -> AsyncGenerator[str]:
    """The events of a stream. Its status is already sent, so a failure becomes an error event in place of [DONE]."""
    tokens = 0
    try:
        async with aclosing(engine.stream(prompt_ids, sampling)) as pieces:
            if answer.chat:
                yield answer.opening()
            async for piece in pieces:
                tokens += piece.num_tokens
                if piece.text:
                    yield answer.part(piece.text)
                if piece.finish_reason:
                    yield answer.closing(piece.finish_reason)
    except EngineError as error:
        yield sse(_engine_fault(error).body())
        return
    if answer.include_usage:
        yield answer.usage(len(prompt_ids), tokens)
    yield SSE_DONE


def _engine_fault(error: EngineError) -> WireError:
    return WireError(str(error), code="engine_error", status=500)


async def _on_wire_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, WireError)
    return JSONResponse(error.body(), error.status)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    fault = WireError(f"{request.method} {request.url.path}: {error.detail}", status=error.status_code)
    return JSONResponse(fault.body(), error.status_code, headers=error.headers)


async def _on_engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    return JSONResponse(_engine_fault(error).body(), 500)


async def _on_bug(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    fault = WireError("internal error; the server's log has the cause", code="internal_error", status=500)
    return JSONResponse(fault.body(), 500)


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Any]] = {
    WireError: _on_wire_error,
    HTTPException: _on_http_error,
    EngineError: _on_engine_error,
    Exception: _on_bug,
}
