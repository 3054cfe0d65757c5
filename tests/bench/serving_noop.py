"""A model that says the same at once, whatever it is asked: what is left is the way to it.

`build` is its Serve application; `plain` the same answer by uvicorn alone.
"""

from typing import Any

from fastapi import FastAPI, Request, Response
from ray import serve

ANSWER = (
    b'{"id":"chatcmpl-0","object":"chat.completion","created":1,"model":"noop","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"ok"},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,'
    b'"completion_tokens":1,"total_tokens":2}}'
)
QUESTION = {"model": "noop", "messages": [{"role": "user", "content": "ok?"}]}


def plain() -> FastAPI:
    """The application alone."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        await request.body()
        return Response(ANSWER, media_type="application/json")

    return app


class Noop:
    """It, as a replica."""

    def __serve_build_asgi_app__(self) -> FastAPI:
        return plain()


def build(args: dict[str, Any]) -> serve.Application:
    """One replica that takes as much as comes."""
    deployment: Any = serve.deployment(serve.ingress()(Noop), name="Noop", max_ongoing_requests=256)
    return deployment.bind()
