"""The client against scripted answers: what it sends, repeats, gives up on, and says."""

import json
import pickle
from collections.abc import Callable, Iterator

import httpx
import pytest

from service.client import Client
from service.client_errors import ApiError, ClientError, ServiceUnreachable, WaitTimeout, error_from_response
from service.sse import read_sse

pytestmark = pytest.mark.quick

Handler = Callable[[httpx.Request], httpx.Response]


class Service:
    """Answers calls from a script, one entry a call, and remembers the calls. The last entry repeats."""

    def __init__(self, *script: httpx.Response | Exception) -> None:
        self.script = [*script]
        self.calls: list[httpx.Request] = []
        self.pauses: list[float] = []
        self.now = 0.0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls.append(request)
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def client(self) -> Client:
        return Client(
            "http://service.test/",
            "key-1",
            transport=httpx.MockTransport(self),
            sleep=self.sleep,
            clock=lambda: self.now,
        )


def ok(body: object, status: int = 200, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=body, headers=headers)


def problem(status: int, code: str, detail: str, **members: object) -> httpx.Response:
    return ok({"status": status, "code": code, "detail": detail, "request_id": "req_9", **members}, status)


def stream(*chunks: bytes, cut: bool = False) -> httpx.Response:
    def body() -> Iterator[bytes]:
        yield from chunks
        if cut:
            raise httpx.ReadError("connection reset")

    return httpx.Response(200, content=body(), headers={"content-type": "text/event-stream"})


def event(number: int, kind: str = "trial.rung") -> bytes:
    body = {"id": f"evt_{number}", "type": kind, "level": "info", "message": f"m{number}", "data": {"step": number}}
    return f"id: evt_{number}\nevent: {kind}\ndata: {json.dumps(body)}\n\n".encode()


DONE = b"event: done\ndata: {}\n\n"
SWEEP = {"id": "swp_1", "object": "sweep", "name": "a", "state": "PENDING", "reason": "QUEUED", "extra": 1}


def test_create_sends_key_spec_and_an_idempotency_key() -> None:
    service = Service(ok(SWEEP, 202))
    sweep = service.client().create_sweep({"name": "a"})
    assert (sweep.id, sweep.name, sweep.state, sweep.reason) == ("swp_1", "a", "PENDING", "QUEUED")
    assert sweep.body["extra"] == 1
    (call,) = service.calls
    assert (call.method, str(call.url)) == ("POST", "http://service.test/v1/sweeps")
    assert call.headers["authorization"] == "Bearer key-1"
    assert len(call.headers["idempotency-key"]) >= 32
    assert json.loads(call.content) == {"name": "a"}


def test_a_post_is_repeated_with_the_same_idempotency_key() -> None:
    service = Service(httpx.ReadTimeout("slow"), httpx.Response(503), ok(SWEEP, 202))
    assert service.client().create_sweep({"name": "a"}).id == "swp_1"
    assert len({call.headers["idempotency-key"] for call in service.calls}) == 1
    assert len(service.calls) == 3
    assert service.pauses == [0.25, 0.5]


def test_retry_after_is_obeyed() -> None:
    service = Service(httpx.Response(429, headers={"retry-after": "7"}), ok(SWEEP))
    service.client().get("sweeps", "swp_1")
    assert service.pauses == [7.0]


@pytest.mark.parametrize("status", [401, 404, 409, 412, 422, 500])
def test_what_cannot_get_better_is_not_repeated(status: int) -> None:
    service = Service(problem(status, "some_code", "The sentence."))
    with pytest.raises(ApiError) as caught:
        service.client().create_sweep({})
    assert len(service.calls) == 1
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (status, "some_code", "req_9")
    assert "The sentence" in str(caught.value)
    assert caught.value.users_mistake == (status < 500)


def test_a_conflict_in_flight_is_repeated() -> None:
    service = Service(problem(409, "in_flight", "wait", retryable=True), ok(SWEEP))
    assert service.client().create_sweep({}).id == "swp_1"


def test_validation_errors_name_each_field() -> None:
    faults = [{"pointer": "/space/beta/low", "message": "must be > 0"}, {"pointer": "", "message": "odd"}]
    service = Service(problem(422, "validation", "Invalid request", errors=faults))
    with pytest.raises(ApiError) as caught:
        service.client().create_sweep({})
    assert str(caught.value) == "space.beta.low: must be > 0; odd"


def test_openai_shaped_errors_are_read_too() -> None:
    error = error_from_response(
        404,
        {"error": {"message": "no model x", "param": "model", "code": "model_not_found"}},
        {"x-request-id": "req_2"},
    )
    assert (str(error), error.code, error.request_id) == ("model: no model x", "model_not_found", "req_2")


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"[1]", b""])
def test_an_answer_that_is_no_json_is_still_one_sentence(body: bytes) -> None:
    service = Service(httpx.Response(500, content=body))
    with pytest.raises(ApiError, match="HTTP 500"):
        service.client().get("sweeps", "x")


def test_nobody_there() -> None:
    service = Service(httpx.ConnectError("refused"))
    with pytest.raises(ServiceUnreachable, match=r"no answer from http://service\.test .*simpo up"):
        service.client().get("sweeps", "x")
    assert len(service.calls) == 4


def test_ids_cannot_leave_their_place_in_the_path() -> None:
    service = Service(ok(SWEEP))
    service.client().get("sweeps", "../deployments?x")
    assert service.calls[0].url.raw_path == b"/v1/sweeps/..%2Fdeployments%3Fx"


def test_pages_are_followed_to_the_end() -> None:
    service = Service(
        ok({"data": [{"id": "a"}, {"id": "b"}], "has_more": True, "next": "b"}), ok({"data": [{"id": "c"}]})
    )
    assert [sweep.id for sweep in service.client().iterate("sweeps", state="RUNNING")] == ["a", "b", "c"]
    assert dict(service.calls[1].url.params) == {"limit": "20", "state": "RUNNING", "after": "b"}


def test_find_falls_back_to_the_name() -> None:
    service = Service(problem(404, "not_found", "No sweep a."), ok({"data": [SWEEP]}), ok(SWEEP | {"result": {}}))
    assert service.client().find("sweeps", "a").body["result"] == {}
    assert service.calls[1].url.params["name"] == "a"
    with pytest.raises(ApiError, match="No sweep b"):
        Service(problem(404, "not_found", "No sweep b."), ok({"data": []})).client().find("sweeps", "b")


def test_delete_names_the_version_it_saw() -> None:
    service = Service(ok({"id": "dep_1"}, 200, etag='"3"'), ok({}))
    service.client().delete_deployment("dep_1")
    assert [call.method for call in service.calls] == ["GET", "DELETE"]
    assert service.calls[1].headers["if-match"] == '"3"'


def test_wait_until() -> None:
    service = Service(ok(SWEEP), ok(SWEEP | {"state": "RUNNING"}), ok(SWEEP | {"state": "SUCCEEDED"}))
    assert service.client().wait("sweeps", "swp_1").state == "SUCCEEDED"
    with pytest.raises(WaitTimeout, match=r"swp_1 is still PENDING \(QUEUED\) after 5 s"):
        Service(ok(SWEEP)).client().wait("sweeps", "swp_1", timeout_s=5)


@pytest.mark.parametrize("cut_after", [0, 1, 2, 3])
def test_a_broken_stream_gives_each_event_once(cut_after: int) -> None:
    events = [event(number) for number in range(1, 4)]
    service = Service(stream(*events[:cut_after], cut=True), stream(*events[cut_after:], DONE))
    seen = [item.id for item in service.client().events("sweeps", "swp_1")]
    assert seen == ["evt_1", "evt_2", "evt_3"]
    assert service.calls[0].headers["accept"] == "text/event-stream"
    assert service.calls[1].headers.get("last-event-id") == (f"evt_{cut_after}" if cut_after else None)


def test_a_stream_that_ends_without_done_is_taken_up_again() -> None:
    service = Service(stream(event(1)), httpx.ConnectError("restarting"), httpx.Response(503), stream(event(2), DONE))
    assert [item.data["step"] for item in service.client().events("sweeps", "swp_1")] == [1, 2]


def test_a_half_sent_event_is_asked_for_again() -> None:
    service = Service(stream(event(1), event(2)[:30], cut=True), stream(event(2), DONE))
    assert [item.id for item in service.client().events("sweeps", "swp_1")] == ["evt_1", "evt_2"]


def test_events_give_up_in_the_end() -> None:
    service = Service(stream(event(1)), httpx.ConnectError("refused"))
    events = service.client().events("sweeps", "swp_1", patience_s=30)
    assert next(events).id == "evt_1"
    with pytest.raises(ServiceUnreachable):
        next(events)
    assert 30 <= service.now < 60


def test_events_of_nothing_are_refused_at_once() -> None:
    with pytest.raises(ApiError):
        next(Service(problem(404, "not_found", "No such sweep.")).client().events("sweeps", "x"))


def test_chat_streams_text() -> None:
    chunk = 'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n'
    service = Service(
        stream(
            b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n',
            (chunk % "4").encode(),
            (chunk % "2").encode(),
            b'data: {"choices": []}\n\n',
            b"data: [DONE]\n\n",
        )
    )
    messages = [{"role": "user", "content": "hi"}]
    assert list(service.client().chat("winner", messages, temperature=0)) == ["4", "2"]
    assert json.loads(service.calls[0].content) == {
        "model": "winner",
        "messages": messages,
        "stream": True,
        "temperature": 0,
    }


def test_completions_stream_text() -> None:
    chunks = b'data: {"choices": [{"text": "4"}]}\n\ndata: {"choices": [{"text": ""}]}\n\ndata: [DONE]\n\n'
    service = Service(stream(chunks))
    assert list(service.client().complete("winner", "1+3=")) == ["4"]
    assert service.calls[0].url.path == "/v1/completions"


def test_chat_is_never_repeated() -> None:
    service = Service(httpx.ReadError("cut"))
    with pytest.raises(ServiceUnreachable):
        list(service.client().chat("winner", []))
    assert len(service.calls) == 1


def test_an_error_inside_a_chat_stream_is_raised() -> None:
    service = Service(stream(b'data: {"error": {"message": "engine died", "code": "internal"}}\n\n'))
    with pytest.raises(ApiError, match="engine died"):
        list(service.client().chat("winner", []))


def test_sse_lines() -> None:
    lines = [": ping", "", "id:7", "data: a", "data:b", "", "retry: 5", "", "event: done", "data: {}", "", "data: cut"]
    assert [(e.id, e.event, e.data) for e in read_sse(lines)] == [("7", "message", "a\nb"), ("", "done", "{}")]


@pytest.mark.parametrize(
    "error",
    [
        ApiError(422, "validation", "no", (("/a", "b"),), "req", False, 1.0),
        ServiceUnreachable("http://x", "refused"),
        WaitTimeout("sweeps", "swp_1", "PENDING", "QUEUED", 3.0),
    ],
)
def test_errors_survive_pickling(error: ClientError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
