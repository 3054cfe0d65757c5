"""One stack, two walks through it: with curl alone, and with OpenAI's client.

Curl: a sweep, kill -9 of the API in its middle, up again, a deployment, a chat. OpenAI: upload, create, watch,
succeeded, chat with what came out, and away with it.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from simpo.practice_task import examples
from tests.e2e.processes import Watcher, run, simpo
from tests.serving.tiny import tiny_checkpoint

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a stack that is up: starting and stopping one takes 20 s. Afterwards nothing of it is left."""
    home = tmp_path_factory.mktemp("walk") / "home"
    with Watcher(home) as watcher:
        try:
            started = run(simpo("up", "--home", str(home), "--port", "0"), timeout_s=300)
            assert started.returncode == 0, started.stdout + started.stderr
            yield home
        finally:
            stopped = run(simpo("down", "--home", str(home)), timeout_s=180)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert watcher.seen and watcher.left() == []


class Curl:
    """Calls of one stack by curl."""

    def __init__(self, home: Path) -> None:
        self.url = json.loads((home / "stack.json").read_text())["url"]
        self._key = (home / "key").read_text().strip()

    def text(self, path: str, *options: str) -> str:
        """The body of the answer, whatever its status."""
        command = ["curl", "--silent", "--show-error", "--max-time", "120", "-H", f"Authorization: Bearer {self._key}"]
        return subprocess.run(
            [*command, *options, f"{self.url}{path}"], capture_output=True, text=True, timeout=960, check=True
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


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_walk_with_curl(home: Path, tmp_path: Path) -> None:
    curl, model = Curl(home), tiny_checkpoint(tmp_path / "model")
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
    until(lambda: curl.get(path)["reason"] == "PAUSED", timeout_s=240)
    assert curl.post(f"{path}/resume", {})["number"] == 2
    until(lambda: [edit["state"] for edit in curl.get(f"{path}/edits")["data"]] == ["applied"] * 2, timeout_s=240)
    until(lambda: "trial.created" in curl.text(f"{path}/events?limit=200"), timeout_s=240)

    os.kill(json.loads((home / "stack.json").read_text())["api"]["pid"], signal.SIGKILL)
    again = run(simpo("up", "--home", str(home)), timeout_s=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "API key" not in again.stdout, "the key is as before"
    assert Curl(home).url == curl.url, "the address is as before"

    stream = curl.text(f"{path}/events", "-H", "Accept: text/event-stream", "--no-buffer", "--max-time", "900")
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
    until(lambda: (found := curl.get(where))["state"] in ("READY", "FAILED") and found, timeout_s=240)
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
    curl.text(where, "-X", "DELETE", "-H", "If-Match: *")
    until(lambda: curl.get(where)["state"] == "DELETED", timeout_s=240)


def test_the_walk_with_openais_client(home: Path, tmp_path: Path) -> None:
    url, key = json.loads((home / "stack.json").read_text())["url"], (home / "key").read_text().strip()
    http = openai.DefaultHttpxClient(trust_env=False, timeout=120)
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, http_client=http) as client:
        _tune(client, tmp_path)


def _tune(client: openai.OpenAI, directory: Path) -> None:
    with preferences(directory / "pairs.jsonl", 160).open("rb") as content:
        file = client.files.create(file=content, purpose="fine-tune")
    point = {"beta": 2.0, "gamma_beta_ratio": 0.5, "learning_rate": 1e-4, "n_epochs": 1, "batch_size": 16}
    method: Any = {"type": "simpo", "simpo": {"hyperparameters": point}}
    model = str(tiny_checkpoint(directory / "model"))
    job = client.fine_tuning.jobs.create(model=model, training_file=file.id, method=method, suffix="walk")
    assert job.status == "validating_files"
    deadline = time.monotonic() + 900
    while (job := client.fine_tuning.jobs.retrieve(job.id)).status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < deadline, job
        time.sleep(0.5)
    assert job.status == "succeeded" and job.fine_tuned_model is not None, job
    told: list[Any] = list(client.fine_tuning.jobs.list_events(job.id, limit=7))[::-1]
    happened = [event.data["event"] for event in told]
    assert happened[0] == "job.validating" and happened[-1] == "job.deployed"
    assert "job.validated" in happened, "the doctor has looked at the file, with the model's tokenizer"
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.fine_tuned_model_checkpoint == job.fine_tuned_model
    assert checkpoint.step_number == 9, "160 rows, 15 % set aside, in batches of 16"
    messages: Any = [{"role": "user", "content": "Upper: tiger"}]
    answer = client.chat.completions.create(model=job.fine_tuned_model, messages=messages, max_tokens=4, seed=1)
    assert answer.choices[0].message.role == "assistant" and answer.usage is not None
    assert answer.usage.completion_tokens >= 1
    assert client.models.delete(job.fine_tuned_model).deleted


def preferences(path: Path, number: int) -> Path:
    """Rows of the practice task in OpenAI's form."""
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": row.instruction}]},
            "preferred_output": [{"role": "assistant", "content": row.chosen}],
            "non_preferred_output": [{"role": "assistant", "content": row.rejected}],
        }
        for row in examples("train", number, seed=5, longer_share=0.5)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
