"""Limits of inference over HTTP: by key and project, without a query a request; and what is never logged."""

import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import event

from service.metrics import Metrics
from service.serving.rates import DAY_S
from service.settings import Settings
from tests.fakes import FakeClock
from tests.service.conftest import Plane, make_plane
from tests.service.test_deployments import deploy, succeeded
from tests.service.test_inference import CHAT, Chunks, Serve, said
from tests.service.test_keys import as_, made, project

SAID = {"object": "chat.completion", "usage": {"prompt_tokens": 30, "completion_tokens": 20, "total_tokens": 50}}


@pytest.fixture
def serve() -> Serve:
    serve = Serve()
    serve.answer = lambda: said(200, SAID)
    return serve


@pytest.fixture
def served(settings: Settings, serve: Serve) -> Iterator[Plane]:
    """A plane with the deployment `best` READY."""
    for plane in make_plane(settings, serve=serve):
        deploy(plane, succeeded(plane))
        plane.turn()
        plane.deployer.become(next(iter(plane.deployer.declared)), "READY")
        plane.turn()
        plane.clock.jump(-(plane.clock.now().timestamp() % DAY_S))  # the windows begin here
        yield plane


def key_with(plane: Plane, **limits: int) -> dict[str, Any]:
    return made(plane, scopes=["inference"], limits=limits)


def ask(plane: Plane, key: str, **fields: Any) -> Any:
    return plane.client.post("/v1/chat/completions", json={**CHAT, **fields}, headers=as_(plane, key))


def test_requests_a_minute_with_openais_headers_and_error(served: Plane, serve: Serve) -> None:
    key = key_with(served, requests_per_minute=2)["key"]
    first, second, third = (ask(served, key) for _ in range(3))
    assert [answer.status_code for answer in (first, second, third)] == [200, 200, 429]
    shown = [a.headers["x-ratelimit-remaining-requests"] for a in (first, second, third)]
    assert shown == ["1", "0", "0"] and first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-reset-requests"] == "2m0s"
    assert "x-ratelimit-limit-tokens" not in first.headers
    error = third.json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("rate_limit_exceeded", "rate_limit_error", None)
    assert "2 requests per minute" in error["message"] and third.headers["retry-after"] == "90"
    assert len(serve.requests) == 2, "what is refused goes nowhere"
    served.clock.advance(float(third.headers["retry-after"]))
    assert ask(served, key).status_code == 200
    client = openai.OpenAI(base_url="http://testserver/v1", api_key=key, http_client=served.client, max_retries=0)
    with pytest.raises(openai.RateLimitError, match="requests per minute") as caught:
        client.chat.completions.create(model="best", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "rate_limit_exceeded"


def test_tokens_are_held_before_and_settled_after(served: Plane, serve: Serve) -> None:
    key = key_with(served, tokens_per_minute=100)["key"]
    first = ask(served, key, max_tokens=60)
    assert first.headers["x-ratelimit-remaining-tokens"] == "40", "what it may take is held while it is answered"
    second = ask(served, key, max_tokens=50)
    assert second.status_code == 200, "50 were taken, not the 60 that were held"
    refused = ask(served, key)
    assert refused.status_code == 429 and "100 tokens per minute" in refused.json()["error"]["message"]
    never = ask(served, key, max_tokens=101)
    assert never.status_code == 429 and never.headers["x-should-retry"] == "false"
    assert "retry-after" not in never.headers and len(serve.requests) == 2


def test_a_day_holds_longer_than_a_minute(served: Plane) -> None:
    key = key_with(served, tokens_per_minute=1000, tokens_per_day=60)["key"]
    first = ask(served, key)
    assert first.headers["x-ratelimit-limit-tokens"] == "60", "the tighter of the two is shown"
    ask(served, key)
    served.clock.advance(3600)
    refused = ask(served, key)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 20 * 3600


def test_a_model_that_did_not_answer_gives_the_tokens_back(served: Plane, serve: Serve) -> None:
    key = key_with(served, tokens_per_minute=100)["key"]
    serve.answer = lambda: httpx.Response(503, text="Request dropped: backpressure")
    for _ in range(3):
        assert ask(served, key, max_tokens=90).status_code == 503
    serve.answer = lambda: said(400, {"error": {"message": "no"}})
    assert [ask(served, key, max_tokens=90).status_code for _ in range(2)] == [400, 400]


def stream(*events: bytes) -> httpx.Response:
    headers = {"content-type": "text/event-stream", "x-simpo-prompt-tokens": "30"}
    return httpx.Response(200, headers=headers, stream=Chunks([event + b"\n\n" for event in events]))


def left_of(plane: Plane, key: str) -> int:
    """Tokens, as the next answer says before its own."""
    return int(ask(plane, key).headers["x-ratelimit-remaining-tokens"])


def test_a_stream_counts_what_the_replica_says_and_the_client_sees_nothing_of_it(served: Plane, serve: Serve) -> None:
    key = key_with(served, tokens_per_minute=100)["key"]
    serve.answer = lambda: stream(b"data: {}", b"data: {}", b": tokens 20", b"data: [DONE]")
    answer = ask(served, key, stream=True)
    assert answer.text == "data: {}\n\ndata: {}\n\ndata: [DONE]\n\n"
    assert serve.requests[0].headers["x-simpo-usage"] == "1"
    assert not [name for name in answer.headers if name.startswith("x-simpo")]
    assert left_of(served, key) == 50


def test_a_stream_that_breaks_off_counts_as_far_as_it_came(served: Plane, serve: Serve) -> None:
    key = key_with(served, tokens_per_minute=100)["key"]
    serve.answer = lambda: stream(b"data: {}", b"data: {}")
    assert "model_unavailable" in ask(served, key, stream=True).text
    assert left_of(served, key) == 68


def test_a_projects_limit_is_of_all_its_keys(served: Plane) -> None:
    path = "/v1/projects/default/quotas"
    set_ = served.client.patch(path, json={"requests_per_minute": 3}, headers={"if-match": "*"})
    assert set_.status_code == 200 and set_.json()["inference"]["requests_per_minute"] == 3
    one, other = key_with(served, requests_per_minute=2)["key"], key_with(served)["key"]
    assert [ask(served, one).status_code for _ in range(3)] == [200, 200, 429]
    assert [ask(served, other).status_code for _ in range(2)] == [200, 429]
    assert "this project" in ask(served, other).json()["error"]["message"]
    lifted = served.client.patch(path, json={"requests_per_minute": "unlimited"}, headers={"if-match": "*"}).json()
    assert lifted["inference"]["requests_per_minute"] is None
    served.clock.advance(5)
    assert ask(served, other).status_code == 200


def test_limits_of_a_key_change_and_show(served: Plane) -> None:
    key = key_with(served, requests_per_minute=1)
    none = {"requests_per_minute": None, "tokens_per_minute": None, "tokens_per_day": None}
    assert key["limits"] == {**none, "requests_per_minute": 1}
    assert ask(served, key["key"]).status_code == 200 and ask(served, key["key"]).status_code == 429
    path = f"/v1/keys/{key['id']}/limits"
    changed = served.client.post(path, json={"requests_per_minute": None, "tokens_per_day": 9.0})
    assert changed.json()["limits"] == {**none, "tokens_per_day": 9}
    served.clock.advance(5)
    first, second = ask(served, key["key"]), ask(served, key["key"])
    assert (first.status_code, second.status_code) == (200, 429), "a new limit counts from when it was said"
    assert served.client.post(path, json={"tokens_per_day": None}).json()["limits"] == none
    served.clock.advance(5)
    assert ask(served, key["key"]).status_code == 200
    for body in ({"requests_per_minute": 0}, {"tokens_per_day": "9"}, {"requests": 1}):
        assert served.client.post(path, json=body).status_code == 422
    served.client.post(f"/v1/keys/{key['id']}/revoke")
    assert served.client.post(path, json={}).status_code == 409
    admin = made(served, role="admin")["key"]
    operator = made(served, role="operator")["id"]
    refused = served.client.post(f"/v1/keys/{operator}/limits", json={}, headers=as_(served, admin))
    assert refused.status_code == 403 and refused.json()["code"] == "more_rights"


def test_no_query_a_request_and_a_revoked_key_fails_within_five_seconds(served: Plane) -> None:
    key = key_with(served, requests_per_minute=1000, tokens_per_minute=100_000)
    assert ask(served, key["key"]).status_code == 200
    statements: list[str] = []
    engine = served.store._engine

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    # The meter tells others once a second; those queries are its own thread's, not a request's.
    event.listen(engine, "before_cursor_execute", note)
    try:
        assert [ask(served, key["key"]).status_code for _ in range(20)] == [200] * 20
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert not [text for text in statements if "inference_use" not in text and not text.startswith("BEGIN")]
    assert served.client.post(f"/v1/keys/{key['id']}/revoke").status_code == 200
    served.clock.advance(5)
    assert ask(served, key["key"]).status_code == 401


def test_a_deployment_that_goes_is_gone_at_once(served: Plane) -> None:
    key = key_with(served)["key"]
    assert ask(served, key).status_code == 200
    assert served.client.delete("/v1/models/best").status_code == 200
    assert ask(served, key).status_code == 404


def test_nothing_that_is_asked_or_answered_is_logged(
    served: Plane, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    key = key_with(served, requests_per_minute=5)["key"]
    prompt, answered = "my-private-question", "its-private-answer"
    body = {"messages": [{"role": "user", "content": prompt}]}
    answer = {**SAID, "choices": [{"message": {"content": answered}}]}
    data = b"data: " + json.dumps(answer).encode()
    answers = [
        lambda: said(200, answer),
        lambda: said(400, {"error": {"message": f"{prompt} is too long"}}),
        lambda: stream(data),  # breaks off
        lambda: stream(data, b"data: [DONE]"),
        lambda: httpx.Response(500, text=f"Traceback: {prompt}"),
        lambda: said(200, answer),  # over the limit
    ]
    statuses = []
    with caplog.at_level(logging.DEBUG):
        for each in answers:
            serve.answer = each
            statuses.append(ask(served, key, **body).status_code)
        served.client.post("/v1/completions", content=f'{{"prompt": "{prompt}"', headers=as_(served, key))
    assert statuses == [200, 400, 200, 200, 503, 429]
    lines = [record.__dict__ for record in caplog.records]
    assert len([line for line in lines if line["message"] == "request"]) == 7
    assert prompt not in str(lines) and answered not in str(lines)
    told = next(line["fields"] for line in lines if line["message"] == "request")
    assert (told["model"], told["prompt_tokens"], told["completion_tokens"]) == ("best", 30, 20)


def samples(plane: Plane) -> dict[str, float]:
    """What /metrics says of models."""
    lines = plane.client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if "simpo_inference" in line[:16]}


def test_what_prometheus_learns_of_answers(served: Plane, serve: Serve) -> None:
    key = key_with(served, requests_per_minute=3)["key"]

    class Slow(Chunks):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for piece in self.pieces:
                served.clock.advance(0.2)
                yield piece

    opening = b'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
    token = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    headers = {"content-type": "text/event-stream", "x-simpo-prompt-tokens": "30", "x-simpo-version": "rev-7"}
    pieces = [opening, token, token + token, b": tokens 3\n\n", b"data: [DONE]\n\n"]
    serve.answer = lambda: httpx.Response(200, headers=headers, stream=Slow(pieces))
    ask(served, key, stream=True)
    serve.answer = lambda: httpx.Response(503, text="no replica")
    assert [ask(served, key).status_code for _ in range(3)] == [503, 503, 429]
    told, of = samples(served), 'model="best",version="rev-7"'
    assert told['simpo_inference_requests_total{model="best",status="200",version="rev-7"}'] == 1
    assert told[f'simpo_inference_first_token_seconds_sum{{{of}}}'] == pytest.approx(0.4)
    assert told[f'simpo_inference_next_token_seconds_count{{{of}}}'] == 2
    assert told[f'simpo_inference_next_token_seconds_sum{{{of}}}'] == pytest.approx(0.2)
    assert [told[f'simpo_inference_tokens_total{{kind="{kind}",{of}}}'] for kind in ("prompt", "completion")] == [30, 3]
    assert told["simpo_inference_in_flight"] == 0 and told["simpo_inference_limited_total"] == 1


def test_labels_are_bounded() -> None:
    metrics = Metrics(FakeClock())
    labels = {metrics.inference_labels(f"m{n}", "rev-1") for n in range(500)}
    assert len(labels) == 101 and ("other", "other") in labels
    assert metrics.inference_labels("m0", "rev-1") == ("m0", "rev-1")


def test_limits_stay_within_their_project(served: Plane) -> None:
    north = project(served)
    served.client.patch(f"/v1/projects/{north}/quotas", json={"requests_per_minute": 1}, headers={"if-match": "*"})
    theirs = made(served, role="viewer", project="north")["key"]
    assert ask(served, theirs).status_code == 404, "the model is another project's, and nothing is counted"
    assert ask(served, key_with(served, requests_per_minute=9)["key"]).status_code == 200
