"""Two projects x every route x every scope, made from the OpenAPI document: what somebody adds is in it by itself.

No leak: an id of another project is answered like an id that there is not, and no answer holds anything of another
project. Every route needs exactly the scope that the document says.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.auth import PREFIX, create_key
from service.gate import OPEN_PATHS
from service.openapi import operations
from service.scopes import SCOPES, allows
from service.settings import Settings
from tests.service.conftest import Plane, make_plane
from tests.service.two_projects import Json, Tenant, ask, filled, key_of, routes, settle, twin

EACH_TIME = {"date", "x-request-id", "content-length", "etag"}


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Where the matrix is run."""

    plane: Plane
    north: Tenant
    south: Tenant
    routes: list[tuple[str, str, Json]]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Ground]:
    """Made once (a second): no test here changes what another one reads."""
    home = tmp_path_factory.mktemp("matrix")
    (home / "simpo.db").write_bytes(migrated.read_bytes())
    settings = Settings(database_url=f"sqlite:///{home / 'simpo.db'}", store=home / "store", reconcile=False)
    for plane in make_plane(settings, max_running_sweeps=50):
        yield Ground(
            plane=plane, south=settle(plane, "south"), north=settle(plane, "north"), routes=list(routes(plane))
        )


def said(answer: Any, ids: Mapping[str, str]) -> Json:
    """An answer without what differs each time, and without the ids that it was asked for."""
    body = re.sub(r"req_[0-9a-f]+", "req", answer.text)
    for name, id in sorted(ids.items(), key=lambda item: -len(item[1])):
        body = body.replace(id, f"<{name}>") if not id.isdecimal() else body
    headers = {name: value for name, value in answer.headers.items() if name not in EACH_TIME}
    return {"status": answer.status_code, "body": body, "headers": headers}


def test_another_projects_id_is_an_id_that_there_is_not(ground: Ground) -> None:
    """On every path with an id, for somebody who may do everything in their own project."""
    strangers = {name: twin(id) for name, id in ground.south.ids.items()}
    asked = 0
    for method, path, operation in ground.routes:
        if "{" not in path:
            continue
        theirs = ask(ground.plane, method, path, ground.south.ids, ground.north.headers)
        nobodys = ask(ground.plane, method, path, strangers, ground.north.headers)
        assert said(theirs, ground.south.ids) == said(nobodys, strangers), f"{method} {path} tells them apart"
        refused = 403 if operation["x-scope"] == "operator" else 404
        # OpenAI's pause and resume are refused for every job.
        assert theirs.status_code == (
            400 if path.endswith(("jobs/{job_id}/pause", "jobs/{job_id}/resume")) else refused
        ), f"{method} {path}: {theirs.status_code} {theirs.text[:200]}"
        asked += 1
    assert asked > 50


def test_a_child_of_another_project_is_not_reached_through_ones_own(ground: Ground) -> None:
    """E.g. their delivery under our webhook."""
    for method, path, operation in ground.routes:
        names = re.findall(r"{(\w+)}", path)
        if len(names) < 2 or operation["x-scope"] == "operator" or names[-1] in ("version", "edit", "trial_id"):
            continue  # numbers within their parent: there is no other project's
        mixed = {**ground.north.ids, names[-1]: ground.south.ids[names[-1]]}
        nobodys = {**ground.north.ids, names[-1]: twin(ground.south.ids[names[-1]])}
        first, second = (ask(ground.plane, method, path, ids, ground.north.headers) for ids in (mixed, nobodys))
        assert said(first, mixed) == said(second, nobodys) and first.status_code == 404, f"{method} {path}"


def bodies(of: Tenant, them: Mapping[str, str]) -> dict[str, tuple[str, Json]]:
    """Requests of one project whose bodies name something of `them`."""
    dataset = them["dataset_id"]
    won = them["won"]
    kept = f"STORE/sweeps/{won}/attempts/1/trials/trl_0001/checkpoint"
    run_body = {"name": "x", "learning_rate": 1e-4}
    return {
        "sweep, data": ("/v1/sweeps", {"name": "x", "dataset": dataset}),
        "sweep, held-out data": ("/v1/sweeps", {"name": "x", "dataset": {"train": "practice", "eval": dataset}}),
        "sweep, data by path": ("/v1/sweeps", {"name": "x", "dataset": f"STORE/datasets/{dataset}/rows.jsonl"}),
        "sweep, model by path": ("/v1/sweeps", {"name": "x", "base_model": kept}),
        "sweep, model by a way round": (
            "/v1/sweeps",
            {"name": "x", "base_model": kept.replace("sweeps/", "./sweeps/")},
        ),
        "sweep, earlier one": ("/v1/sweeps", {"name": "x", "warm_start": [won]}),
        "sweep, plan alone": ("/v1/sweeps?validate_only=true", {"name": "x", "dataset": dataset}),
        "run, data": ("/v1/runs", {**run_body, "dataset": dataset}),
        "run, model by path": ("/v1/runs", {**run_body, "base_model": kept}),
        "comparison, data": ("/v1/comparisons", {"name": "x", "methods": ["simpo", "dpo"], "dataset": dataset}),
        "deployment, sweep": ("/v1/deployments", {"name": "x", "sweep": won}),
        "deployment, model": ("/v1/deployments", {"name": "x", "model": f"{them['model']}@production"}),
        "promotion, sweep": ("/v1/promotions", {"model": "x", "sweep": won}),
        "promotion, version": ("/v1/promotions", {"model": them["model"], "version": 1}),
        "promotion, gate's file": (
            "/v1/promotions",
            {"model": "x", "sweep": of.ids["won"], "gate": {"capability": f"STORE/datasets/{dataset}/rows.jsonl"}},
        ),
        "evaluation, sweep": ("/v1/evaluations", {"name": "x", "sweep": won}),
        "evaluation, champion": (
            "/v1/evaluations",
            {"name": "x", "sweep": of.ids["won"], "against": f"{them['model']}@production"},
        ),
        "version, sweep": (f"/v1/registry/models/{of.ids['model']}/versions", {"sweep": won}),
        "report, held-out data": (f"/v1/datasets/{of.ids['dataset_id']}/validate", {"eval": dataset}),
        "report, model by path": (f"/v1/datasets/{of.ids['dataset_id']}/validate", {"base_model": kept}),
        "job, file": ("/v1/fine_tuning/jobs", {"model": "practice", "training_file": them["file"]}),
        "job, held-out file": (
            "/v1/fine_tuning/jobs",
            {"model": "practice", "training_file": of.ids["file"], "validation_file": them["file"]},
        ),
        "job, deployed model": ("/v1/fine_tuning/jobs", {"model": them["model"], "training_file": of.ids["file"]}),
        "chat": ("/v1/chat/completions", {"model": them["model"], "messages": [{"role": "user", "content": "hi"}]}),
        "completion": ("/v1/completions", {"model": them["model"], "prompt": "hi"}),
        "key": ("/v1/keys", {"name": "x", "role": "viewer", "project": them["project_id"]}),
    }


def test_no_body_reaches_into_another_project(ground: Ground) -> None:
    """By id, by name, or by a path into the store."""
    strangers = {name: twin(id) for name, id in ground.south.ids.items()}
    place = str(ground.plane.settings.store.resolve())
    theirs, nobodys = bodies(ground.north, ground.south.ids), bodies(ground.north, strangers)
    for name, (path, body) in theirs.items():
        first, second = (
            ground.plane.client.post(
                path, json=json.loads(json.dumps(each).replace("STORE", place)), headers=ground.north.headers
            )
            for each in (body, nobodys[name][1])
        )
        assert first.status_code in (400, 404, 409, 422), f"{name}: {first.status_code} {first.text[:200]}"
        left, right = said(first, ground.south.ids), said(second, strangers)
        assert left == right, f"{name}: {left} is not {right}"


def test_no_answer_holds_anything_of_another_project(ground: Ground) -> None:
    """Every GET, of one's own things and of lists, in every shape that lists have."""
    secret = ground.south.known_by
    shapes = ("", "?limit=200", "?order=asc")
    read = 0
    for method, path, operation in ground.routes:
        if method != "GET" or operation["x-scope"] == "operator":
            continue
        for shape in shapes:
            answer = ground.plane.client.get(filled(path, ground.north.ids) + shape, headers=ground.north.headers)
            shown = answer.text
            if path == "/v1/audit" and answer.status_code == 200:  # one's own refusals name what one asked for
                shown = str([row for row in answer.json()["data"] if row["outcome"] == "done"])
            assert not [word for word in secret if word in shown], f"GET {path}{shape}"
            read += answer.status_code == 200
    assert read > 50
    after = f"?after={ground.south.ids['sweep_id']}&order=asc"  # a cursor is no door either
    listed = ground.plane.client.get(f"/v1/sweeps{after}", headers=ground.north.headers)
    assert not [word for word in secret if word in listed.text.replace(ground.south.ids["sweep_id"], "")]


def test_names_are_ones_own(ground: Ground) -> None:
    """What the other project calls its things is free here, and nobody can find out by asking for a name."""
    for path, name in (("/v1/sweeps", "won"), ("/v1/evaluations", "eval"), ("/v1/registry/models", "chat")):
        body: Json = {"name": f"south-{name}"}
        if path == "/v1/evaluations":
            body["sweep"] = ground.north.ids["won"]
        here = ground.plane.client.post(path, json=body, headers=ground.north.headers)
        assert here.status_code in (201, 202), here.text
    same = {"idempotency-key": "the-same"}
    answers = [
        ground.plane.client.post("/v1/sweeps", json={"name": "of-a-key"}, headers={**tenant.headers, **same}).json()[
            "id"
        ]
        for tenant in (ground.north, ground.south)
    ]
    assert answers[0] != answers[1], "Idempotency-Keys are one's own too"


@pytest.mark.parametrize("scope", SCOPES)
def test_every_route_needs_the_scope_that_the_document_says(ground: Ground, scope: str) -> None:
    """Asked for what is not there, so that nothing changes: 403 or something else is all that counts."""
    key = create_key(ground.plane.store, "narrow", scopes=[scope], project=ground.north.project)
    nowhere = {name: twin(id) for name, id in ground.north.ids.items()}
    headers = {"authorization": f"Bearer {key}"}
    for method, path, operation in ground.routes:
        answer = ask(ground.plane, method, path, nowhere, headers)
        refused = answer.status_code == 403
        assert refused != allows({scope}, operation["x-scope"]), f"{scope}: {method} {path} {answer.status_code}"
        if refused:
            body = answer.json()
            assert body.get("code", body.get("error", {}).get("code")) == "missing_scope"


def test_without_a_good_key_every_route_is_shut(ground: Ground) -> None:
    plane = ground.plane
    revoked = key_of(plane, ground.north.project, role="admin")
    plane.client.post(f"/v1/keys/{revoked['id']}/revoke")
    closed = plane.client.post("/v1/projects", json={"name": "closed"}).json()["id"]
    archived = key_of(plane, closed, role="admin")["key"]
    plane.client.post(f"/v1/projects/{closed}/archive")
    bad = {
        "none": "",
        "another scheme": f"Basic {ground.north.key}",
        "wrong": f"Bearer {PREFIX}{'x' * 43}",
        "cut off": f"Bearer {ground.north.key[:-1]}",
        "in another case": f"Bearer {ground.north.key.swapcase()}",
        "revoked": f"Bearer {revoked['key']}",
        "of an archived project": f"Bearer {archived}",
    }
    for method, path, _ in ground.routes:
        answers = {
            name: said(ask(plane, method, path, ground.north.ids, {"authorization": value}), ground.north.ids)
            for name, value in bad.items()
        }
        assert answers["none"]["status"] == 401, f"{method} {path}"
        assert all(answer == answers["none"] for answer in answers.values()), f"{method} {path} tells bad keys apart"


def test_what_is_open_is_on_the_short_list(ground: Ground) -> None:
    """And says nothing of anybody."""
    document = ground.plane.client.get("/openapi.json").json()
    for path, method, operation in operations(document):
        assert (path in OPEN_PATHS) == ("x-scope" not in operation), f"{method} {path}"
        if path in OPEN_PATHS:
            answer = ground.plane.client.get(path, headers={"authorization": ""})
            assert not [word for word in ground.south.known_by if word in answer.text]
