"""The command line against scripted answers: what it prints, where, and with which exit code."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service.cli import app
from service.cli_session import plain

pytestmark = pytest.mark.quick

SWEEP = {
    "id": "swp_1",
    "object": "sweep",
    "name": "mine",
    "state": "SUCCEEDED",
    "reason": "",
    "created_at": "2026-01-01T00:00:00Z",
    "phase": "done",
    "spec": {"budget": {"trials": 2}, "objective": {"metric": "win_rate"}},
    "best": {"trial_id": "trl_1", "value": 0.61, "params": {"beta": 2.5}},
    "result": {
        "method": "simpo",
        "best": {"trial_id": "trl_1", "method": "simpo", "params": {"beta": 2.5, "learning_rate": 1e-4}},
        "win_rate": {"estimate": 0.652, "low": 0.61, "high": 0.69, "n": 500},
        "accuracy": {
            "base": {"estimate": 0.58, "low": 0.5, "high": 0.6, "n": 600},
            "winner": {"estimate": 0.98, "low": 0.97, "high": 0.99, "n": 600},
        },
    },
}
TRIALS = [
    {"id": "trl_0", "number": 0, "state": "PRUNED", "params": {"beta": 9.0}, "step": 30, "reason": "below the cut-off"},
    {"id": "trl_1", "number": 1, "state": "SUCCEEDED", "params": {"beta": 2.5}, "step": 120, "value": 0.61},
]
DEPLOYMENT = {"id": "dep_1", "name": "winner", "state": "READY", "reason": "", "sweep": "swp_1", "checkpoint": "winner"}


def _event(id: int, kind: str, message: str = "", **data: Any) -> str:
    body = {"id": f"evt_{id}", "type": kind, "level": "info", "message": message, "data": data}
    return f"id: evt_{id}\nevent: {kind}\ndata: {json.dumps(body)}\n\n"


STREAM = "".join(
    [
        _event(1, "job.phase", "making the base model", phase="preparing", progress=0.5),
        _event(2, "trial.created", trial_id="trl_1", number=1, params={"beta": 2.5}),
        _event(3, "trial.progress", trial_id="trl_1", step=10, loss=0.7),
        _event(4, "trial.rung", trial_id="trl_1", number=1, step=30, metrics={"win_rate": 0.6, "accuracy": 0.9}),
        _event(5, "best.updated", trial_id="trl_1", value=0.61, params={"beta": 2.5}),
        _event(6, "trial.completed", trial_id="trl_1", number=1, step=120, value=0.61, reason="full budget"),
        "event: done\ndata: {}\n\n",
    ]
)


CHAT = 'data: {"choices": [{"delta": {"content": "se\\u001b[31mven"}}]}\n\ndata: [DONE]\n\n'


class Api:
    """Answers by method and path; keeps the calls."""

    def __init__(self, **more: Any) -> None:
        self.calls: list[httpx.Request] = []
        page = {"object": "list", "has_more": False}
        self.routes: dict[str, Any] = {
            "GET /v1/sweeps/mine": httpx.Response(404, json={"code": "not_found", "detail": "There is no sweep mine."}),
            "GET /v1/sweeps/swp_1": SWEEP,
            "GET /v1/sweeps": page | {"data": [SWEEP]},
            "POST /v1/sweeps": SWEEP | {"state": "PENDING"},
            "POST /v1/sweeps/swp_1/cancel": SWEEP | {"state": "CANCELLING"},
            "GET /v1/sweeps/swp_1/trials": page | {"data": TRIALS},
            "GET /v1/sweeps/swp_1/leaderboard": page | {"data": TRIALS[1:]},
            "GET /v1/sweeps/swp_1/events": STREAM,
            "GET /v1/runs": page | {"data": []},
            "GET /v1/deployments": page | {"data": [DEPLOYMENT]},
            "GET /v1/deployments/dep_1": DEPLOYMENT,
            "GET /v1/deployments/winner": httpx.Response(404, json={"code": "not_found", "detail": "No."}),
            "POST /v1/deployments": DEPLOYMENT | {"state": "PENDING"},
            "DELETE /v1/deployments/dep_1": {},
            "GET /v1/models": page | {"data": [{"id": "winner"}, {"id": "base"}]},
            "POST /v1/chat/completions": CHAT,
            **more,
        }

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls.append(request)
        answer = self.routes.get(f"{request.method} {request.url.path}")
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        if isinstance(answer, str):
            return httpx.Response(200, text=answer, headers={"content-type": "text/event-stream"})
        missing = {"code": "not_found", "detail": f"There is no {request.url.path}."}
        return httpx.Response(404, json=missing) if answer is None else httpx.Response(200, json=answer)

    def sent(self, method: str) -> Any:
        return next(json.loads(call.content) for call in self.calls if call.method == method)


@pytest.fixture
def api() -> Api:
    return Api()


def simpo(api: Api, *args: str, stdin: str | None = None) -> Any:
    """The command's result; stdout is no terminal here."""
    options = ["--url", "http://api.test", "--key", "k"]
    return CliRunner().invoke(
        app, [*options, *args], obj=httpx.MockTransport(api), input=stdin, env={"COLUMNS": "200", "NO_COLOR": "1"}
    )


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_create_sends_the_spec_and_says_what_next(api: Api, tmp_path: Path) -> None:
    spec = write(tmp_path / "s.yaml", "name: mine\nbudget: {trials: 9, steps: 8}\nspace: {learning_rate: 2e-5}\n")
    result = simpo(api, "sweep", "create", "-f", spec, "--set", "budget.trials=4", "--set", "seed=1")
    assert result.exit_code == 0, result.output
    assert result.stdout == "mine (swp_1) is PENDING; follow it: simpo sweep watch mine\n"
    assert api.sent("POST") == {
        "name": "mine",
        "budget": {"trials": 4, "steps": 8},
        "space": {"learning_rate": 2e-5},
        "seed": 1,
    }


def test_a_dry_run_shows_the_plan(api: Api) -> None:
    api.routes["POST /v1/sweeps"] = {"object": "plan", "name": "mine", "plan": {"trials": 4, "rung_steps": [2, 4]}}
    result = simpo(api, "sweep", "create", "-f", "-", "--dry-run", stdin="{name: mine}")
    assert result.exit_code == 0, result.output
    assert result.stdout == "mine is a valid sweep; nothing was started\n  trials: 4\n  rung steps: [2, 4]\n"
    assert api.calls[0].url.params["validate_only"] == "true"


def test_create_reads_standard_input(api: Api) -> None:
    assert simpo(api, "sweep", "create", "-f", "-", "--json", stdin="{name: mine}").exit_code == 0
    assert api.sent("POST") == {"name": "mine"}


def test_paths_that_exist_here_are_sent_in_full(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "d.jsonl", "{}")
    write(tmp_path / "s.yaml", "{name: mine, base_model: org/model, dataset: {train: d.jsonl, eval: practice}}")
    simpo(api, "sweep", "create", "-f", "s.yaml")
    assert api.sent("POST")["dataset"] == {"train": str(tmp_path / "d.jsonl"), "eval": "practice"}
    assert api.sent("POST")["base_model"] == "org/model"


def test_watch_without_a_terminal_prints_lines(api: Api, tmp_path: Path) -> None:
    result = simpo(api, "sweep", "create", "-f", write(tmp_path / "s.yaml", "name: mine"), "--watch")
    assert result.exit_code == 0, result.output
    lines = [line.split("] ", 1)[-1] for line in result.stdout.splitlines()]
    assert lines == [
        "mine (swp_1) is PENDING",
        "preparing 50%: making the base model",
        "trial 1: beta 2.5",
        "trial 1: step 30, win rate 0.600, accuracy 0.900",
        "best so far: win rate 0.610 by trial 1 (beta 2.5)",
        "trial 1: COMPLETE, win rate 0.610 (1/2): full budget",
        "best: simpo beta 2.5, lr 1.0e-04",
        "win rate over the base: 0.652 (95 %: 0.610 to 0.690, n = 500)",
        "held-out accuracy: base 0.580 (95 %: 0.500 to 0.600, n = 600), winner 0.980 (95 %: 0.970 to 0.990, n = 600)",
        "deploy it: simpo deploy create NAME --sweep mine",
    ]


def test_a_failed_sweep_is_exit_code_1(api: Api) -> None:
    error = {"class": "USER_ERROR", "message": "train.jsonl, line 3: not valid JSON"}
    api.routes["GET /v1/sweeps/swp_1"] = SWEEP | {"state": "FAILED", "error": error}
    result = simpo(api, "sweep", "watch", "swp_1")
    assert result.exit_code == 1
    assert result.stderr == "error: sweep mine is FAILED: train.jsonl, line 3: not valid JSON\n"


def test_names_are_found(api: Api) -> None:
    result = simpo(api, "sweep", "show", "mine")
    assert result.exit_code == 0, result.output
    for shown in ("mine (swp_1) is SUCCEEDED", "PRUNED", "below the cut-off", "0.652", "beta 2.5"):
        assert shown in result.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["sweep", "list"],
        ["sweep", "show", "mine"],
        ["sweep", "leaderboard", "mine"],
        ["run", "list"],
        ["deploy", "list"],
    ],
)
def test_json_is_one_document(api: Api, args: list[str]) -> None:
    result = simpo(api, *args, "--json")
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)
    table = simpo(api, *args)
    assert table.exit_code == 0 and not table.stdout.startswith(("[", "{"))


def test_events_as_json_lines(api: Api) -> None:
    result = simpo(api, "sweep", "events", "mine", "--follow", "--json")
    assert [json.loads(line)["type"] for line in result.stdout.splitlines()][:2] == ["job.phase", "trial.created"]


def test_an_empty_list_says_what_to_do(api: Api) -> None:
    assert "simpo run create -f spec.yaml" in simpo(api, "run", "list").stdout


def test_cancel(api: Api) -> None:
    assert simpo(api, "sweep", "cancel", "mine").stdout == "mine is CANCELLING\n"


def test_deploy_waits_until_ready(api: Api) -> None:
    result = simpo(api, "deploy", "create", "winner", "--sweep", "mine")
    assert result.exit_code == 0, result.output
    assert api.sent("POST") == {"name": "winner", "sweep": "swp_1", "checkpoint": "winner"}
    assert result.stdout.startswith("winner is READY")


def test_a_failed_deployment_is_exit_code_1(api: Api) -> None:
    api.routes["GET /v1/deployments/dep_1"] = DEPLOYMENT | {"state": "FAILED", "message": "No memory."}
    result = simpo(api, "deploy", "create", "winner", "--sweep", "mine")
    assert (result.exit_code, result.stderr) == (1, "error: deployment winner is FAILED: No memory.\n")


def test_deploy_of_an_unknown_sweep(api: Api) -> None:
    api.routes["GET /v1/sweeps"] = api.routes["GET /v1/runs"]
    result = simpo(api, "deploy", "create", "winner", "--sweep", "nope")
    assert result.exit_code == 2
    assert "--sweep: there is no sweep or run 'nope'" in result.stderr


def test_delete_by_name(api: Api) -> None:
    assert simpo(api, "deploy", "delete", "winner").exit_code == 0
    assert [call.url.path for call in api.calls if call.method == "DELETE"] == ["/v1/deployments/dep_1"]


def test_chat_prints_the_answer_without_control_characters(api: Api) -> None:
    result = simpo(api, "chat", "winner", "Add 3 and 4.", "--temperature", "0")
    assert result.exit_code == 0, result.output
    assert result.stdout == "se[31mven\n"
    sent = api.sent("POST")
    assert sent["messages"] == [{"role": "user", "content": "Add 3 and 4."}]
    assert sent["temperature"] == 0 and "max_tokens" not in sent


def test_chat_compares(api: Api) -> None:
    result = simpo(api, "chat", "winner", "--compare", "base", stdin="Add 3 and 4.\n")
    assert result.stdout.splitlines()[::2] == ["winner:", "base:"]


def test_chat_with_a_model_that_is_not_there(api: Api) -> None:
    result = simpo(api, "chat", "loser", "hi")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: no deployment 'loser' answers now: use one of winner, base\n",
    )


VALIDATION = httpx.Response(
    422,
    json={"code": "validation", "detail": "x", "errors": [{"pointer": "/space/beta/low", "message": "must be > 0"}]},
)


@pytest.mark.parametrize(
    ("answer", "code", "sentence"),
    [
        (VALIDATION, 2, "space.beta.low: must be > 0"),
        (httpx.Response(401, json={"code": "unauthorized", "detail": "No such key"}), 2, "SIMPO_API_KEY"),
        (httpx.Response(500, json={"detail": "The service made a mistake.", "request_id": "r1"}), 1, "(request r1)"),
        (httpx.Response(500, text="<html>"), 1, "HTTP 500"),
    ],
)
def test_refusals_are_one_sentence(tmp_path: Path, answer: httpx.Response, code: int, sentence: str) -> None:
    result = simpo(
        Api(**{"POST /v1/sweeps": answer}), "sweep", "create", "-f", write(tmp_path / "s.yaml", "name: mine")
    )
    assert result.exit_code == code
    assert result.stdout == ""
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("text", "args", "sentence"),
    [
        ("name: [", [], "s.yaml is not valid YAML or JSON: .*line 2"),
        ("- a", [], "a spec is a mapping"),
        ("name: mine", ["--set", "budget"], "--set: 'budget' must look like"),
        ("name: mine", ["--set", "name.x=1"], "name is 'mine' in the spec and has no keys"),
        ("name: mine", ["--set", "x={"], "--set x is not valid YAML"),
    ],
)
def test_bad_specs_are_refused_before_anything_is_sent(
    api: Api, tmp_path: Path, text: str, args: list[str], sentence: str
) -> None:
    result = simpo(api, "sweep", "create", "-f", write(tmp_path / "s.yaml", text + "\n"), *args)
    assert result.exit_code == 2
    assert re.search(sentence, result.stderr), result.stderr
    assert api.calls == []


def test_a_missing_spec_file(api: Api) -> None:
    result = simpo(api, "sweep", "create", "-f", "nope.yaml")
    assert (result.exit_code, api.calls) == (2, [])
    assert "--file: cannot read nope.yaml (No such file or directory): check the path" in result.stderr


def test_nobody_there_and_nowhere_to_look(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--home", str(tmp_path), "sweep", "list"], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert "start one with `simpo up`, or set SIMPO_URL and SIMPO_API_KEY" in result.stderr


def test_the_key_of_the_stack_goes_to_nobody_else(api: Api, tmp_path: Path) -> None:
    write(tmp_path / "stack.json", json.dumps({"url": "http://127.0.0.1:1"}))
    write(tmp_path / "key", "secret")
    options = ["--home", str(tmp_path), "--url", "http://elsewhere.test"]
    result = CliRunner().invoke(app, [*options, "sweep", "list"], obj=httpx.MockTransport(api))
    assert result.exit_code == 2 and api.calls == []
    assert "no API key for http://elsewhere.test: set SIMPO_API_KEY" in result.stderr


def test_the_stack_in_the_home_is_found(api: Api, tmp_path: Path) -> None:
    write(tmp_path / "stack.json", json.dumps({"url": "http://127.0.0.1:1"}))
    write(tmp_path / "key", "secret\n")
    result = CliRunner().invoke(app, ["--home", str(tmp_path), "sweep", "list"], obj=httpx.MockTransport(api))
    assert result.exit_code == 0, result.output
    assert api.calls[0].headers["authorization"] == "Bearer secret"
    assert api.calls[0].url.host == "127.0.0.1"


def test_the_unforeseen_is_one_sentence_too_and_debug_shows_it() -> None:
    api = Api(**{"GET /v1/sweeps": RuntimeError("boom")})
    result = simpo(api, "sweep", "list")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: unexpected RuntimeError: boom (simpo --debug shows where)\n",
    )
    assert isinstance(simpo(api, "--debug", "sweep", "list").exception, RuntimeError)


def test_usage_errors_are_exit_code_2(api: Api) -> None:
    assert simpo(api, "sweep", "create").exit_code == 2
    assert simpo(api, "sweep", "fly").exit_code == 2


@pytest.mark.parametrize(
    "args",
    [[], ["sweep"], ["run"], ["deploy"], ["chat"], ["up"], ["down"], ["status"], ["quickstart"], ["sweep", "create"]],
)
def test_help_teaches(args: list[str]) -> None:
    result = CliRunner().invoke(app, [*args, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "Usage" in result.stdout


def test_plain_text_keeps_letters_of_every_script() -> None:
    assert plain("a\x1b[0m\x07\x9b b\nñ 漢 🙂\t") == "a[0m b\nñ 漢 🙂\t"


def test_the_command_line_starts_light() -> None:
    heavy = ("torch", "transformers", "datasets", "ray", "optuna", "sqlalchemy", "fastapi", "plotly", "pyarrow")
    code = f"import sys, service.cli; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
