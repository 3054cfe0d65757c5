"""The service with curl alone: up, a sweep, kill -9 of the API in its middle, up again, a deployment, a chat, down."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import Watcher, run, simpo
from tests.serving.tiny import tiny_checkpoint

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")]


class Curl:
    """Calls of one stack by curl."""

    def __init__(self, home: Path) -> None:
        self.url = json.loads((home / "stack.json").read_text())["url"]
        self._key = (home / "key").read_text().strip()

    def text(self, path: str, *options: str) -> str:
        """The body of the answer, whatever its status."""
        command = ["curl", "--silent", "--show-error", "--max-time", "60", "-H", f"Authorization: Bearer {self._key}"]
        return subprocess.run(
            [*command, *options, f"{self.url}{path}"], capture_output=True, text=True, timeout=90, check=True
        ).stdout

    def get(self, path: str) -> Any:
        return json.loads(self.text(path))

    def post(self, path: str, body: Any, *options: str) -> Any:
        return json.loads(self.text(path, "-H", "Content-Type: application/json", "-d", json.dumps(body), *options))


def until(check: Callable[[], Any], *, timeout_s: float) -> Any:
    """The first true value of `check`."""
    deadline = time.monotonic() + timeout_s
    while not (value := check()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.3)
    return value


def test_the_walk(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Watcher(home) as watcher:
        try:
            started = run(simpo("up", "--home", str(home), "--port", "0"), timeout_s=150)
            assert started.returncode == 0, started.stdout + started.stderr
            _walk(home, tiny_checkpoint(tmp_path / "model"))
        finally:
            stopped = run(simpo("down", "--home", str(home)), timeout_s=90)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert watcher.seen and watcher.left() == []


def _walk(home: Path, model: Path) -> None:
    curl = Curl(home)
    spec = {
        "name": "walk",
        "base_model": str(model),
        "dataset": "practice",
        "judge": None,
        "objective": "accuracy",
        "constraints": {},
        "evaluation": {"rung_prompts": 0},
        "budget": {"trials": 4, "steps": 40},
        "train": {"batch_pairs": 16},
        "finals": {"prompts": 8},
    }
    key = ("-H", "Idempotency-Key: walk-1")
    sweep = curl.post("/v1/sweeps", spec, *key)
    assert sweep["state"] == "PENDING", sweep
    path = f"/v1/sweeps/{sweep['id']}"
    assert curl.post(f"{path}/pause", {})["state"] == "pending"
    until(lambda: curl.get(path)["reason"] == "PAUSED", timeout_s=90)
    assert curl.post(f"{path}/resume", {})["number"] == 2
    until(lambda: [edit["state"] for edit in curl.get(f"{path}/edits")["data"]] == ["applied"] * 2, timeout_s=90)
    until(lambda: "trial.created" in curl.text(f"{path}/events?limit=200"), timeout_s=90)

    os.kill(json.loads((home / "stack.json").read_text())["api"]["pid"], signal.SIGKILL)
    again = run(simpo("up", "--home", str(home)), timeout_s=60)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "API key" not in again.stdout, "the key is as before"
    assert Curl(home).url == curl.url, "the address is as before"

    stream = curl.text(f"{path}/events", "-H", "Accept: text/event-stream", "--no-buffer", "--max-time", "200")
    assert stream.rstrip().endswith("event: done\ndata: {}")
    happened = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")][:-1]
    assert [event["id"] for event in happened] == [f"evt_{n:08d}" for n in range(1, len(happened) + 1)]
    journal = [(event["attempt"], event["type"], json.dumps(event["data"])) for event in happened if event["attempt"]]
    assert len(journal) == len(set(journal)), "nothing twice"
    ended = curl.get(path)
    assert (ended["state"], ended["attempt"]) == ("SUCCEEDED", 1), ended
    assert sum(ended["trials"].values()) == 4
    assert len(curl.get(f"{path}/trials")["data"]) == 4
    assert curl.post("/v1/sweeps", spec, *key)["id"] == sweep["id"], "the same request, the same sweep"

    deployment = curl.post("/v1/deployments", {"name": "walker", "sweep": sweep["id"]})
    where = f"/v1/deployments/{deployment['id']}"
    until(lambda: (found := curl.get(where))["state"] in ("READY", "FAILED") and found, timeout_s=90)
    assert curl.get(where)["state"] == "READY", curl.get(where)
    question = {"model": "walker", "messages": [{"role": "user", "content": "Next: 41"}], "max_tokens": 8, "seed": 1}
    answer = curl.post("/v1/chat/completions", question)
    assert answer["choices"][0]["message"]["role"] == "assistant", answer
    assert answer["usage"]["completion_tokens"] >= 1
    streamed = curl.text(
        "/v1/chat/completions", "-H", "Content-Type: application/json", "-d", json.dumps({**question, "stream": True})
    )
    assert streamed.rstrip().endswith("data: [DONE]")
    refused = curl.post("/v1/sweeps", {"name": "bad", "space": {"beta": -1}})
    assert refused["errors"][0]["pointer"] == "/space/beta"
