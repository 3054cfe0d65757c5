"""The page of two models as a person uses it: a real browser, its buttons, and what the service holds afterwards."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.service.browser import Tab, needs_chromium, tab
from tests.service.conftest import Plane, make_plane
from tests.service.faults.world import wait
from tests.service.served import in_thread
from tests.service.test_deployments import deploy, succeeded

pytestmark = needs_chromium


class Talking(httpx.AsyncByteStream):
    """A stream in OpenAI's chunks; with `hold` its end does not come before somebody leaves."""

    def __init__(self, words: list[str], hold: bool, left: threading.Event) -> None:
        self._words, self._hold, self._left = words, hold, left

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number, word in enumerate(self._words):
            end = "stop" if number + 1 == len(self._words) and not self._hold else None
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": end}
            yield _event({"id": "chatcmpl-7", "system_fingerprint": "rev-1", "choices": [choice]})
        while self._hold:
            await asyncio.sleep(0.05)
        usage = {"prompt_tokens": 3, "completion_tokens": len(self._words), "total_tokens": 3 + len(self._words)}
        yield _event({"id": "chatcmpl-7", "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    async def aclose(self) -> None:
        self._left.set()


def _event(body: object) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


class Models(httpx.AsyncBaseTransport):
    """Ray Serve with two models; each says its own name."""

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []
        self.hold = False
        self.left = threading.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(await request.aread())
        self.asked.append(body)
        if body["messages"][-1]["content"] == "refuse":
            return httpx.Response(400, json={"error": {"message": "seed is not a whole number"}})
        said = Talking(["I am ", f"<b>{body['model']}</b>"], self.hold, self.left)
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=said)


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def plane(settings: Settings, models: Models) -> Iterator[Plane]:
    """With the deployments `base` and `best`, READY."""
    for made in make_plane(settings, serve=models):
        sweep_id = succeeded(made)
        for name in ("base", "best"):
            deploy(made, sweep_id, name)
        made.turn(2)
        yield made


@pytest.fixture
def page(plane: Plane, tmp_path: Path) -> Iterator[Tab]:
    """The page, with a key entered and both models found."""
    home = tmp_path / "browser"
    home.mkdir()
    with in_thread(plane.client.app, lifespan="off") as url, tab(f"{url}/try", home) as opened:
        opened.until("document.documentElement.dataset.ready === 'yes'")
        opened.fill("key", str(plane.client.headers["authorization"]).removeprefix("Bearer "))
        opened.until("!document.getElementById('right').disabled")
        assert opened.text("status") == "2 deployed."
        yield opened
        assert opened.errors == []


def test_both_are_asked_and_the_better_answer_is_kept(page: Tab, plane: Plane, models: Models) -> None:
    page.fill("system", "Be brief.")
    page.fill("temperature", "0")
    page.fill("prompt", "Who are you?")
    page.click("Ask both")
    page.click("Right is better")
    page.until("document.getElementById('status').innerText.startsWith('Kept')")
    for side, name in (("left", "base"), ("right", "best")):
        assert page.text(f"{side}-name") == name
        assert f"I am <b>{name}</b>" in page.text(f"{side}-turns"), "as text, not as markup"
        assert "2 tokens in" in page.text(f"{side}-turns")
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
    assert sorted(str(body["model"]) for body in models.asked) == ["base", "best"]
    assert all(body["messages"] == talk and body["temperature"] == 0 for body in models.asked)
    (kept,) = plane.client.get("/v1/feedback").json()["data"]
    assert (kept["answer"]["content"], kept["rejected"]["content"]) == ("I am <b>best</b>", "I am <b>base</b>")
    assert kept["messages"] == talk
    page.click("Bad")  # of the right one; the buttons of the pair have had their click
    wait(lambda: len(plane.client.get("/v1/feedback").json()["data"]) == 2)
    assert {row["rating"] for row in plane.client.get("/v1/feedback").json()["data"]} == {None, "down"}


def test_a_talk_goes_on_until_it_is_begun_anew(page: Tab, models: Models) -> None:
    for text in ("one", "two"):
        page.fill("prompt", text)
        page.click("Ask both")
        page.until("!document.getElementById('ask').disabled && document.getElementById('prompt').value === ''")
    roles = [[turn["role"] for turn in body["messages"]] for body in models.asked]  # type: ignore[attr-defined]
    assert roles == [["user"]] * 2 + [["user", "assistant", "user"]] * 2
    page.click("New talk")
    assert page.text("left-turns") == page.text("right-turns") == ""
    page.fill("prompt", "three")
    page.click("Ask both")
    page.until("!document.getElementById('ask').disabled")  # both have answered
    assert "tokens in" in page.text("right-turns")
    assert [len(body["messages"]) for body in models.asked[-2:]] == [1, 1]  # type: ignore[arg-type]


def test_stop_ends_the_answers_here_and_at_the_models(page: Tab, models: Models) -> None:
    models.hold = True
    page.fill("prompt", "Who are you?")
    page.click("Ask both")
    page.until("document.getElementById('left-turns').innerText.includes('<b>base</b>')")
    assert not models.left.is_set()
    page.click("Stop")
    page.until("document.getElementById('left-turns').innerText.includes('stopped')")
    assert models.left.wait(300)
    page.until("!document.getElementById('ask').disabled")


def test_what_is_refused_is_said(page: Tab) -> None:
    page.fill("prompt", "refuse")
    page.click("Ask both")
    page.until("document.querySelectorAll('.note.bad').length === 2")
    assert "seed is not a whole number" in page.text("right-turns")
    page.fill("key", "sk-simpo-nobody")
    page.until("document.getElementById('status').className === 'bad'")
    assert "API key" in page.text("status")
