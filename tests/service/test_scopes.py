"""Scopes: every route needs one, reading never suffices for writing, and what nobody named needs admin."""

import pytest

from service.auth import create_key
from service.scopes import SCOPES, allows, held, is_named, scope_of
from tests.service.conftest import Plane

pytestmark = pytest.mark.quick


def test_what_each_route_needs(plane: Plane) -> None:
    document = plane.client.get("/openapi.json").json()
    needed = {
        (method.upper(), path): scope_of(method.upper(), path)
        for path, item in document["paths"].items()
        for method in item
        if path.startswith("/v1")
    }
    assert set(needed.values()) <= set(SCOPES)
    assert all(scope != "read" for (method, _), scope in needed.items() if method != "GET")
    unnamed = [path for _, path in needed if not is_named(path)]
    assert not unnamed, "a route that nobody gave a scope: add it to service.scopes"
    assert needed["POST", "/v1/promotions/{promotion_id}/approve"] == "models:promote"
    assert needed["DELETE", "/v1/deployments/{deployment_id}"] == "deployments:write"


def test_what_no_line_names_needs_admin() -> None:
    assert scope_of("GET", "/v1/anything") == scope_of("POST", "/v1/sweepsx") == scope_of("PATCH", "/") == "admin"
    assert scope_of("HEAD", "/v1/sweeps") == "read"


def test_roles_are_sets_of_scopes_and_scopes_narrow_them() -> None:
    assert held(None, None) is None and held("viewer", None) == frozenset({"read", "inference"})
    assert held("member", ["read", "admin"]) == frozenset({"read"}), "narrowed, never widened"
    assert allows(held("admin", None), "models:promote") and not allows(held("admin", None), "operator")
    assert allows(None, "operator") and not allows(held("member", None), "models:promote")


def test_a_narrow_key_does_its_part_and_no_other(plane: Plane) -> None:
    key = create_key(plane.store, "reader", scopes=["read"], clock=plane.clock)
    headers = {"authorization": f"Bearer {key}"}
    assert plane.client.get("/v1/sweeps", headers=headers).status_code == 200
    for method, path in (("POST", "/v1/sweeps"), ("POST", "/v1/chat/completions"), ("GET", "/v1/models")):
        answer = plane.client.request(method, path, headers=headers, json={})
        assert answer.status_code == 403, path
    assert answer.json()["error"]["type"] == "permission_error", "in OpenAI's shape on its routes"
    assert plane.counts()["sweeps"] == 0
