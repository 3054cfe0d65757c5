"""Keys and projects over the API: who may make which key, how secrets change and end, what is kept of them."""

from datetime import timedelta
from typing import Any

from sqlalchemy import select, text

from service.auth import create_key
from service.clock import rfc3339
from service.models import ApiKey
from tests.service.conftest import Plane


def as_(plane: Plane, key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def made(plane: Plane, by: str | None = None, **body: Any) -> dict[str, Any]:
    """A key, as the answer that made it shows it."""
    headers = as_(plane, by) if by else {}
    answer = plane.client.post("/v1/keys", json={"name": "k", **body}, headers=headers)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def project(plane: Plane, name: str = "north") -> str:
    """Its id."""
    answer = plane.client.post("/v1/projects", json={"name": name})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def opens(plane: Plane, key: str) -> bool:
    status: int = plane.client.get("/v1/me", headers=as_(plane, key)).status_code
    assert status in (200, 401)
    return status == 200


def test_a_key_is_shown_once_and_kept_as_a_hash(plane: Plane) -> None:
    key = made(plane, role="member")
    assert key["key"].startswith(key["prefix"]) and key["state"] == "ACTIVE" and key["project"] == "default"
    assert key["scopes"] == ["read", "jobs:write", "datasets:write", "deployments:write", "inference"]
    assert opens(plane, key["key"])
    assert plane.client.get(f"/v1/keys/{key['id']}").json()["key"] is None
    with plane.store.read() as session:
        dumped = " ".join(
            str(row)
            for table in ("api_keys", "idempotency", "audit", "events")
            for row in session.execute(text(f"SELECT * FROM {table}")).all()
        )
    assert key["key"] not in dumped and key["prefix"] in dumped


def test_a_repeated_request_makes_one_key_and_shows_its_secret_once(plane: Plane) -> None:
    headers = {"idempotency-key": "k-1"}
    answers = [plane.client.post("/v1/keys", json={"name": "k", "role": "viewer"}, headers=headers) for _ in range(2)]
    first, again = (answer.json() for answer in answers)
    assert first["key"] and again["key"] is None and {**again, "key": first["key"]} == first
    assert answers[1].headers["idempotency-replayed"] == "true"
    with plane.store.read() as session:
        assert first["key"] not in str(session.execute(text("SELECT body FROM idempotency")).all())


def test_nobody_gives_more_rights_than_they_have(plane: Plane) -> None:
    admin = made(plane, role="admin")["key"]
    for body in ({"role": "operator"}, {"scopes": ["operator"]}, {"role": "operator", "scopes": ["read", "operator"]}):
        answer = plane.client.post("/v1/keys", json={"name": "k", **body}, headers=as_(plane, admin))
        assert answer.status_code == 403 and answer.json()["code"] == "more_rights", body
    assert made(plane, admin, role="operator", scopes=["read"])["scopes"] == ["read"], "what is left of it is allowed"
    narrow = made(plane, scopes=["admin"])["key"]
    assert made(plane, narrow, role="admin")["role"] == "admin", "admin stands for everything in the project"
    member = made(plane, role="member")["key"]
    for path in ("/v1/keys", "/v1/audit"):
        assert plane.client.get(path, headers=as_(plane, member)).status_code == 403
    assert (
        plane.client.post("/v1/keys", json={"name": "k", "role": "viewer"}, headers=as_(plane, member)).status_code
        == 403
    )


def test_nobody_renews_or_ends_a_key_with_more_rights(plane: Plane) -> None:
    """Else an admin of the default project could have the operator's secret."""
    admin, operator = made(plane, role="admin")["key"], made(plane, role="operator")
    for verb in ("rotate", "revoke"):
        answer = plane.client.post(f"/v1/keys/{operator['id']}/{verb}", headers=as_(plane, admin))
        assert answer.status_code == 403 and answer.json()["code"] == "more_rights"
    assert opens(plane, operator["key"])


def test_keys_of_another_project_are_the_operators_alone(plane: Plane) -> None:
    north = project(plane)
    theirs = made(plane, project=north, role="admin")
    assert theirs["project"] == north and made(plane, project="north", role="viewer")["project"] == north
    admin = made(plane, role="admin")["key"]
    for where in (north, "north", "prj_unknown"):
        answer = plane.client.post(
            "/v1/keys", json={"name": "k", "role": "viewer", "project": where}, headers=as_(plane, admin)
        )
        assert answer.status_code == 404 and answer.json()["detail"] == f"There is no project {where}."
    for method, path in (("GET", ""), ("POST", "/rotate"), ("POST", "/revoke")):
        known, unknown = (
            plane.client.request(method, f"/v1/keys/{id}{path}", headers=as_(plane, admin))
            for id in (theirs["id"], "key_unknown")
        )
        assert known.status_code == unknown.status_code == 404
    assert plane.client.get("/v1/keys?project=north", headers=as_(plane, admin)).status_code == 404
    shown = {key["id"] for key in plane.client.get("/v1/keys?project=north").json()["data"]}
    assert theirs["id"] in shown and len(shown) == 2
    mine = plane.client.get("/v1/keys", headers=as_(plane, theirs["key"])).json()["data"]
    assert {key["id"] for key in mine} == shown, "an admin sees the keys of the project, and no others"
    assert plane.client.post(f"/v1/keys/{theirs['id']}/revoke").json()["state"] == "REVOKED"


def test_a_rotated_key_goes_on_for_its_grace(plane: Plane) -> None:
    key = made(plane, role="viewer")
    plane.client.get("/v1/me", headers=as_(plane, key["key"]))
    new = plane.client.post(f"/v1/keys/{key['id']}/rotate", json={"grace_s": 60}).json()
    assert new["id"] == key["id"] and new["key"] != key["key"] and new["previous_until"]
    assert opens(plane, key["key"]) and opens(plane, new["key"])
    plane.clock.advance(61)
    assert not opens(plane, key["key"]) and opens(plane, new["key"])
    assert plane.client.get(f"/v1/keys/{key['id']}").json()["previous_until"] is None
    newer = plane.client.post(f"/v1/keys/{key['id']}/rotate", json={"grace_s": 0}).json()
    plane.clock.advance(5)
    assert not opens(plane, new["key"]) and opens(plane, newer["key"])


def test_a_revoked_key_opens_nothing_within_seconds(plane: Plane) -> None:
    key = made(plane, role="viewer")
    assert opens(plane, key["key"])
    assert plane.client.post(f"/v1/keys/{key['id']}/revoke").json()["state"] == "REVOKED"
    plane.clock.advance(5)
    assert not opens(plane, key["key"])
    again = plane.client.post(f"/v1/keys/{key['id']}/revoke")
    assert again.status_code == 200 and again.json()["state"] == "REVOKED"
    refused = plane.client.post(f"/v1/keys/{key['id']}/rotate")
    assert refused.status_code == 409 and refused.json()["current_state"] == "REVOKED"
    assert key["id"] not in str(plane.client.get("/v1/keys").json())
    assert key["id"] in str(plane.client.get("/v1/keys?state=REVOKED").json())


def test_a_key_ends_by_its_date_to_the_second(plane: Plane) -> None:
    end = rfc3339(plane.clock.now() + timedelta(seconds=3))
    key = made(plane, role="viewer", expires_at=end)
    assert opens(plane, key["key"])
    plane.clock.advance(3)
    assert not opens(plane, key["key"]), "remembered no longer than it lives"
    assert plane.client.get("/v1/keys?state=EXPIRED").json()["data"][0]["id"] == key["id"]
    past = plane.client.post("/v1/keys", json={"name": "k", "role": "viewer", "expires_at": end})
    assert past.status_code == 422 and past.json()["errors"][0]["pointer"] == "/expires_at"


def test_its_use_is_noted_once_a_minute(plane: Plane) -> None:
    key = made(plane, role="viewer")
    seen = []
    for _ in range(5):
        plane.client.get("/v1/me", headers=as_(plane, key["key"]))
        with plane.store.read() as session:
            seen.append(session.get_one(ApiKey, key["id"]).last_used_at)
        plane.clock.advance(25)
    assert seen[0] is not None and len(set(seen)) == 2
    assert seen[0] == seen[2] and seen[3] == seen[0] + timedelta(seconds=75)


def test_an_archived_project_is_closed_and_keeps_what_it_has(plane: Plane) -> None:
    north = project(plane)
    key = made(plane, project=north, role="member")["key"]
    answer = plane.client.post("/v1/sweeps", json={"name": "a"}, headers=as_(plane, key))
    assert answer.status_code == 202
    assert plane.client.post(f"/v1/projects/{north}/archive").json()["state"] == "ARCHIVED"
    plane.clock.advance(5)
    assert not opens(plane, key) and plane.counts()["sweeps"] == 1
    assert [p["name"] for p in plane.client.get("/v1/projects").json()["data"]] == ["default"]
    assert [p["id"] for p in plane.client.get("/v1/projects?state=ARCHIVED").json()["data"]] == [north]
    assert plane.client.post("/v1/projects", json={"name": "north"}).json()["code"] == "name_taken"
    assert plane.client.post("/v1/projects/default/archive").json()["code"] == "default_project"


def test_projects_are_the_operators(plane: Plane) -> None:
    admin = made(plane, role="admin")["key"]
    for method, path in (("GET", ""), ("POST", ""), ("GET", "/default"), ("POST", "/default/archive")):
        answer = plane.client.request(method, f"/v1/projects{path}", headers=as_(plane, admin), json={"name": "x"})
        assert answer.status_code == 403 and answer.json()["scope"] == "operator"


def test_who_am_i(plane: Plane) -> None:
    key = made(plane, role="viewer")
    me = plane.client.get("/v1/me", headers=as_(plane, key["key"])).json()
    assert me == {
        "object": "caller", "key_id": key["id"], "name": "k", "project": "default", "role": "viewer",
        "scopes": ["read", "inference"],
    }  # fmt: skip


def test_a_key_opens_where_its_use_cannot_be_noted(plane: Plane) -> None:
    """A database that cannot be written still lets people read."""
    key = create_key(plane.store, "late", clock=plane.clock)
    with plane.store.write() as session:
        session.execute(text("CREATE TRIGGER full BEFORE UPDATE ON api_keys BEGIN SELECT RAISE(ABORT, 'full'); END"))
    assert opens(plane, key)
    with plane.store.read() as session:
        assert session.scalars(select(ApiKey.last_used_at).where(ApiKey.name == "late")).one() is None
