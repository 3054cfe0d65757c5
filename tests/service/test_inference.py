"""The proxy to the models: which deployment, what passes and what stays, streaming, errors in OpenAI's shape."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from service.gate import MAX_BODY
from service.settings import Settings
from tests.service.conftest import Plane, make_plane
from tests.service.test_deployments import deploy, succeeded

CHAT = {"model": "best", "messages": [{"role": "user", "content": "hi"}]}


class Chunks(httpx.AsyncByteStream):
    """A body in pieces; notes that it was closed."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece

    async def aclose(self) -> None:
        self.closed = True


def said(status: int, body: Any) -> httpx.Response:
    """A JSON answer that has not been read yet."""
    stream = Chunks([json.dumps(body).encode()])
    return httpx.Response(status, headers={"content-type": "application/json"}, stream=stream)


class Serve(httpx.AsyncBaseTransport):
    """Ray Serve's HTTP proxy: answers what the test says."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.answer: Callable[[], httpx.Response] = lambda: said(200, {"object": "chat.completion"})

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answer()


@pytest.fixture
def serve() -> Serve:
    return Serve()


@pytest.fixture
def served(settings: Settings, serve: Serve) -> Iterator[Plane]:
    """A plane with the deployment `best` READY and `slow` PENDING."""
    for plane in make_plane(settings, serve=serve):
        sweep_id = succeeded(plane)
        deploy(plane, sweep_id)
        plane.turn()
        plane.deployer.ready = False
        slow = deploy(plane, sweep_id, "slow").json()["id"]
        best = next(iter(plane.deployer.declared))
        plane.turn()
        plane.deployer.become(best, "READY")
        assert plane.deployer.declared.keys() == {best, slow}
        plane.turn()
        yield plane


def test_the_body_goes_to_the_deployment_that_model_names(served: Plane, serve: Serve) -> None:
    answer = served.client.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.json()) == (200, {"object": "chat.completion"})
    (request,) = serve.requests
    assert request.url.path == "/d/best/v1/chat/completions"
    assert json.loads(request.content) == CHAT
    assert "authorization" not in request.headers, "Serve never sees a key"
    assert request.headers["x-request-id"] == answer.headers["x-request-id"]
    served.client.post("/v1/completions", json={"model": "best", "prompt": "hi"})
    assert serve.requests[1].url.path == "/d/best/v1/completions"


def test_streams_pass_as_they_come_and_are_closed(served: Plane, serve: Serve) -> None:
    body = Chunks([b"data: {}\n\n", b"data: [DONE]\n\n"])
    serve.answer = lambda: httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body)
    answer = served.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == "data: {}\n\ndata: [DONE]\n\n" and body.closed


class Broken(Chunks):
    """A body that breaks off, or just ends, within an event."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__([b'data: {"choices": []}\n\nda', b'ta: {"choices": [1]}\n\ndata: {"cho'])
        self.error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [httpx.ReadError("reset"), None], ids=["it breaks", "it just ends"])
def test_a_stream_without_its_end_says_so_in_an_event_of_its_own(
    served: Plane, serve: Serve, error: Exception | None
) -> None:
    body = Broken(error)
    serve.answer = lambda: httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body)
    answer = served.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    *events, last, end = answer.text.split("\n\n")
    assert events == ['data: {"choices": []}', 'data: {"choices": [1]}'] and end == ""
    fault = json.loads(last.removeprefix("data: "))["error"]
    assert fault["code"] == "model_unavailable" and "ask again" in fault["message"] and body.closed


def test_the_models_own_last_error_is_not_told_twice(served: Plane, serve: Serve) -> None:
    body = Chunks([b'data: {"error":{"message":"diverged"}}\n\n'])
    serve.answer = lambda: httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body)
    answer = served.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.text.count("data: ") == 1


def test_the_models_own_refusals_pass(served: Plane, serve: Serve) -> None:
    refusal = {"error": {"message": "n is not supported", "type": "invalid_request_error", "param": "n", "code": "x"}}
    serve.answer = lambda: said(400, refusal)
    answer = served.client.post("/v1/chat/completions", json={**CHAT, "n": 2})
    assert (answer.status_code, answer.json()) == (400, refusal)


def gone() -> httpx.Response:
    """Nobody listens."""
    raise httpx.ConnectError("refused")


@pytest.mark.parametrize(
    "answer",
    [
        lambda: httpx.Response(503, text="Request dropped: backpressure"),
        lambda: httpx.Response(404, text="Path '/d/best' not found"),
        lambda: httpx.Response(500, text="Internal Server Error"),
        gone,
        lambda: httpx.Response(200, headers={"content-type": "application/json"}, stream=Broken(httpx.ReadError(""))),
    ],
)
def test_serves_own_trouble_is_unavailable(served: Plane, serve: Serve, answer: Callable[[], httpx.Response]) -> None:
    serve.answer = answer
    refused = served.client.post("/v1/chat/completions", json=CHAT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
    assert refused.headers["retry-after"]


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({**CHAT, "model": "nope"}, 404, "model", "Deployed: best"),
        ({**CHAT, "model": "../best"}, 404, "model", "does not exist"),
        ({**CHAT, "model": "slow"}, 503, None, "not ready yet"),
        ({"messages": []}, 400, "model", "Name a deployment"),
        ({**CHAT, "model": 3}, 400, "model", "Name a deployment"),
        ([], 400, "model", "Name a deployment"),
    ],
)
def test_a_model_that_cannot_answer(
    served: Plane, serve: Serve, body: Any, status: int, param: str, words: str
) -> None:
    answer = served.client.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert words in error["message"]
    assert serve.requests == []


def test_models_that_answer_now(served: Plane) -> None:
    (model,) = served.client.get("/v1/models").json()["data"]
    assert model == {"id": "best", "object": "model", "created": model["created"], "owned_by": "simpo"}
    assert served.client.get("/v1/models/best").json() == model
    assert served.client.get("/v1/models/slow").status_code == 503
    assert served.client.get("/v1/models/nope").json()["error"]["type"] == "not_found_error"


def test_the_official_client_reads_our_errors(served: Plane) -> None:
    client = openai.OpenAI(base_url="http://testserver/v1", api_key=served.key, http_client=served.client)
    assert [model.id for model in client.models.list()] == ["best"]
    with pytest.raises(openai.NotFoundError, match="Deployed: best") as caught:
        client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.request_id is not None
    bad = openai.OpenAI(base_url="http://testserver/v1", api_key="sk-simpo-bad", http_client=served.client)
    with pytest.raises(openai.AuthenticationError, match="Authorization: Bearer"):
        bad.models.list()


def test_what_passes_the_framework_by_is_watched_and_refused_as_all_else(served: Plane, serve: Serve) -> None:
    """The gate and its surroundings stand around both ways; other methods of the path are the framework's."""
    path = "/v1/chat/completions"
    answer = served.client.post(path, json=CHAT, headers={"x-request-id": "straight"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "straight")
    other = served.client.get(path)
    assert (other.status_code, other.headers["allow"]) == (405, "POST")
    nobody = served.client.post(path, json=CHAT, headers={"authorization": "Bearer sk-simpo-nobody"})
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "unauthorized")
    large = served.client.post(path, content=b"x" * (MAX_BODY + 1))
    assert large.status_code == 413 and large.headers["x-content-type-options"] == "nosniff"
    told = served.client.get("/metrics").text
    for route, status in ((path, 200), (path, 405), ("unmatched", 401), ("unmatched", 413)):
        labels = f'method="{"GET" if status == 405 else "POST"}",route="{route}",status="{status}"'
        assert f"simpo_http_requests_total{{{labels}}} 1.0" in told
    assert len(serve.requests) == 1
