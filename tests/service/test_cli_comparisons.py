"""`simpo comparison ...`: against the real application in this process, and what is printed of a result."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.fakes import FakeComparer
from tests.service.conftest import Plane, make_plane
from tests.service.test_cli import Api
from tests.service.test_cli import simpo as scripted
from tests.service.test_cli_datasets import simpo
from tests.service.test_comparisons import BODY

ROW = {"rank": 1, "name": "simpo", "ranked_by": "win_rate", "figure": None, "failure": "no trial won", "tied_with": []}
RESULT = {
    "leaderboard": [ROW | {"trials": {"PRUNED": 4}, "steps": 160}],
    "curves": {},
    "verdicts": [{"above": None, "pair": ["simpo", "sft"], "text": "simpo and sft are not told apart"}],
    "unequal": [],
}
DONE = {"id": "cmp_1", "name": "both", "state": "SUCCEEDED", "message": "Succeeded.", "result": RESULT}


@pytest.fixture
def plane(settings: Settings) -> Iterator[Plane]:
    yield from make_plane(settings)


def test_create_list_show_and_cancel(plane: Plane, tmp_path: Any) -> None:
    file = tmp_path / "both.yaml"
    file.write_text(json.dumps(BODY))
    planned = simpo(plane, "comparison", "create", "-f", str(file), "--dry-run")
    assert planned.exit_code == 0, planned.stderr
    assert "nothing was started" in planned.stdout and "simpo" in planned.stdout
    assert set(
        json.loads(simpo(plane, "comparison", "create", "-f", str(file), "--dry-run", "--json").stdout)["plan"]
    ) == {*("sft", "simpo")}
    assert plane.counts()["sweeps"] == 0
    made = simpo(plane, "comparison", "create", "-f", str(file))
    assert made.exit_code == 0 and "simpo comparison watch mine" in made.stdout, made.stderr
    plane.turn()
    (listed,) = json.loads(simpo(plane, "comparison", "list", "--json").stdout)
    FakeComparer(plane.settings.run_dir(listed["id"]))
    plane.turn()
    assert "sft, simpo" in simpo(plane, "comparison", "list").stdout
    told = simpo(plane, "comparison", "show", "mine").stdout
    assert "is RUNNING: Tunes one method after another. (50%)" in told
    assert json.loads(simpo(plane, "comparison", "show", listed["id"], "--json").stdout)["state"] == "RUNNING"
    early = simpo(plane, "deploy", "create", "dpo", "--comparison", "mine", "--method", "sft", "--no-wait")
    assert early.exit_code == 2 and "only a SUCCEEDED comparison" in early.stderr, early.stderr
    assert simpo(plane, "deploy", "create", "a", "--sweep", "x", "--method", "sft").exit_code == 2
    promoted = simpo(plane, "promote", "--comparison", "mine", "--method", "sft", "--model", "chat")
    assert promoted.exit_code == 2 and "only a SUCCEEDED comparison" in promoted.stderr, promoted.stderr
    assert "--method: is for" in simpo(plane, "promote", "x", "--method", "sft", "--model", "chat").stderr
    assert simpo(plane, "comparison", "cancel", "mine").stdout == "mine is RUNNING\n"
    plane.turn(3)
    again = simpo(plane, "comparison", "cancel", listed["id"])
    assert (again.exit_code, again.stderr) == (2, "error: A CANCELLED comparison cannot be cancelled.\n")
    assert simpo(plane, "comparison", "show", "nobody").exit_code == 2
    file.write_text(json.dumps({**BODY, "methods": ["sft"]}))
    assert "methods" in simpo(plane, "comparison", "create", "-f", str(file)).stderr


@pytest.mark.quick
def test_watch_tells_each_event_and_then_the_result() -> None:
    event = {"id": "evt_1", "type": "job.phase", "created_at": "now", "message": "simpo: method 2 of 2", "data": {}}
    stream = f"id: evt_1\nevent: job.phase\ndata: {json.dumps(event)}\n\nevent: done\ndata: {{}}\n\n"
    api = Api(**{"GET /v1/comparisons/cmp_1": DONE, "GET /v1/comparisons/cmp_1/events": stream})
    result = scripted(api, "comparison", "watch", "cmp_1")
    assert result.exit_code == 0, result.stderr
    for words in (
        "now  simpo: method 2 of 2",
        "win rate over the base",
        "none: no trial won",
        "undecided|not told apart",
    ):
        assert any(word in result.stdout for word in words.split("|")), result.stdout
    api.routes["POST /v1/comparisons"] = httpx.Response(202, json=DONE | {"state": "PENDING"})
    api.routes["GET /v1/comparisons/cmp_1"] = DONE | {"state": "FAILED", "error": {"message": "no CPU"}, "result": None}
    made = scripted(api, "comparison", "create", "-f", "-", "--watch", "--json", stdin="{name: both}")
    assert (made.exit_code, made.stderr) == (1, "error: comparison both is FAILED: no CPU\n")
    assert json.loads(made.stdout)["state"] == "PENDING"
