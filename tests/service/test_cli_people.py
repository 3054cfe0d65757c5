"""`simpo keys`, `simpo projects`, `simpo audit` and the client under them, against the real application."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cli_people import seconds_of
from service.cli_session import UserError
from service.client import Client
from service.client_errors import ApiError
from tests.service.conftest import Plane
from tests.service.test_cli_datasets import into, simpo


def told(plane: Plane, *words: str) -> Any:
    """What a command says with --json."""
    result = simpo(plane, *words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_life_of_a_key(plane: Plane) -> None:
    made = simpo(plane, "keys", "create", "ci", "--role", "member", "--expires-in", "90d")
    secret = made.stdout.strip()
    assert made.exit_code == 0 and secret.startswith("sk-simpo-") and "member" in made.stderr
    (key,) = [key for key in told(plane, "keys", "list") if key["name"] == "ci"]
    assert secret.startswith(key["prefix"]) and key["key"] is None and key["expires_at"]
    assert secret not in simpo(plane, "keys", "list").stdout + simpo(plane, "keys", "show", key["id"]).stdout
    with Client("http://testserver", secret, transport=into(plane)) as client:
        assert client.keys.me()["key_id"] == key["id"]
        newer = told(plane, "keys", "rotate", key["id"], "--grace", "0s")["key"]
        plane.clock.advance(5)
        with pytest.raises(ApiError, match="API key"):
            client.keys.me()
    with Client("http://testserver", newer, transport=into(plane)) as client:
        assert client.keys.me()["role"] == "member"
        with pytest.raises(ApiError, match="lacks the scope"):
            client.keys.create("more", role="viewer")
    revoked = simpo(plane, "keys", "revoke", key["id"])
    assert revoked.exit_code == 0 and "is REVOKED" in revoked.stdout
    assert told(plane, "keys", "list", "--state", "REVOKED")[0]["id"] == key["id"]
    assert "default" in simpo(plane, "keys", "whoami").stdout


def test_a_project_gets_its_first_key_and_is_archived(plane: Plane) -> None:
    made = told(plane, "projects", "create", "north")
    key = told(plane, "keys", "create", "first", "--scope", "read", "--scope", "inference", "--project", "north")
    assert key["project"] == made["id"] and key["scopes"] == ["read", "inference"]
    for words in (("list",), ("show", "north"), ("show", made["id"])):
        assert made["id"] in simpo(plane, "projects", *words).stdout
    archived = simpo(plane, "projects", "archive", "north")
    assert archived.exit_code == 0 and "is ARCHIVED" in archived.stdout
    assert made["id"] in simpo(plane, "projects", "list", "--archived").stdout
    assert made["id"] not in simpo(plane, "projects", "list").stdout
    unknown = simpo(plane, "projects", "show", "south")
    assert unknown.exit_code == 2 and "there is no project south" in unknown.stderr


def test_the_log_is_a_table_json_and_lines(plane: Plane, tmp_path: Path) -> None:
    sweep_id = plane.post("a")["id"]
    shown = simpo(plane, "audit", "list")
    assert shown.exit_code == 0 and "POST /v1/sweeps" in shown.stdout and sweep_id in shown.stdout
    rows = told(plane, "audit", "list", "-n", "1", "--target", sweep_id)
    assert [row["actor_name"] for row in rows] == ["tests"]
    assert simpo(plane, "audit", "list", "--outcome", "refused").stdout.startswith("Nothing")
    piped = simpo(plane, "audit", "export")
    assert json.loads(piped.stdout.splitlines()[-1]) == rows[0]
    file = tmp_path / "audit.jsonl"
    written = simpo(plane, "audit", "export", "--to", str(file))
    assert "1 rows in" in written.stderr and file.read_text() == piped.stdout


def test_a_secret_that_was_lost_on_its_way_is_said_to_be(plane: Plane) -> None:
    """The client repeats a request whose answer it did not get; the secret is not repeated."""

    def lossy(request: httpx.Request) -> httpx.Response:
        answer = inner.handle_request(request)
        if request.method == "POST" and not lost:
            lost.append(answer)
            raise httpx.ReadError("cut off")
        return answer

    lost: list[httpx.Response] = []
    inner = into(plane)
    with Client("http://testserver", plane.key, transport=httpx.MockTransport(lossy), sleep=lambda s: None) as client:
        made = client.keys.create("ci", role="viewer")
    assert made["key"] is None and len(told(plane, "keys", "list")) == 2, "made once"


def test_durations() -> None:
    assert [seconds_of(text) for text in ("5s", "30m", "12h", "90d")] == [5, 1800, 43200, 7776000]
    for wrong in ("", "5", "1w", "-1d", "1.5h"):
        with pytest.raises(UserError, match="is no duration"):
            seconds_of(wrong)


def test_limits_of_a_key_and_of_a_project(plane: Plane) -> None:
    asked = ("--requests-per-minute", "60", "--tokens-per-day", "5000")
    key = told(plane, "keys", "create", "chat", "--scope", "inference", *asked)
    assert key["limits"] == {"requests_per_minute": 60, "tokens_per_minute": None, "tokens_per_day": 5000}
    changed = told(plane, "keys", "limit", key["id"], "--requests-per-minute", "none", "--tokens-per-minute", "9")
    assert changed["limits"] == {"requests_per_minute": None, "tokens_per_minute": 9, "tokens_per_day": 5000}
    assert "tokens_per_day" in simpo(plane, "keys", "show", key["id"]).stdout
    for words, says in ((("--tokens-per-day", "many"), "must be a number or none"), ((), "nothing to change")):
        refused = simpo(plane, "keys", "limit", key["id"], *words)
        assert refused.exit_code == 2 and says in refused.stderr
    assert told(plane, "quotas", "set", "default", "--tokens-per-minute", "70")["inference"]["tokens_per_minute"] == 70
    assert "tokens per minute of models: 70" in simpo(plane, "quotas").stdout
