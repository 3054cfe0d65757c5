"""A judge endpoint on loopback that speaks the OpenAI protocol, and breaks it as it is told to."""

import asyncio
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Script = Callable[[dict[str, Any], int], Any]
"""(request's body, its number from 0) -> the judge's words, a Response, or a dict to send. "hang": never answers."""


class JudgeServer:
    """What was asked of it, and where it is."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = 0
        self.most_at_once = 0
        self.url = ""
        self.stopping = threading.Event()

    async def answer(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            said = self.script(body, number)
            if said == "hang":
                while not (self.stopping.is_set() or await request.is_disconnected()):
                    await asyncio.sleep(0.02)
                return Response(status_code=500)
        finally:
            self.at_once -= 1
        if isinstance(said, Response):
            return said
        return JSONResponse(said if isinstance(said, dict) else completion(said))


def completion(text: str, **changes: Any) -> dict[str, Any]:
    """A chat completion as the protocol has it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **changes}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "c", "object": "chat.completion", "model": "judge", "choices": [choice], "usage": usage}


def with_logprobs(top: list[tuple[str, float]]) -> dict[str, Any]:
    """A chat completion of one token with its alternatives."""
    alternatives = [{"token": token, "logprob": p, "bytes": None} for token, p in top]
    return completion(top[0][0], logprobs={"content": [{**alternatives[0], "top_logprobs": alternatives}]})


def parts(body: dict[str, Any]) -> tuple[str, str, str]:
    """(instruction, answer_a, answer_b) of a request."""
    found = re.findall(r"<(instruction|answer_a|answer_b)>\n(.*?)\n</\1>", body["messages"][1]["content"], re.DOTALL)
    assert [name for name, _ in found] == ["instruction", "answer_a", "answer_b"]
    return found[0][1], found[1][1], found[2][1]


def by_score(score: Callable[[str, str], float]) -> Script:
    """The answer with the higher score of (instruction, answer) is better."""

    def script(body: dict[str, Any], number: int) -> str:
        instruction, first, second = parts(body)
        a, b = score(instruction, first), score(instruction, second)
        return f"I looked at both.\n[[{'A' if a > b else 'B' if a < b else 'C'}]]"

    return script


@contextmanager
def judge_server(script: Script) -> Iterator[JudgeServer]:
    """Runs in a thread for the length of the context."""
    state = JudgeServer(script)
    app = Starlette(routes=[Route("/v1/chat/completions", state.answer, methods=["POST"])])
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    state.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    thread.start()
    try:
        yield state
    finally:
        state.stopping.set()
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive()


def raw(content: str | bytes, status: int = 200, **headers: str) -> Response:
    """Any body at all."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(content, status_code=status, headers=named, media_type="application/json")


def broken_bodies() -> list[bytes]:
    """Status 200, and no chat completion."""
    shapes: list[Any] = [
        None,
        [],
        "[[A]]",
        {},
        {"choices": []},
        {"choices": None},
        {"choices": [None]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": ["[[A]]"]}}]},
        {"choices": [{"message": {"content": {"text": "[[A]]"}}}]},
        {"choices": [{"message": "[[A]]"}]},
        {"choices": [{"text": "[[A]]"}]},
        {"error": {"message": "[[A]]"}},
    ]
    texts = [json.dumps(shape).encode() for shape in shapes]
    return [*texts, b"", b"[[A]]", b'{"choices": [', b"\xff\xfe", b"[" * 100_000, b"<html>[[A]]</html>"]
