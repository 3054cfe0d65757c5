"""OpenAI's client with the whole stack: upload, create, watch, succeeded, chat with what came out, and away with it."""

import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from simpo.practice_task import examples
from tests.e2e.processes import Watcher, run, simpo
from tests.serving.tiny import tiny_checkpoint

pytestmark = pytest.mark.e2e


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


def test_create_events_succeeded_chat(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Watcher(home) as watcher:
        try:
            started = run(simpo("up", "--home", str(home), "--port", "0"), timeout_s=300)
            assert started.returncode == 0, started.stdout + started.stderr
            url = json.loads((home / "stack.json").read_text())["url"]
            key = (home / "key").read_text().strip()
            http = openai.DefaultHttpxClient(trust_env=False, timeout=120)
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key, http_client=http) as client:
                _tune(client, tmp_path)
        finally:
            stopped = run(simpo("down", "--home", str(home)), timeout_s=90)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert watcher.seen and watcher.left() == []


def _tune(client: openai.OpenAI, directory: Path) -> None:
    with preferences(directory / "pairs.jsonl", 160).open("rb") as content:
        file = client.files.create(file=content, purpose="fine-tune")
    point = {"beta": 2.0, "gamma_beta_ratio": 0.5, "learning_rate": 1e-4, "n_epochs": 1, "batch_size": 16}
    method: Any = {"type": "simpo", "simpo": {"hyperparameters": point}}
    model = str(tiny_checkpoint(directory / "model"))
    job = client.fine_tuning.jobs.create(model=model, training_file=file.id, method=method, suffix="walk")
    assert job.status == "validating_files"
    deadline = time.monotonic() + 400
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
