"""The API as a client sees it: sweeps and runs, idempotent POSTs, pages, ETags, errors, the gate."""

import json
import logging
import threading
from typing import Any

import pytest

from service.auth import revoke_keys
from service.errors import OPENAI_PREFIXES
from service.gate import MAX_BODY, OPEN_PATHS
from service.models import ApiKey
from service.settings import Settings
from tests.service.conftest import Plane, make_plane

pytestmark = pytest.mark.quick

Json = dict[str, Any]


# -- POST


def test_an_accepted_sweep(plane: Plane) -> None:
    answer = plane.client.post("/v1/sweeps", json={"name": "a"})
    body = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/sweeps/{body['id']}"
    assert answer.headers["etag"] == '"1"'
    assert body["id"].startswith("swp_") and len(body["id"]) == 30
    assert (body["object"], body["state"], body["reason"]) == ("sweep", "PENDING", "QUEUED")
    assert body["created_at"] == "2026-09-01T09:30:00.000Z"
    assert body["spec"]["method"] == "simpo"
    shown = plane.client.get(answer.headers["location"]).json()
    assert shown == {**body, "queue": shown["queue"], "message": shown["message"]}, "and where it stands in line"
    assert plane.jobs.calls == [], "no call to Ray in a request"


def test_validate_only_answers_with_the_plan_and_stores_nothing(plane: Plane) -> None:
    before = plane.counts()
    for kind, body in (("sweeps", {"name": "a"}), ("runs", {"name": "a", "learning_rate": 1e-4})):
        answer = plane.client.post(f"/v1/{kind}?validate_only=true", json=body)
        assert answer.status_code == 200
        assert answer.json()["object"] == "plan"
        assert answer.json()["plan"]["trials"] == (16 if kind == "sweeps" else 1)
    assert plane.client.post("/v1/sweeps?validate_only=true", json={"name": "A"}).status_code == 422
    assert plane.counts() == before
    plane.post("a")
    assert plane.client.post("/v1/sweeps?validate_only=true", json={"name": "a"}).json()["code"] == "name_taken"


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({"name": "a", "method": "nope"}, "/method", "unknown method"),
        ({"name": "a", "metod": "simpo"}, "/metod", "unknown key"),
        ({"name": "a", "space": {"beta": {"type": "log_float", "low": -1, "high": 2}}}, "/space/beta", ""),
        ({"name": "a", "space": {"gamma": 1.0}}, "/space/gamma", "gamma_beta_ratio"),
        ({"name": "a", "base_model": "/no/such/model"}, "/base_model", "no model directory /no/such/model"),
        ({"name": "a", "dataset": "/no/such.jsonl"}, "/dataset/train", "no file or directory"),
        ({"name": "a", "dataset": {"train": "practice", "eval": "rows.jsonl"}}, "/dataset/eval", "absolute path"),
        ({"name": "a", "dataset": "/data/../etc/passwd"}, "/dataset/train", "without .."),
        ({"name": "a", "dataset": "..\\..\\secret"}, "/dataset/train", "backslashes"),
        ({"name": "a", "warm_start": ["swp-1", "/srv/others/swp-2"]}, "/warm_start/1", "named by their ids"),
        ({"name": "Not A Name"}, "/name", "a-z"),
        ({}, "/name", "required"),
        ([1], "", "JSON object"),
    ],
)
def test_a_refusal_names_the_field_and_the_remedy(plane: Plane, body: Any, pointer: str, words: str) -> None:
    answer = plane.client.post("/v1/sweeps", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["retryable"]) == (422, "validation", False)
    assert answer.headers["content-type"] == "application/problem+json"
    faults = {fault["pointer"]: fault["message"] for fault in problem["errors"]}
    assert [known for known in faults if known.startswith(pointer)], faults
    assert words in json.dumps(problem, ensure_ascii=False).replace("\\\\", "\\")
    assert plane.counts()["sweeps"] == 0


def test_gamma_and_its_ratio_together_are_refused_and_a_large_beta_is_not(plane: Plane) -> None:
    both = {"name": "simpo", "beta": 10, "gamma": 3, "gamma_beta_ratio": 0.3}
    body: Json = {"name": "a", "learning_rate": 1e-4, "method": both}
    assert "not both" in plane.client.post("/v1/runs", json=body).json()["detail"]
    del both["gamma"]
    assert plane.client.post("/v1/runs", json=body).json()["spec"]["method"]["beta"] == 10


def test_a_misspelt_validate_only_starts_nothing(plane: Plane) -> None:
    answer = plane.client.post("/v1/sweeps?validate_onyl=true", json={"name": "a"})
    assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"] == "/validate_onyl"
    assert plane.counts()["sweeps"] == 0


def test_a_form_is_told_to_be_json(plane: Plane) -> None:
    answer = plane.client.post("/v1/sweeps", content='{"name": "a"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 422 and "Content-Type: application/json" in answer.json()["detail"]
    answer = plane.client.post("/v1/sweeps", content='{"name": ', headers={"content-type": "application/json"})
    assert answer.status_code == 422 and "not JSON" in answer.json()["detail"]


def test_a_taken_name_is_a_conflict_until_its_sweep_failed_or_was_cancelled(plane: Plane) -> None:
    first = plane.post("a")
    answer = plane.client.post("/v1/sweeps", json={"name": "a"})
    assert (answer.status_code, answer.json()["code"], answer.json()["existing"]) == (409, "name_taken", first["id"])
    assert answer.headers["x-should-retry"] == "false"
    assert plane.client.post("/v1/runs", json={"name": "a", "learning_rate": 1e-4}).status_code == 202
    plane.client.post(f"/v1/sweeps/{first['id']}/cancel")
    plane.turn()
    assert plane.client.post("/v1/sweeps", json={"name": "a"}).status_code == 202


# -- Idempotency-Key


def keyed(plane: Plane, key: str, body: Json, path: str = "/v1/sweeps") -> Any:
    """A POST with an Idempotency-Key."""
    return plane.client.post(path, json=body, headers={"idempotency-key": key})


def test_a_repeated_key_gets_the_first_answer_again(plane: Plane) -> None:
    first = keyed(plane, "k", {"name": "a"})
    plane.turn()
    again = keyed(plane, "k", {"name": "a"})
    assert (again.status_code, again.json()) == (202, first.json())
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true" and "idempotency-replayed" not in first.headers
    assert plane.counts()["sweeps"] == 1


def test_a_key_with_another_body_or_route_is_refused(plane: Plane) -> None:
    keyed(plane, "k", {"name": "a"})
    for answer in (keyed(plane, "k", {"name": "b"}), keyed(plane, "k", {"name": "a", "learning_rate": 1}, "/v1/runs")):
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


def test_a_key_whose_first_request_failed_may_be_used_again(plane: Plane) -> None:
    assert keyed(plane, "k", {"name": "a", "method": "nope"}).status_code == 422
    plane.post("taken")
    assert keyed(plane, "k", {"name": "taken"}).status_code == 409
    assert keyed(plane, "k", {"name": "a"}).status_code == 202


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
def test_a_key_that_is_none_is_refused(plane: Plane, key: str) -> None:
    assert keyed(plane, key, {"name": "a"}).status_code == 422


def test_fifty_posts_at_once_make_one_sweep(plane: Plane) -> None:
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(keyed(plane, "k", {"name": "a"}))) for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 202}) == 1
    for answer in answers:
        if answer.status_code == 409:
            assert answer.json()["code"] == "idempotency_key_in_flight" and answer.json()["retryable"]
            assert answer.headers["retry-after"] == "1" and "x-should-retry" not in answer.headers
    assert plane.counts()["sweeps"] == 1


def test_cancel_is_idempotent_too(plane: Plane) -> None:
    sweep_id = plane.post()["id"]
    first = plane.client.post(f"/v1/sweeps/{sweep_id}/cancel", headers={"idempotency-key": "c"})
    plane.turn()
    again = plane.client.post(f"/v1/sweeps/{sweep_id}/cancel", headers={"idempotency-key": "c"})
    assert (again.status_code, again.json()) == (202, first.json())
    assert plane.client.post(f"/v1/sweeps/{sweep_id}/cancel").status_code == 409


# -- lists and ETags


def test_pages_go_through_everything_once(plane: Plane) -> None:
    ids = [plane.post(f"s{number}")["id"] for number in range(5)]
    plane.post("r", kind="runs")
    seen, path = [], "/v1/sweeps?limit=2"
    while path:
        answer = plane.client.get(path)
        page = answer.json()
        seen += [item["id"] for item in page["data"]]
        assert page["has_more"] == (page["next"] is not None) == ("link" in answer.headers)
        path = answer.headers["link"][1:].partition(">")[0] if "link" in answer.headers else ""
    assert seen == ids[::-1], "newest first"
    assert [item["id"] for item in plane.client.get("/v1/sweeps?order=asc&limit=3").json()["data"]] == ids[:3]
    after = plane.client.get(f"/v1/sweeps?after={ids[2]}&limit=1").json()
    assert [item["id"] for item in after["data"]] == [ids[1]], "the id of an item is a cursor"
    assert len(plane.client.get("/v1/sweeps?limit=100000").json()["data"]) == 5


def test_filters_are_honoured_or_refused(plane: Plane) -> None:
    first, second = plane.post("a")["id"], plane.post("b")["id"]
    plane.client.post(f"/v1/sweeps/{first}/cancel")
    plane.turn()
    for query, expected in (("state=CANCELLED", [first]), ("state=PENDING,RUNNING", [second]), ("name=b", [second])):
        assert [item["id"] for item in plane.client.get(f"/v1/sweeps?{query}").json()["data"]] == expected
    for query in ("state=DONE", "colour=red", "limit=0", "limit=x", "order=up"):
        assert plane.client.get(f"/v1/sweeps?{query}").status_code == 422, query


def test_etags_spare_pollers_and_change_with_the_resource(plane: Plane) -> None:
    sweep_id = plane.post()["id"]
    for path in (f"/v1/sweeps/{sweep_id}", "/v1/sweeps", f"/v1/sweeps/{sweep_id}/events"):
        tag = plane.client.get(path).headers["etag"]
        assert plane.client.get(path, headers={"if-none-match": tag}).status_code == 304
    tag = plane.client.get(f"/v1/sweeps/{sweep_id}").headers["etag"]
    plane.turn()
    assert plane.client.get(f"/v1/sweeps/{sweep_id}", headers={"if-none-match": tag}).status_code == 200


def test_trials_and_the_leaderboard_before_and_after_the_end(plane: Plane) -> None:
    sweep_id = plane.post()["id"]
    plane.turn()
    driver = plane.drive(sweep_id).start().search([0.5, 0.8, 0.6])
    driver.create(3)
    driver.end(3, "trial.pruned", value=0.9, step=30)
    plane.turn()
    trials = plane.client.get(f"/v1/sweeps/{sweep_id}/trials?limit=3").json()
    assert [trial["number"] for trial in trials["data"]] == [0, 1, 2] and trials["next"] == "trl_0002"
    rest = plane.client.get(f"/v1/sweeps/{sweep_id}/trials?after=trl_0002").json()["data"]
    assert [trial["state"] for trial in rest] == ["PRUNED"]
    first = trials["data"][0]
    assert first["rungs"] == [{"step": 30, "metrics": {"win_rate": 0.25, "accuracy": 0.25}}]
    assert (first["value"], first["seconds"], first["deployable"]) == (0.5, 1.5, True)
    assert plane.client.get(f"/v1/sweeps/{sweep_id}/trials?state=PRUNED").json()["data"][0]["number"] == 3
    board = plane.client.get(f"/v1/sweeps/{sweep_id}/leaderboard").json()
    assert not board["final"]
    assert [row["number"] for row in board["data"]] == [1, 2, 0, 3], "pruned ones last, whatever their value"
    driver.finish(winner=1)
    plane.turn()
    board = plane.client.get(f"/v1/sweeps/{sweep_id}/leaderboard").json()
    assert board["final"]
    assert [(row["rank"], row["trial_id"], row["value"]) for row in board["data"]] == [(1, "trl_0001", 0.7)]


# -- errors and the gate


def routes(plane: Plane) -> list[tuple[str, str]]:
    """(method, path) of every route, with stand-ins for ids."""
    document = plane.client.get("/openapi.json").json()
    found = [(method.upper(), path) for path, item in document["paths"].items() for method in item]
    assert len(found) > 20
    return [(method, path.replace("{", "").replace("}", "")) for method, path in found]


def test_every_route_refuses_without_a_key_and_with_a_bad_one(plane: Plane) -> None:
    bad = [{}, {"authorization": "Bearer sk-simpo-nope"}, {"authorization": plane.key}, {"authorization": "Basic x"}]
    everything = routes(plane)
    del plane.client.headers["authorization"]
    for method, path in [*everything, ("GET", "/no/such/route"), ("POST", "/v1"), ("GET", "/docs")]:
        for headers in bad:
            answer = plane.client.request(method, path, headers=headers, content="{not json")
            if path in OPEN_PATHS:
                assert answer.status_code == 200
            else:
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
    assert {path for _, path in everything} & OPEN_PATHS == {"/healthz", "/readyz"}


def test_every_error_has_its_shape_and_a_request_id(plane: Plane) -> None:
    for method, path in routes(plane):
        answer = plane.client.request(method, path, content="{not json")
        assert answer.headers["x-request-id"].startswith("req_")
        if answer.status_code < 400:
            continue
        assert "Traceback" not in answer.text
        body = answer.json()
        if path.startswith(OPENAI_PREFIXES):
            assert set(body["error"]) == {"message", "type", "param", "code"}
        else:
            assert answer.headers["content-type"] == "application/problem+json"
            assert body["status"] == answer.status_code
            assert body["request_id"] == answer.headers["x-request-id"]
            assert {"type", "title", "detail", "instance", "code", "retryable"} <= set(body)


def test_no_get_writes(plane: Plane) -> None:
    sweep_id = plane.post()["id"]
    before = plane.counts(), plane.sweep(sweep_id)
    for method, path in routes(plane):
        if method == "GET":
            plane.client.get(path.replace("sweep_id", sweep_id))
    assert (plane.counts(), plane.sweep(sweep_id)) == before


def test_ids_of_another_kind_or_nobody_are_not_found(plane: Plane) -> None:
    run_id = plane.post(kind="runs")["id"]
    for path in (f"/v1/sweeps/{run_id}", "/v1/sweeps/swp_x", f"/v1/sweeps/{run_id}/trials", "/v1/sweeps/%2e%2e"):
        assert plane.client.get(path).status_code == 404, path
    assert plane.client.post(f"/v1/sweeps/{run_id}/cancel").status_code == 404


def test_a_request_id_is_taken_over_when_it_is_plain(plane: Plane) -> None:
    assert plane.client.get("/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for odd in ("a b", "<script>", "x" * 65):
        assert plane.client.get("/healthz", headers={"x-request-id": odd}).headers["x-request-id"].startswith("req_")


def test_a_body_beyond_the_limit_is_refused_by_length_and_by_count(plane: Plane) -> None:
    big = b'{"name": "' + b"a" * MAX_BODY + b'"}'
    assert plane.client.post("/v1/sweeps", content=big).status_code == 413
    assert plane.client.post("/v1/sweeps", content=iter([big[:MAX_BODY], big[MAX_BODY:]])).status_code == 413


def test_a_mistake_of_ours_says_nothing_of_its_inside(plane: Plane, caplog: pytest.LogCaptureFixture) -> None:
    plane.store.close()
    with plane.store.write() as session:
        session.connection().exec_driver_sql("DROP TABLE events")
    with caplog.at_level(logging.ERROR):
        answer = plane.client.post("/v1/sweeps", json={"name": "a"})
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert "events" not in answer.text


def test_keys_are_hashed_revocable_and_nowhere_in_the_log(plane: Plane, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        plane.post()
        with plane.store.read() as session:
            (row,) = session.query(ApiKey).all()
    assert plane.key not in (row.hash, row.prefix) and plane.key.startswith(row.prefix)
    assert plane.key not in caplog.text and row.hash not in caplog.text
    assert revoke_keys(plane.store, "tests", now=plane.clock.now()) == 1
    plane.clock.advance(5.1)
    assert plane.client.get("/v1/sweeps").status_code == 401


def test_readiness_follows_the_reconciler_and_liveness_does_not(settings: Settings) -> None:
    for plane in make_plane(settings, reconcile=True):
        assert plane.client.get("/readyz").json() == {"status": "ready"}
        plane.reconciler.stop()
        assert plane.client.get("/readyz").json()["code"] == "reconciler_stopped"
        assert plane.client.get("/healthz").json() == {"status": "ok"}
