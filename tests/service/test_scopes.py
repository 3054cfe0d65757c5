"""Scopes: every route needs one, reading never suffices for writing, and what nobody named needs admin."""

import pytest

from service.auth import create_key
from service.scopes import SCOPES, scope_of
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
    assert "admin" not in needed.values(), "a route that nobody gave a scope: add it to service.scopes"
    assert needed["POST", "/v1/promotions/{promotion_id}/approve"] == "models:promote"
    assert needed["DELETE", "/v1/deployments/{deployment_id}"] == "deployments:write"


def test_what_no_line_names_needs_admin() -> None:
    assert scope_of("POST", "/v1/keys") == scope_of("POST", "/v1/sweepsx") == scope_of("PATCH", "/") == "admin"
    assert scope_of("GET", "/v1/anything") == scope_of("HEAD", "/v1/sweeps") == "read"


def test_a_narrow_key_does_its_part_and_no_other(plane: Plane) -> None:
    key = create_key(plane.store, "reader", scopes=["read"], clock=plane.clock)
    headers = {"authorization": f"Bearer {key}"}
    assert plane.client.get("/v1/sweeps", headers=headers).status_code == 200
    for method, path in (("POST", "/v1/sweeps"), ("POST", "/v1/chat/completions"), ("GET", "/v1/models")):
        answer = plane.client.request(method, path, headers=headers, json={})
        assert answer.status_code == 403, path
    assert answer.json()["error"]["type"] == "permission_error", "in OpenAI's shape on its routes"
    assert plane.counts()["sweeps"] == 0
