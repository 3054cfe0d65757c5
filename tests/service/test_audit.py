"""The audit log: every change is one row of it and every row one change (I10); refusals; reading it."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text

from service.audit import forget
from service.housekeeping import Housekeeping
from service.idempotency import Posts
from service.ids import new_id
from service.models_people import AuditEntry
from service.settings import Settings
from service.store import Store
from tests.fakes import FakeClock
from tests.service.conftest import Plane, make_plane
from tests.service.postgres import fresh_database
from tests.service.two_projects import Json, ask, key_of, routes, settle

ASIDE = {"audit", "events", "idempotency", "leases", "webhook_deliveries", "alembic_version", "sqlite_sequence"}
"""Tables that a change is not: they tell of it, or follow from it."""


@pytest.fixture
def own_plane(settings: Settings) -> Iterator[Plane]:
    """One to be changed."""
    yield from make_plane(replace(settings, max_running_sweeps=50))


def test_audit_rows_are_mutations_and_mutations_are_audit_rows(own_plane: Plane) -> None:
    """Every route once with ids that are there: the tables changed exactly where the log has one more row."""
    tenant = settle(own_plane, "south")
    changed = []
    for method, path, operation in sorted(routes(own_plane), key=_destructive_last):
        if operation["x-scope"] in ("operator", "metrics"):
            continue
        before, rows = _state(own_plane), _log(own_plane)
        answer = ask(own_plane, method, path, tenant.ids, tenant.headers)
        new = _log(own_plane)[len(rows) :]
        happened = _state(own_plane) != before
        assert len(new) == (1 if happened else 0), f"{method} {path}: {answer.status_code}, {len(new)} rows"
        if happened:
            assert method != "GET", f"GET {path} writes"
            changed.append(f"{method} {path}")
            (row,) = new
            assert (row["action"], row["outcome"]) == (f"{method} {path}", "done")
            assert row["project"] == tenant.project and row["scope"] == operation["x-scope"]
            assert row["object"] and row["request_id"] == answer.headers["x-request-id"]
            assert row["after"] != row["before"]
            assert row["after"] is not None or "feedback" in path, "the one row that goes when it is taken back"
        else:
            wished_before = "resume" in path or path == "/v1/models/{model}"  # its deployment is on its way out already
            assert method == "GET" or answer.status_code >= 400 or wished_before, f"{method} {path} changed nothing"
    assert len(changed) > 15, changed


def test_refusals_are_noted_and_repetitions_are_not(own_plane: Plane) -> None:
    viewer = key_of(own_plane, role="viewer")
    rows = len(_log(own_plane))
    headers = {"authorization": f"Bearer {viewer['key']}"}
    refused = own_plane.client.post("/v1/sweeps/swp_1%0Acancel/cancel", headers=headers)
    assert refused.status_code == 403
    (row,) = _log(own_plane)[rows:]
    assert (row["outcome"], row["actor"], row["scope"]) == ("refused", viewer["id"], "jobs:write")
    assert row["action"] == "POST /v1/sweeps/swp_1%0Acancel/cancel" and row["object"] == "swp_1%0Acancel"
    same = {"idempotency-key": "k"}
    for _ in range(3):
        assert own_plane.client.post("/v1/sweeps", json={"name": "a"}, headers=same).status_code == 202
    assert len(_log(own_plane)) == rows + 2
    more = own_plane.client.post("/v1/keys", json={"name": "k", "role": "operator"}, headers=_admin(own_plane))
    assert more.status_code == 403 and _log(own_plane)[-1]["outcome"] == "refused", "of rights that a key would give"


def test_a_change_that_fails_leaves_no_row(own_plane: Plane) -> None:
    own_plane.post("a")
    rows = len(_log(own_plane))
    assert own_plane.client.post("/v1/sweeps", json={"name": "a"}).status_code == 409
    assert own_plane.client.post("/v1/sweeps", json={"name": "b", "dataset": "dst_1"}).status_code == 422
    assert len(_log(own_plane)) == rows


def test_an_operators_change_is_in_the_log_of_the_project_that_was_changed(own_plane: Plane) -> None:
    project = own_plane.client.post("/v1/projects", json={"name": "north"}).json()["id"]
    made = key_of(own_plane, project, role="admin")
    shown = own_plane.client.get("/v1/audit", headers={"authorization": f"Bearer {made['key']}"}).json()["data"]
    assert [(row["action"], row["target"]) for row in shown] == [("POST /v1/keys", made["id"])]
    assert shown[0]["actor_name"] == "tests", "the operator's key"
    mine = own_plane.client.get("/v1/audit").json()["data"]
    assert [row["action"] for row in mine] == ["POST /v1/projects"] and mine[0]["target"] == project
    assert own_plane.client.get("/v1/audit?project=north").json()["data"] == shown


def test_the_log_is_read_by_pages_by_filters_and_as_lines(own_plane: Plane) -> None:
    ids = [own_plane.post(f"s{number}")["id"] for number in range(5)]
    own_plane.client.post(f"/v1/sweeps/{ids[0]}/cancel")
    client, seen, after = own_plane.client, [], ""
    while True:
        page = client.get(f"/v1/audit?limit=2{after}").json()
        seen += page["data"]
        if not page["has_more"]:
            break
        after = f"&after={page['next']}"
    assert [row["target"] for row in seen] == [ids[0], *reversed(ids)]
    assert seen[0]["before"] == seen[-1]["after"], "a row is followed through its hashes"
    of_first = client.get(f"/v1/audit?target={ids[0]}").json()["data"]
    assert [row["action"] for row in of_first] == ["POST /v1/sweeps/{sweep_id}/cancel", "POST /v1/sweeps"]
    for query in ("outcome=refused", "actor=key_1", "until=2026-01-01T00:00:00Z", "action=GET"):
        assert client.get(f"/v1/audit?{query}").json()["data"] == []
    lines = client.get("/v1/audit?order=asc", headers={"accept": "application/x-ndjson"})
    assert lines.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line) for line in lines.text.splitlines()] == seen[::-1]
    assert client.get("/v1/audit?format=jsonl&outcome=refused").text == ""


def test_the_log_cannot_be_changed_over_the_api(own_plane: Plane) -> None:
    row = own_plane.post("a") and own_plane.client.get("/v1/audit").json()["data"][0]
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("/v1/audit", f"/v1/audit/{row['id']}"):
            assert own_plane.client.request(method, path, json={}).status_code in (404, 405)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_entries_past_their_days_go_in_small_batches_and_a_line_says_so(
    kind: str,
    settings: Settings,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "postgresql":
        settings = replace(settings, database_url=fresh_database(request.getfixturevalue("postgres")))
    store, now = Store(settings.database_url), datetime.now(UTC)
    said = {"actor": "key_1", "actor_name": "k", "scope": "admin", "action": "POST /v1/keys", "outcome": "done"}
    ages_s = [86_400 * 31 + n for n in range(7)] + [86_400 * 30 + 1, 86_400 * 30 - 60, 0]
    with store.write() as session:
        for n, age_s in enumerate(ages_s):
            at, project = now - timedelta(seconds=age_s), ("default", "prj_2")[n % 2]
            session.add(AuditEntry(id=new_id("aud", at), project=project, request_id=str(age_s), created_at=at, **said))

    def left() -> list[int]:
        with store.read() as session:
            return sorted(int(row.request_id) for row in session.scalars(select(AuditEntry)))

    caplog.set_level("INFO", "service.audit")
    log = logging.getLogger("service.audit")
    monkeypatch.setattr(log, "disabled", False)  # a test before this one may have set up the process's logs
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(log, "handlers", [caplog.handler])
    assert forget(store, now, days=30, at_once=2, batches=2) == 4, "no more at a time than that"
    assert left() == sorted(ages_s)[:6], "the oldest go first"
    clock = FakeClock()
    clock.jump((now - clock.now()).total_seconds())
    for keep in (settings, replace(settings, audit_days=30)):
        house = Housekeeping(store, keep, clock, Posts(store, clock, lambda name: None))
        for _ in range(2):  # the first call only looks at the clock
            house()
        assert len(left()) == (6 if keep.audit_days is None else 2)
    assert left() == [0, 86_400 * 30 - 60]
    assert [record.getMessage().partition(" entries")[0] for record in caplog.records] == ["4", "4"]
    store.close()


def _admin(plane: Plane) -> dict[str, str]:
    return {"authorization": f"Bearer {key_of(plane, role='admin')['key']}"}


def _destructive_last(route: tuple[str, str, Json]) -> tuple[bool, bool, bool, str]:
    method, path, _ = route
    return method == "DELETE", path.endswith(("/cancel", "/abort", "/revoke")), method != "GET", path


def _log(plane: Plane) -> list[dict[str, Any]]:
    with plane.store.read() as session:
        return [dict(row) for row in session.execute(text("SELECT * FROM audit ORDER BY rowid")).mappings()]


def _state(plane: Plane) -> str:
    """Hash of every table that a change may be in; when a key was last used is none."""
    mark = hashlib.sha256()
    with plane.store.read() as session:
        found = session.scalars(text("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"))
        names = {str(name) for name in found}
        for name in sorted(names - ASIDE):
            rows = session.execute(text(f"SELECT * FROM {name} ORDER BY 1, 2")).mappings()
            for row in rows:
                mark.update(str([(key, row[key]) for key in sorted(map(str, row)) if key != "last_used_at"]).encode())
    return mark.hexdigest()
