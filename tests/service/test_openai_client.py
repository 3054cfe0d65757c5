"""OpenAI's own client against the real application on loopback: files, fine-tuning jobs, and a chat with what came out.

Ray is the double of `ray_double`, Serve's HTTP side a stub, the doctor a fake; everything between is real.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from service.app import create_app
from service.auth import create_key
from service.local_process import free_ports
from service.settings import Settings
from service.store import Store
from simpo.methods import METHODS
from tests.service.ray_double import TOKEN, RayDouble
from tests.service.serve_double import ServeDouble
from tests.service.test_datasets import FakeDoctor
from tests.service.test_inference import said

TURNS = [{"role": "user", "content": "hi"}]
ROWS = [
    {
        "input": {"messages": [{"role": "user", "content": f"Say {n}."}], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": f"It is {n}."}],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }
    for n in range(40)
]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
POINT = {"beta": 2.0, "gamma_beta_ratio": 0.5, "learning_rate": 1e-4, "n_epochs": 2, "batch_size": 8}


def simpo(**given: Any) -> Any:
    return {"type": "simpo", "simpo": {"hyperparameters": given}}


class Stack:
    """The application with its reconciler on a port, and what stands around it."""

    def __init__(self, directory: Path, ray: RayDouble) -> None:
        self.ray = ray
        self.doctor = FakeDoctor()
        self.settings = Settings(
            database_url=f"sqlite:///{directory / 'simpo.db'}",
            store=directory / "store",
            ray_jobs_url=ray.url,
            ray_token=TOKEN,
            reconcile_interval_s=0.05,
            max_running_sweeps=4,
        )
        store = Store(self.settings.database_url)
        store.migrate()
        key = create_key(store, "tests")
        store.close()
        serve = ServeDouble(httpx.MockTransport(_chat))
        app = create_app(self.settings, doctor=self.doctor, models=serve)
        (port,) = free_ports(1)
        self._uvicorn = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
        self._thread = threading.Thread(target=self._uvicorn.run)
        self._thread.start()
        while not self._uvicorn.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{port}/v1"
        self.key = key

    def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join()


def _chat(request: httpx.Request) -> httpx.Response:
    """What a deployed model would answer: the path that it was asked under."""
    message = {"role": "assistant", "content": request.url.path}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return said(200, body)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with RayDouble() as ray:
        ray.trial_s = 0.02
        running = Stack(tmp_path_factory.mktemp("stack"), ray)
        yield running
        running.stop()


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    stack.doctor.ok, stack.doctor.error, stack.doctor.meanwhile = True, None, lambda: None
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=stack.url, api_key=stack.key, http_client=http) as connected:
        yield connected


def uploaded(client: openai.OpenAI, content: bytes = TEXT, name: str = "pairs.jsonl") -> str:
    return client.files.create(file=(name, content), purpose="fine-tune").id


def until(client: openai.OpenAI, job_id: str, *statuses: str) -> Any:
    deadline = time.monotonic() + 300
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status not in statuses:
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
    return job


def refusal(call: Callable[[], Any], status: int = 400) -> Any:
    """The error's body: it carries the message and the field in OpenAI's form."""
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    assert caught.value.status_code == status, caught.value
    assert caught.value.request_id and str(caught.value.body["message"]) in str(caught.value)  # type: ignore[index]
    return caught.value.body


# -- files


def test_a_file_is_a_dataset(client: openai.OpenAI, stack: Stack) -> None:
    file = client.files.create(file=("pairs.jsonl", TEXT), purpose="fine-tune")
    assert file.id.startswith("file-") and (file.bytes, file.filename, file.purpose, file.status) == (
        *(len(TEXT), "pairs.jsonl", "fine-tune", "processed"),
    )
    assert client.files.create(file=("again.jsonl", TEXT), purpose="fine-tune").id == file.id, "the same bytes"
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == TEXT
    headers = {"authorization": f"Bearer {stack.key}"}
    dataset = file.id.replace("file-", "dst_")
    native = httpx.get(f"{stack.url}/datasets/{dataset}", headers=headers, trust_env=False, timeout=300)
    assert native.json()["sha256"] == file.sha256  # type: ignore[attr-defined]
    others = [uploaded(client, TEXT + b"\n" * n) for n in (1, 2, 3)]
    listed = [each.id for each in client.files.list(limit=2)]
    assert listed[:4] == [*others[::-1], file.id], "the client's pager goes through all"
    assert list(client.files.list(purpose="batch")) == []
    gone = client.files.delete(others[0])
    assert gone.deleted and refusal(lambda: client.files.retrieve(others[0]), 404)["code"] == "file_not_found"


def test_files_that_are_refused(client: openai.OpenAI) -> None:
    wrong = refusal(lambda: client.files.create(file=("a.jsonl", TEXT), purpose="batch"))
    assert (wrong["param"], wrong["code"]) == ("purpose", "unsupported_purpose")
    broken = refusal(lambda: client.files.create(file=("a.jsonl", b"no json"), purpose="fine-tune"))
    assert (broken["param"], broken["code"]) == ("file", "not_json") and "line 1" in broken["message"]
    expires: Any = {"anchor": "created_at", "seconds": 3600}
    unknown = refusal(
        lambda: client.files.create(file=("a.jsonl", TEXT), purpose="fine-tune", expires_after=expires)
    )
    assert "expires_after" in unknown["param"]


# -- the whole path


def test_create_events_succeeded_chat(client: openai.OpenAI, stack: Stack) -> None:
    file = uploaded(client)
    job = client.fine_tuning.jobs.create(
        model="practice",
        training_file=file,
        method=simpo(**POINT),
        seed=7,
        suffix="demo",
        metadata={"team": "a"},
    )
    assert job.id.startswith("ftjob-") and job.status == "validating_files" and job.fine_tuned_model is None
    assert (job.training_file, job.validation_file, job.seed) == (file, None, 7)
    assert (job.metadata, job.result_files) == ({"team": "a"}, [])
    assert job.method is not None and job.method.type == "simpo"  # type: ignore[comparison-overlap]
    assert job.hyperparameters.to_dict() == POINT
    done = until(client, job.id, "succeeded", "failed")
    assert done.status == "succeeded" and done.finished_at is not None, done
    assert done.kind == "run" and done.fine_tuned_model.startswith("ft-demo-")
    spec = json.loads((stack.settings.run_dir(done.sweep) / "spec.json").read_text())
    assert spec["method"] == "simpo" and spec["space"]["beta"] == 2.0 and spec["seed"] == 7
    assert spec["train"]["batch_pairs"] == 8 and spec["budget"] == {
        **spec["budget"],
        "trials": 1,
        "steps": 10,  # 40 rows, 15 % of them set aside: 34 in batches of 8, twice
    }
    told: list[Any] = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    happened = [event.data["event"] for event in told[::-1]]
    assert happened[:3] == ["job.validating", "job.validated", "job.queued"]
    assert happened[-3:] == ["job.succeeded", "job.deploying", "job.deployed"]
    assert [event.id for event in told[::-1]] == [f"ftevent-{n:08d}" for n in range(1, len(told) + 1)], "each once"
    assert [event.data["metrics"]["accuracy"] for event in told if event.type == "metrics"][-1] == 0.0
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=4))
    assert len(checkpoints) == 6 and checkpoints[0].fine_tuned_model_checkpoint == done.fine_tuned_model
    answer = client.chat.completions.create(model=done.fine_tuned_model, messages=TURNS)
    assert answer.choices[0].message.content == f"/d/{done.fine_tuned_model}/v1/chat/completions"
    assert done.fine_tuned_model in [model.id for model in client.models.list()]
    assert client.models.delete(done.fine_tuned_model).deleted
    assert until(client, job.id, "succeeded").fine_tuned_model == done.fine_tuned_model, "over is over"
    refused = refusal(lambda: client.fine_tuning.jobs.cancel(job.id), 409)
    assert refused["code"] == "illegal_transition"


def test_auto_runs_a_small_sweep(client: openai.OpenAI, stack: Stack) -> None:
    file = uploaded(client)
    given = {"beta": "auto", "gamma_beta_ratio": 0.5, "learning_rate": "auto"}
    job: Any = client.fine_tuning.jobs.create(model="practice", training_file=file, method=simpo(**given))
    assert job.kind == "sweep" and job.hyperparameters.to_dict() == {**given, "n_epochs": "auto", "batch_size": "auto"}
    until(client, job.id, "succeeded")
    spec = json.loads((stack.settings.run_dir(job.sweep) / "spec.json").read_text())
    assert spec["budget"]["trials"] == 12 and spec["budget"]["steps"] == 120
    assert spec["space"]["gamma_beta_ratio"] == 0.5 and spec["space"]["beta"]["type"] == "log_float"


def test_supervised_is_the_default_and_every_method_has_its_type(client: openai.OpenAI) -> None:
    file = uploaded(client)
    job: Any = client.fine_tuning.jobs.create(
        model="practice",
        training_file=file,
        hyperparameters={"n_epochs": 1, "learning_rate_multiplier": 2, "batch_size": "auto"},
        validation_file=uploaded(client, TEXT * 2),
    )
    assert (job.method.type, job.kind) == ("supervised", "run") and job.validation_file != file
    jobs = [job.id]
    for name in METHODS:
        method: Any = {"type": name, name: {"hyperparameters": {"learning_rate": 1e-4}}}
        jobs.append(client.fine_tuning.jobs.create(model="practice", training_file=file, method=method).id)
    listed = [each.id for each in client.fine_tuning.jobs.list(limit=5)]
    assert listed[: len(jobs)] == jobs[::-1]
    for job_id in jobs:
        with contextlib.suppress(openai.ConflictError):  # some are over by now
            client.fine_tuning.jobs.cancel(job_id)
        until(client, job_id, "cancelled", "succeeded")


def test_lists_filter_by_metadata(client: openai.OpenAI) -> None:
    file = uploaded(client)
    made = [
        client.fine_tuning.jobs.create(
            model="practice", training_file=file, method=simpo(**POINT), metadata={"run": str(n), "kind": "listed"}
        ).id
        for n in range(2)
    ]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"run": "1", "kind": "listed"})] == made[1:]
    assert {job.id for job in client.fine_tuning.jobs.list(metadata={"kind": "listed"}, limit=1)} == set(made)
    for job_id in made:
        until(client, job_id, "succeeded")


def test_a_file_that_would_spoil_the_training_fails_the_job(client: openai.OpenAI, stack: Stack) -> None:
    stack.doctor.ok = False
    file = uploaded(client, TEXT * 3)
    job = client.fine_tuning.jobs.create(model="practice", training_file=file, method=simpo(**POINT))
    failed = until(client, job.id, "failed")
    assert (failed.error.code, failed.error.param) == ("invalid_training_file", "training_file")
    assert client.files.delete(file).deleted, "nobody reads it any more"


def test_a_job_is_cancelled_and_its_file_is_held_until_then(client: openai.OpenAI, stack: Stack) -> None:
    stack.ray.trial_s = 600.0  # until it is stopped
    try:
        file = uploaded(client, TEXT * 4)
        job = client.fine_tuning.jobs.create(model="practice", training_file=file, method=simpo(**POINT))
        until(client, job.id, "running")
        assert refusal(lambda: client.with_options(max_retries=0).files.delete(file), 409)["code"] == "dataset_in_use"
        assert client.fine_tuning.jobs.cancel(job.id).status in ("running", "cancelled")
        over = until(client, job.id, "cancelled")
        assert over.fine_tuned_model is None and over.finished_at is not None
        assert client.files.delete(file).deleted
    finally:
        stack.ray.trial_s = 0.02


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"integrations": [{"type": "wandb", "wandb": {"project": "a"}}]}, "integrations", "unsupported_field"),
        ({"model": "/no/model"}, "model", "invalid_value"),
        ({"training_file": "file-0"}, "training_file", "file_not_found"),
        ({"validation_file": "file-0"}, "validation_file", "file_not_found"),
        ({"suffix": "Not A Suffix"}, "suffix", "validation"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a", "validation"),
        ({"seed": -1}, "seed", "validation"),
        ({"extra_body": {"n": 2}}, "n", "validation"),
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, "method.type", "unsupported_method"),
        ({"method": {"type": "simpo", "dpo": {}}}, "method.dpo", "unsupported_field"),
        ({"method": {"type": "simpo", "simpo": {"grader": 1}}}, "method.simpo.grader", "unsupported_field"),
        ({"method": simpo(tau=1)}, "method.simpo.hyperparameters.tau", "unsupported_field"),
        ({"method": simpo(**POINT | {"beta": -1})}, "method.simpo.hyperparameters.beta", "invalid_value"),
        ({"method": simpo(beta=-1)}, "method.simpo.hyperparameters.beta", "invalid_value"),
        ({"method": simpo(**POINT | {"gamma": 1})}, "method.simpo.hyperparameters.gamma", "invalid_value"),
        ({"method": simpo(gamma=1.0)}, "method.simpo.hyperparameters.gamma", "invalid_value"),
        ({"method": simpo(loss_type="auto")}, "method.simpo.hyperparameters.loss_type", "invalid_value"),
        ({"method": simpo(n_epochs=0)}, "method.simpo.hyperparameters.n_epochs", "invalid_value"),
        ({"method": simpo(learning_rate=1e-4, learning_rate_multiplier=2)}, "method.simpo.hyperparameters", ""),
        ({"method": simpo(**POINT), "hyperparameters": {"n_epochs": 1}}, "hyperparameters", "invalid_value"),
    ],
)
def test_every_field_is_honoured_or_refused_by_name(
    client: openai.OpenAI, change: dict[str, Any], param: str, code: str
) -> None:
    body: Any = {"model": "practice", "training_file": uploaded(client), "method": simpo(**POINT), **change}
    told = refusal(lambda: client.fine_tuning.jobs.create(**body))
    assert told["type"] == "invalid_request_error"
    assert told["param"].startswith(param) and told["code"] == (code or told["code"]), told


def test_gamma_and_a_large_beta_are_honoured(client: openai.OpenAI, stack: Stack) -> None:
    method = simpo(beta=10, gamma=3.0, n_epochs=1)  # the learning rate is searched
    job: Any = client.fine_tuning.jobs.create(model="practice", training_file=uploaded(client), method=method)
    until(client, job.id, "succeeded")
    spec = json.loads((stack.settings.run_dir(job.sweep) / "spec.json").read_text())
    assert spec["space"]["gamma_beta_ratio"] == pytest.approx(0.3) and spec["budget"]["trials"] == 8


def test_what_is_unknown_is_404_and_pauses_are_refused(client: openai.OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.list_events, jobs.checkpoints.list):
        assert refusal(lambda call=call: call("ftjob-0"), 404)["code"] == "not_found"  # type: ignore[misc]
    assert refusal(lambda: jobs.pause("ftjob-0"))["code"] == "unsupported_operation"
    assert refusal(lambda: jobs.list(extra_query={"status": "x"}))["param"] == "status"
