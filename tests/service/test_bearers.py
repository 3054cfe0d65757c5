"""Keys and OIDC tokens at the edge: which is which, what a token may do, and what an outsider learns."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from service import oidc_keys
from service.models import Sweep
from service.models_people import AuditEntry, Project
from service.oidc import Oidc
from service.settings import Settings
from tests.service.conftest import Plane, make_plane
from tests.service.issuer import AUDIENCE, Issuer, rsa

SET_UP = {"oidc_issuer": "https://login.example", "oidc_audience": AUDIENCE}


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    monkeypatch.setattr(oidc_keys, "_TIMEOUT_S", 300.0)  # this machine may stand still for as long as a look may take
    with Issuer() as issuer:
        yield issuer


@pytest.fixture
def plane(settings: Settings, issuer: Issuer) -> Iterator[Plane]:
    """With an issuer on loopback, which no setting could name."""
    asked = settings.__class__(**{**vars(settings), **SET_UP})
    yield from make_plane(asked, oidc=lambda clock: Oidc(asked, clock, http_issuer=issuer.url))


def _get(plane: Plane, bearer: str, path: str = "/v1/sweeps") -> Any:
    return plane.client.get(path, headers={"authorization": f"Bearer {bearer}"})


def test_keys_go_on_beside_tokens_and_cost_the_issuer_nothing(plane: Plane, issuer: Issuer) -> None:
    assert _get(plane, plane.key).status_code == 200
    refused = _get(plane, "sk-simpo-nobody")
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    assert issuer.asked == []


def test_a_token_is_its_project_and_its_role(plane: Plane, issuer: Issuer) -> None:
    now = plane.clock.now()
    with plane.store.write() as session:
        session.add(Project(id="prj_b", name="team-b", created_by="tests", created_at=now))
    token = issuer.token(now.timestamp(), simpo_project="team-b")
    bearer = {"authorization": f"Bearer {token}"}
    me = _get(plane, token, "/v1/me").json()
    assert (me["project"], me["role"], me["name"]) == ("prj_b", "member", "ann@example.com")
    sweep = plane.client.post("/v1/sweeps", json={"name": "a"}, headers={**bearer, "idempotency-key": "k"}).json()
    assert _get(plane, token, f"/v1/sweeps/{sweep['id']}").status_code == 200
    assert plane.client.get(f"/v1/sweeps/{sweep['id']}").status_code == 404, "another project's key"
    assert _get(plane, token, "/v1/keys").status_code == 403, "a member administers nothing"
    with plane.store.read() as session:
        row = session.scalars(select(Sweep)).one()
        noted = session.scalars(select(AuditEntry).where(AuditEntry.outcome == "done")).one()
    assert row.created_by == noted.actor and row.created_by.startswith("oidc_")
    assert (noted.actor_name, noted.project) == ("ann@example.com", "prj_b")
    again = issuer.token(now.timestamp() + 1, simpo_project="team-b")
    replay = {"authorization": f"Bearer {again}", "idempotency-key": "k"}
    answer = plane.client.post("/v1/sweeps", json={"name": "a"}, headers=replay)
    assert answer.headers["idempotency-replayed"] == "true", "the same person by a newer token"


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"simpo_project": None}, "no project"),
        ({"simpo_project": "nowhere"}, "a project that there is not"),
        ({"simpo_project": ["default", "nowhere"]}, "more than one project"),
        ({"simpo_project": {"id": "default"}}, "no project"),
        ({"simpo_role": None}, "none of the roles"),
        ({"simpo_role": "root"}, "none of the roles"),
        ({"simpo_role": ["Admin", "editor"]}, "none of the roles"),
    ],
)
def test_a_good_token_without_a_place_here_is_forbidden(
    plane: Plane, issuer: Issuer, claims: dict[str, Any], says: str
) -> None:
    answer = _get(plane, issuer.token(plane.clock.now().timestamp(), **claims))
    assert answer.status_code == 403 and says in answer.json()["detail"]
    assert answer.json()["code"] == "no_project_or_role"


def test_of_several_roles_the_strongest_counts(plane: Plane, issuer: Issuer) -> None:
    token = issuer.token(plane.clock.now().timestamp(), simpo_role=["viewer", "offline", "admin"])
    assert _get(plane, token, "/v1/me").json()["role"] == "admin"


def test_a_bad_token_is_refused_in_both_shapes_and_never_repeated(plane: Plane, issuer: Issuer) -> None:
    token = issuer.token(plane.clock.now().timestamp() - 1000)
    native = _get(plane, token)
    assert native.status_code == 401 and "it has expired" in native.json()["detail"]
    assert native.headers["www-authenticate"].startswith('Bearer error="invalid_token"')
    openai = _get(plane, token, "/v1/files")
    assert openai.status_code == 401 and openai.json()["error"]["type"] == "authentication_error"
    assert token not in native.text and token not in openai.text
    assert _get(plane, "a.b.c").status_code == 401
    assert plane.client.get(f"/v1/sweeps?access_token={token}", headers={"authorization": ""}).status_code == 401


def test_while_the_issuer_is_silent_tokens_are_told_to_come_back(plane: Plane, issuer: Issuer) -> None:
    issuer.status = 503
    answer = _get(plane, issuer.token(plane.clock.now().timestamp()))
    assert answer.status_code == 503 and answer.headers["retry-after"] and answer.json()["code"] == "oidc_unavailable"
    assert _get(plane, plane.key).status_code == 200


def test_what_was_good_is_remembered_for_seconds_and_not_past_its_end(plane: Plane, issuer: Issuer) -> None:
    now = plane.clock.now()
    short = issuer.token(now.timestamp(), exp=int(now.timestamp()) + 2)
    assert _get(plane, short).status_code == 200
    with plane.store.write() as session:
        session.get_one(Project, "default").archived_at = now + timedelta(0)
    assert _get(plane, short).status_code == 200
    plane.clock.advance(3)
    assert _get(plane, short).status_code == 403, "closed meanwhile, and no longer remembered"
    plane.clock.advance(90)
    assert _get(plane, short).status_code == 401


def test_without_an_issuer_no_token_opens_anything(settings: Settings, issuer: Issuer) -> None:
    for plane in make_plane(settings):
        answer = _get(plane, issuer.token(plane.clock.now().timestamp(), key=rsa()))
        assert answer.status_code == 401 and issuer.asked == []
