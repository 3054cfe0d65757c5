"""Feedback: kept with what it is about, forgotten when withdrawn, and a dataset that the doctor looks at."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from service.feedback import pairs
from service.models_feedback import Feedback
from simpo.records import load_preferences
from tests.service.conftest import Plane
from tests.service.test_cli_datasets import simpo
from tests.service.test_deployments import deploy, succeeded
from tests.service.test_keys import as_, made

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}]
Json = dict[str, Any]


def answer(content: str, model: str = "best", **more: Any) -> Json:
    return {"completion": "chatcmpl-0f", "model": model, "content": content, **more}


@pytest.fixture
def deployed(plane: Plane) -> Plane:
    """With the deployment `best`, READY."""
    deploy(plane, succeeded(plane))
    plane.turn()
    return plane


def send(plane: Plane, key: str | None = None, **body: Any) -> Json:
    headers = {} if key is None else as_(plane, key)
    told = plane.client.post("/v1/feedback", json={"messages": TALK, **body}, headers=headers)
    assert told.status_code == 201, told.text
    found: Json = told.json()
    return found


def test_a_thumb_is_kept_with_who_and_which_version(deployed: Plane) -> None:
    key = made(deployed, scopes=["inference", "read"])
    row = send(deployed, key["key"], answer=answer("4", fingerprint="rev-1"), rating="up")
    (deployment,) = deployed.client.get("/v1/deployments").json()["data"]
    assert row["created_by"] == key["id"] and row["messages"] == TALK and row["rejected"] is None
    assert row["answer"] == {
        **answer("4", fingerprint="rev-1"),
        "deployment": deployment["id"],
        "revision": 1,
        "model_version": None,
    }
    assert deployed.client.get(f"/v1/feedback/{row['id']}").json() == row
    assert deployed.client.get("/v1/feedback", params={"model": "best"}).json()["data"] == [row]
    assert deployed.client.get("/v1/feedback", params={"model": "other"}).json()["data"] == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"answer": answer("4")}, ""),
        ({"answer": answer("4"), "rating": "up", "rejected": answer("5")}, ""),
        ({"answer": answer("4"), "rejected": answer("4")}, ""),
        ({"answer": answer("4"), "rating": "great"}, "/rating"),
        ({"answer": answer("4", "nope"), "rating": "up"}, "/answer/model"),
        ({"answer": answer("4"), "rejected": answer("5", "nope")}, "/rejected/model"),
        ({"answer": {**answer("4"), "completion": "../x"}, "rating": "up"}, "/answer/completion"),
        ({"answer": answer("4"), "rating": "up", "user": "me"}, "/user"),
        ({"answer": answer("4"), "rating": "up", "messages": TALK[:1]}, ""),
    ],
)
def test_what_is_no_feedback_is_refused_by_name(deployed: Plane, body: Json, pointer: str) -> None:
    refused = deployed.client.post("/v1/feedback", json={"messages": TALK, **body})
    assert refused.status_code == 422 and refused.json()["errors"][0]["pointer"] == pointer, refused.text
    assert "must be a JSON object" not in refused.text, "it is one: the rule between its members is told"
    assert deployed.client.get("/v1/feedback").json()["data"] == []


def test_the_way_to_a_dataset_is_no_id_of_one(deployed: Plane) -> None:
    asked = deployed.client.options("/v1/datasets/from_feedback")
    assert (asked.status_code, asked.headers["allow"]) == (405, "POST")


def test_who_sent_it_takes_it_back_and_nothing_of_it_stays(deployed: Plane) -> None:
    mine, other = (made(deployed, scopes=["inference", "read"])["key"] for _ in range(2))
    row = send(deployed, mine, answer=answer("a private answer"), rating="down")
    path = f"/v1/feedback/{row['id']}/withdraw"
    assert deployed.client.post(path, headers=as_(deployed, other)).status_code == 404
    assert deployed.client.post(path, headers=as_(deployed, mine)).json() == row
    assert deployed.client.get(f"/v1/feedback/{row['id']}").status_code == 404
    with deployed.store.read() as session:
        for table in ("feedback", "audit", "events", "idempotency"):
            assert "private answer" not in str(session.execute(text(f"SELECT * FROM {table}")).all())
    theirs = send(deployed, mine, answer=answer("4"), rating="up")["id"]
    assert deployed.client.post(f"/v1/feedback/{theirs}/withdraw").status_code == 200, "who administers may"


def test_scopes(deployed: Plane) -> None:
    chat, data = made(deployed, scopes=["inference"])["key"], made(deployed, scopes=["read", "datasets:write"])["key"]
    send(deployed, chat, answer=answer("4"), rejected=answer("5"))
    assert deployed.client.get("/v1/feedback", headers=as_(deployed, chat)).status_code == 403
    assert deployed.client.post("/v1/feedback", json={}, headers=as_(deployed, data)).status_code == 403
    assert deployed.client.post("/v1/datasets/from_feedback", headers=as_(deployed, chat)).status_code == 403
    assert deployed.client.post("/v1/datasets/from_feedback", headers=as_(deployed, data)).status_code == 201


def kept(messages: list[Json], content: str, rating: str | None = None, rejected: str | None = None) -> Feedback:
    worse = None if rejected is None else {"content": rejected}
    hashed = json.dumps(messages)
    return Feedback(messages=messages, prompt_hash=hashed, rating=rating, answer={"content": content}, rejected=worse)


def test_pairs_of_preferences_and_of_thumbs_for_the_same_messages(tmp_path: Path) -> None:
    other = [{"role": "user", "content": "And 3 + 3?"}]
    rows = [
        kept(TALK, "4", rejected="5"),
        kept(TALK, "4", rejected="5"),  # the same again
        kept(TALK, "four", "up"),
        kept(TALK, "4", "up"),
        kept(TALK, "5", "down"),  # 4 over 5 is known
        kept(TALK, "four", "down"),  # people differ
        kept(other, "6", "up"),  # nothing to compare it with
    ]
    found = [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs(rows)]
    assert found == [("4", "5"), ("four", "5"), ("4", "four")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(rows)))
    records = load_preferences(file)
    assert [(row.chosen, row.rejected) for row in records.rows] == found and not records.dropped, "training reads it"
    first = next(pairs(rows))
    assert first == {
        "prompt": TALK,
        "chosen": [{"role": "assistant", "content": "4"}],
        "rejected": [{"role": "assistant", "content": "5"}],
    }


def test_feedback_becomes_a_dataset_that_the_doctor_looks_at(deployed: Plane) -> None:
    path = "/v1/datasets/from_feedback"
    empty = deployed.client.post(path, json={"name": "told"})
    assert empty.status_code == 422 and "there is no pair" in empty.json()["detail"]
    for number in range(3):
        talk = [{"role": "user", "content": f"Say {number}."}]
        send(deployed, messages=talk, answer=answer(f"It is {number}."), rejected=answer("no"))
    first = deployed.client.post(path, json={"name": "told"})
    assert first.status_code == 201 and first.json()["rows"] == 3, first.text
    assert first.json()["columns"] == ["prompt", "chosen", "rejected"]
    assert first.json()["validation"]["state"] == "PENDING", "the doctor is asked at once"
    again = deployed.client.post(path, json={"name": "told"})
    assert again.status_code == 200 and again.json()["id"] == first.json()["id"]
    (row,) = deployed.client.get(f"/v1/datasets/{first.json()['id']}/preview?limit=1").json()["data"]
    assert row["values"]["chosen"] == [{"role": "assistant", "content": "It is 0."}]
    for asked in ({"model": "other"}, {"since": "2030-01-01T00:00:00Z"}):
        assert deployed.client.post(path, json=asked).status_code == 422
    sweep = deployed.client.post("/v1/sweeps?validate_only=true", json={"name": "b", "dataset": first.json()["id"]})
    assert sweep.status_code in (200, 422), "it is named like any other dataset"


def test_the_commands(deployed: Plane) -> None:
    row = send(deployed, answer=answer("4"), rejected=answer("5"))
    shown = simpo(deployed, "feedback", "list")
    assert row["id"] in shown.stdout and "What is 2 + 2?" in shown.stdout, shown.stderr
    made_ = simpo(deployed, "feedback", "export", "--dataset", "told", "--no-wait", "--json")
    assert json.loads(made_.stdout)["name"] == "told", made_.stderr
    gone = simpo(deployed, "feedback", "withdraw", row["id"])
    assert gone.exit_code == 0 and "is forgotten" in gone.stdout
    assert "Nobody said anything yet" in simpo(deployed, "feedback", "list").stdout
