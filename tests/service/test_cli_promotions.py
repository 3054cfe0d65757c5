"""`simpo promote`, `promotion` and `model` against scripted answers, and the client's calls under them."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import Client
from tests.service.test_cli import Api, simpo

pytestmark = pytest.mark.quick

CONDITION = {"name": "win_rate", "state": "PASS", "message": "win_rate 0.652 [0.618, 0.683] (n=300) keeps >0.5"}
PROMOTION = {
    "id": "prm_1",
    "object": "promotion",
    "model": "chat",
    "version": 2,
    "champion": 1,
    "state": "AWAITING_APPROVAL",
    "reason": "GATE_PASSED",
    "message": "Waits for approval.",
    "decision": {"state": "PASS", "reasons": [], "conditions": [CONDITION]},
}
MODEL = {"name": "chat", "versions": 2, "aliases": {"candidate": 2, "production": 1}}
VERSION = {"version": 2, "aliases": ["candidate"], "sweep": "swp_1", "checkpoint": "trl_1", "created_at": "now"}


@pytest.fixture
def api() -> Api:
    page: dict[str, Any] = {"object": "list", "has_more": False}
    more = {
        "POST /v1/promotions": PROMOTION | {"state": "PENDING"},
        "GET /v1/promotions/prm_1": PROMOTION,
        "GET /v1/promotions": page | {"data": [PROMOTION]},
        "POST /v1/promotions/prm_1/approve": PROMOTION,
        "GET /v1/registry/models": page | {"data": [MODEL]},
        "GET /v1/registry/models/chat": MODEL,
        "GET /v1/registry/models/chat/versions": page | {"data": [VERSION]},
        "POST /v1/evaluations": {"id": "evl_1", "name": "look", "state": "PENDING"},
    }
    return Api(**more)


def sent(api: Api, path: str) -> Any:
    (call,) = [call for call in api.calls if call.method == "POST" and call.url.path == path]
    return json.loads(call.content)


def test_promote_waits_for_the_gate_and_says_what_is_next(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate.yaml"
    (tmp_path / "set.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    gate.write_text('conditions: {length_ratio: "<=1.2"}\ncapability: set.jsonl')
    result = simpo(api, "promote", "mine", "--model", "chat", "--gate", str(gate))
    assert result.exit_code == 0, result.stderr
    body = {"model": "chat", "sweep": "swp_1", "checkpoint": "winner", "approval": "manual"}
    wanted = {"conditions": {"length_ratio": "<=1.2"}, "capability": str(tmp_path / "set.jsonl")}
    assert sent(api, "/v1/promotions") == body | {"gate": wanted}
    for words in ("chat, version 2 against version 1: AWAITING_APPROVAL", "win_rate 0.652", "promotion approve prm_1"):
        assert words in result.stdout


@pytest.mark.parametrize("state", ["FAILED", "HELD"])
def test_a_gate_that_does_not_pass_is_exit_code_1(api: Api, state: str) -> None:
    api.routes["GET /v1/promotions/prm_1"] = PROMOTION | {"state": state, "message": "length_ratio breaks <=1.5"}
    result = simpo(api, "promote", "--model", "chat", "--version", "2", "--auto")
    assert (result.exit_code, result.stderr) == (1, f"error: prm_1 is {state}: length_ratio breaks <=1.5\n")
    assert sent(api, "/v1/promotions") == {"model": "chat", "version": 2, "gate": "default", "approval": "auto"}


def test_promote_needs_a_sweep_or_a_version(api: Api) -> None:
    for arguments in ([], ["mine", "--version", "1"]):
        result = simpo(api, "promote", "--model", "chat", *arguments)
        assert result.exit_code == 2 and "--version" in result.stderr


def test_lists_and_verbs(api: Api) -> None:
    assert "AWAITING_APPROVAL" in simpo(api, "promotion", "list", "--model", "chat").stdout
    assert api.calls[-1].url.params["model"] == "chat"
    assert json.loads(simpo(api, "promotion", "show", "chat", "--json").stdout) == PROMOTION
    api.routes["GET /v1/promotions/prm_1"] = PROMOTION | {"state": "SUCCEEDED"}
    assert simpo(api, "promotion", "approve", "chat").exit_code == 0
    assert "SUCCEEDED" in simpo(api, "promotion", "show", "prm_1").stdout
    api.routes["POST /v1/promotions/prm_1/rollback"] = httpx.Response(409, json={"code": "x", "detail": "Nothing was."})
    assert simpo(api, "promotion", "rollback", "prm_1").stderr == "error: Nothing was.\n"
    assert simpo(api, "model", "list").stdout.split()[-4:] == ["chat", "2", "2", "1"]
    assert "trl_1" in simpo(api, "model", "show", "chat").stdout
    api.routes["GET /v1/promotions"] = {"object": "list", "has_more": False, "data": []}
    assert "no promotion of a model 'nope'" in simpo(api, "promotion", "show", "nope").stderr


def test_a_deployment_follows_a_model(api: Api) -> None:
    result = simpo(api, "deploy", "create", "winner", "--model", "chat@production")
    assert result.exit_code == 0, result.stderr
    assert sent(api, "/v1/deployments") == {"name": "winner", "model": "chat@production"}
    assert simpo(api, "deploy", "create", "winner").exit_code == 2


def test_the_client_asks_for_evaluations_and_reads_the_registry(api: Api) -> None:
    with Client("http://service.test", "k", transport=httpx.MockTransport(api)) as client:
        assert client.evaluate("look", sweep="swp_1", against="chat@production").id == "evl_1"
        assert sent(api, "/v1/evaluations")["against"] == "chat@production"
        assert client.registered_model("chat") == MODEL
        assert [each["version"] for each in client.model_versions("chat")] == [2]
