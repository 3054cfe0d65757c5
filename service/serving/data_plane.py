"""The HTTP side of one application: OpenAI's three endpoints over engines. Knows neither Ray nor torch.

It has no keys of its own: the service's gateway checks them and forwards, and nothing else may reach this port.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from service.serving.accounts import ASKED, PROMPT_TOKENS
from service.serving.answering import Question, events, prompt_tokens, whole
from service.serving.catalogue import VERSION, Catalogue, unknown_model
from service.serving.disconnect import CLIENT_CLOSED_REQUEST, ClientGone, unless_gone
from service.serving.engine_metrics import EngineMetrics
from service.serving.engines.base import Engine, EngineBusy, EngineError, Pieces, SchemaRefused
from service.serving.openai import ChatRequest, CompletionRequest
from service.serving.openai_answers import Answer, model_list
from service.serving.openai_strict import MAX_BODY_BYTES, WireError
from simpo.errors import SimPOError

_log = logging.getLogger(__name__)


def create_data_plane(
    catalogue: Catalogue, *, max_new_tokens: int | None = None, metrics: EngineMetrics | None = None
) -> FastAPI:
    """The application that answers for the models of a catalogue.

    Args:
        catalogue: the models.
        max_new_tokens: most tokens of one answer; None: as many as the context holds.
        metrics: is told how the answers go.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.metrics = metrics

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return model_list(catalogue.cards())

    @app.get("/v1/models/{model:path}")
    async def get_model(model: str) -> dict[str, Any]:
        cards = {card.name: card for card in catalogue.cards()}
        if model not in cards:
            raise unknown_model(model, list(cards))
        return cards[model].body()

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        chat = ChatRequest.parse(await _body(request))
        served = await run_in_threadpool(catalogue.open, chat.model)
        engine = served.engine
        chat.check_vocabulary(engine.vocab_size)
        await _refuse_schema(engine, chat.json_schema)
        prompt_ids = await _encoded(lambda: engine.encode_chat([m.turn() for m in chat.messages]), "messages")
        limit = engine.context_length if max_new_tokens is None else max_new_tokens
        sampling = chat.sampling(len(prompt_ids), engine.context_length, limit)
        answer = Answer(
            chat.model,
            chat=True,
            fingerprint=served.fingerprint,
            include_usage=chat.include_usage,
            scored=chat.logprobs,
        )
        questions = [Question(prompt_ids=prompt_ids, sampling=one) for one in chat.each(sampling)]
        return await _respond(request, engine, questions, answer, stream=chat.stream)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        completion = CompletionRequest.parse(await _body(request))
        served = await run_in_threadpool(catalogue.open, completion.model)
        engine = served.engine
        completion.check_vocabulary(engine.vocab_size)
        limit = engine.context_length if max_new_tokens is None else max_new_tokens
        questions = []
        for prompt in completion.prompts:
            prompt_ids = await _encoded(partial(_prompt_ids, engine, prompt), "prompt")
            sampling = completion.sampling(len(prompt_ids), engine.context_length, limit)
            questions += [Question(prompt_ids=prompt_ids, sampling=one) for one in completion.each(sampling)]
        answer = Answer(
            completion.model,
            chat=False,
            fingerprint=served.fingerprint,
            include_usage=completion.include_usage,
            scored=completion.logprobs is not None,
        )
        return await _respond(request, engine, questions, answer, stream=completion.stream)

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


async def _refuse_schema(engine: Engine, schema: str | None) -> None:
    """Raises WireError for a JSON schema that this engine cannot hold answers to."""
    if schema is None:
        return
    try:
        await run_in_threadpool(engine.check_schema, schema)
    except SchemaRefused as error:
        raise WireError(f"response_format: {error}", "response_format", "invalid_value") from error


async def _encoded(encode: Callable[[], list[int]], field: str) -> list[int]:
    """Prompt ids, made outside the event loop. Raises WireError when the template refuses the prompt."""
    try:
        ids = await run_in_threadpool(encode)
    except SimPOError as error:
        raise WireError(str(error), field, "invalid_value") from error
    if not ids:
        raise WireError(f"{field}: there is no token in it to go on from; write something", field, "invalid_value")
    return ids


def _prompt_ids(engine: Engine, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        return engine.encode_text(prompt)
    if min(prompt) < 0 or max(prompt) >= engine.vocab_size:
        raise WireError(f"prompt: token ids are 0 to {engine.vocab_size - 1}", "prompt", "invalid_value")
    return prompt


async def _respond(
    request: Request, engine: Engine, questions: list[Question], answer: Answer, *, stream: bool
) -> Response:
    metrics: EngineMetrics | None = request.app.state.metrics
    try:
        engine.admit(len(questions))
    except EngineBusy:
        if metrics is not None:
            metrics.refused(answer.model, answer.fingerprint, len(questions))
        raise
    streams: list[Pieces] = [engine.stream(question.prompt_ids, question.sampling) for question in questions]
    if metrics is not None:
        streams = [
            metrics.watch(stream, answer.model, answer.fingerprint, len(question.prompt_ids))
            for stream, question in zip(streams, questions, strict=True)
        ]
    if stream:
        told = ASKED in request.headers
        usage = {PROMPT_TOKENS: str(prompt_tokens(questions))} if told else {}
        headers = {VERSION: answer.fingerprint, "Cache-Control": "no-cache", **usage}
        parts = events(streams, questions, answer, tell_tokens=told)
        return StreamingResponse(parts, media_type="text/event-stream", headers=headers)
    body = await unless_gone(request, whole(streams, questions, answer))
    return JSONResponse(body, headers={VERSION: answer.fingerprint})


async def _on_wire_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, WireError)
    return JSONResponse(error.body(), error.status)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    fault = WireError(f"{request.method} {request.url.path}: {error.detail}", status=error.status_code)
    return JSONResponse(fault.body(), error.status_code, headers=error.headers)


async def _on_busy(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineBusy)
    fault = WireError(str(error), code="engine_overloaded", status=503)
    return JSONResponse(fault.body(), fault.status, headers={"Retry-After": str(error.retry_after_s)})


async def _on_engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    return JSONResponse(WireError(str(error), code="engine_error", status=500).body(), 500)


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _on_bug(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    fault = WireError("internal error; the server's log has the cause", code="internal_error", status=500)
    return JSONResponse(fault.body(), 500)


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Any]] = {
    WireError: _on_wire_error,
    HTTPException: _on_http_error,
    EngineBusy: _on_busy,
    EngineError: _on_engine_error,
    ClientGone: _on_client_gone,
    Exception: _on_bug,
}
