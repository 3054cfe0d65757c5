"""The OpenAPI document is the frozen one, changes only by addition, and names everything once."""

import copy
from typing import Any

import pytest

from service.openapi import operations
from tests.openapi import COMMAND, broken, current, difference, frozen

pytestmark = pytest.mark.quick

Json = dict[str, Any]


@pytest.fixture(scope="module")
def now() -> Json:
    return current()


def test_the_document_is_the_frozen_one(now: Json) -> None:
    gone, told = broken(frozen(), now), difference(frozen(), now)
    assert not gone, f"Clients rely on what is gone or narrower (if that is wanted: {COMMAND}): {gone}\n{told}"
    assert not told, f"The API has changed, by addition alone. Freeze it: {COMMAND}\n{told}"


def test_what_would_break_a_client_is_found_and_additions_are_not(now: Json) -> None:
    changed = copy.deepcopy(now)
    get = changed["paths"]["/v1/sweeps"]["get"]
    get["parameters"] = [p for p in get["parameters"] if p["name"] != "state"]
    del changed["paths"]["/v1/runs"]["get"]
    schemas = changed["components"]["schemas"]
    del schemas["TrialOut"]["properties"]["metrics"]
    schemas["SweepSpec"]["properties"]["presets"]["enum"].remove("paper")
    schemas["ModelIn"]["required"].append("owner")
    del changed["paths"]["/v1/files"]["post"]["responses"]["415"]
    assert sorted(broken(now, changed)) == [
        "GET /v1/runs is gone",
        "GET /v1/sweeps: the parameter state is gone",
        "ModelIn.owner is required now",
        "POST /v1/files: the answer 415 is gone",
        "SweepSpec.presets: 'paper' is no legal word any more",
        "TrialOut.metrics is gone",
    ]
    told = difference(now, changed)
    assert '-   "name": "state",' in told and "== GET /v1/sweeps\n" in told and "== GET /v1/models" not in told
    assert broken(now, now) == [] and difference(now, now) == ""


def test_operations_have_names_of_their_own_summaries_and_bodies(now: Json) -> None:
    found = list(operations(now))
    names = [operation["operationId"] for _, _, operation in found]
    assert len(set(names)) == len(names)
    for path, method, operation in found:
        assert operation.get("description"), (method, path)
        for media in operation.get("requestBody", {}).get("content", {}).values():
            assert media["schema"] != {"type": "object"}, (method, path)
        for code, answer in operation["responses"].items():
            if "$ref" in answer:
                answer = now["components"]["responses"][answer["$ref"].rpartition("/")[2]]
            assert "x-request-id" in answer["headers"], (method, path, code)
            shape = set(answer.get("content", {}))
            if code >= "400" and path.startswith("/v1"):
                openai = path.startswith(("/v1/chat", "/v1/completions", "/v1/models", "/v1/files", "/v1/fine_tuning"))
                assert shape == {"application/json" if openai else "application/problem+json"}, (method, path, code)


def test_what_makes_a_resource_links_to_what_may_be_done_with_it(now: Json) -> None:
    links = now["paths"]["/v1/sweeps"]["post"]["responses"]["202"]["links"]
    assert {"get_sweep", "cancel_sweep", "pause_sweep", "sweep_events", "leaderboard"} <= set(links)
    assert links["get_sweep"] == {"operationId": "get_sweep", "parameters": {"sweep_id": "$response.body#/id"}}
