"""Two projects with one of everything, and requests made from the OpenAPI document: where the matrix is run."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import select

from service.gate import OPEN_PATHS
from service.models_webhooks import WebhookDelivery
from service.openapi import operations
from tests.service.conftest import Plane
from tests.service.test_deployments import deploy, succeeded

Json = dict[str, Any]

BODIES: Mapping[str, Json] = {
    "POST /v1/sweeps/{sweep_id}/extend": {"trials": 200},
    "POST /v1/sweeps/{sweep_id}/space": {"axes": {"beta": {"type": "float", "low": 1, "high": 3}}},
    "POST /v1/sweeps/{sweep_id}/points": {"params": {"beta": 2.0, "gamma_beta_ratio": 0.5, "learning_rate": 1e-4}},
    "POST /v1/registry/models/{model}/versions": {"sweep": "swp_1", "checkpoint": "winner"},
    "POST /v1/deployments/{deployment_id}/canary": {"sweep": "swp_1"},
    "PATCH /v1/deployments/{deployment_id}": {"weight": 5},
    "POST /v1/deployments/{deployment_id}/scaling": {"min_replicas": 0},
    "POST /v1/keys/{key_id}/limits": {"requests_per_minute": 600},
    "PATCH /v1/projects/{project_id}/quotas": {},
}
"""What a request with ids in its path must say to be more than a 422. A new one that needs a body says it here."""


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """A project, and what is in it."""

    mark: str
    """Stands in every name of it."""
    project: str
    key: str
    """An admin's."""
    ids: Mapping[str, str]
    """Parameter of a path -> what it names here."""

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    @property
    def known_by(self) -> list[str]:
        """What nobody else may ever read."""
        return [self.mark, *(id for id in self.ids.values() if re.match(r"[a-z]+[_-][0-9a-z]{26}$", id))]


def key_of(plane: Plane, project: str | None = None, **body: Any) -> Json:
    """A new key, by the operator."""
    answer = plane.client.post("/v1/keys", json={"name": "k", "project": project, **body})
    assert answer.status_code == 201, answer.text
    made: Json = answer.json()
    return made


def settle(plane: Plane, mark: str) -> Tenant:
    """A project with one of everything."""
    made = plane.client.post("/v1/projects", json={"name": mark})
    project = made.json()["id"]
    key = key_of(plane, project, role="admin")["key"]
    operator = plane.client.headers["authorization"]
    plane.client.headers["authorization"] = f"Bearer {key}"
    try:
        ids = _stock(plane, mark)
    finally:
        plane.client.headers["authorization"] = operator
    return Tenant(mark=mark, project=project, key=key, ids={**ids, "project_id": project})


def twin(id: str) -> str:
    """An id of the same form that is nobody's."""
    if id.isdecimal():
        return id
    numbered = id.startswith(("trl_", "edt_"))
    return id[:-4] + ("9999" if numbered else "zzzz")


def routes(plane: Plane) -> Iterator[tuple[str, str, Json]]:
    """(method, path, operation) of everything that needs a key."""
    for path, method, operation in operations(plane.client.get("/openapi.json").json()):
        if path not in OPEN_PATHS:
            yield method.upper(), path, operation


def filled(path: str, ids: Mapping[str, str]) -> str:
    """The path with ids in it."""
    for name in re.findall(r"{(\w+)}", path):
        if name not in ids:
            pytest.fail(f"tests/service/two_projects.py does not know what {{{name}}} of {path} is: make one in _stock")
        path = path.replace(f"{{{name}}}", ids[name])
    return path


def ask(plane: Plane, method: str, path: str, ids: Mapping[str, str], headers: Mapping[str, str]) -> Any:
    """One request; it says If-Match: * where it matters, and a body where one is needed."""
    body = BODIES.get(f"{method} {path}", {})
    has_body = method in ("POST", "PATCH", "PUT") and path not in ("/v1/datasets", "/v1/files")
    more: Json = {"json": body} if has_body else {}
    return plane.client.request(method, filled(path, ids), headers={"if-match": "*", **headers}, **more)


def _stock(plane: Plane, mark: str) -> dict[str, str]:
    """One of everything, made over the API by the key that the client has."""
    client = plane.client

    def post(path: str, **more: Any) -> Json:
        answer = client.post(path, **more)
        assert answer.status_code < 300, answer.text
        body: Json = answer.json()
        return body

    won = succeeded(plane, f"{mark}-won")
    served = deploy(plane, won, f"{mark}-chat").json()["id"]
    judged = {"completion": "chatcmpl-1", "model": f"{mark}-chat", "content": f"an answer of {mark}"}
    talk = [{"role": "user", "content": mark}]
    hook = post("/v1/webhooks", json={"url": f"https://{mark}.example.org/", "events": ["*"], "description": mark})
    live = plane.post(f"{mark}-live")["id"]
    rows = f'{{"prompt": "{mark}", "chosen": "a", "rejected": "b"}}\n' * 8
    jsonl = {"content-type": "application/jsonl"}
    data = post(f"/v1/datasets?name={mark}-data", content=rows, headers=jsonl)
    file = data["id"].replace("dst_", "file-")
    tuned = post("/v1/fine_tuning/jobs", json={"model": "practice", "training_file": file, "metadata": {"of": mark}})
    post("/v1/registry/models", json={"name": f"{mark}-chat"})
    versions = f"/v1/registry/models/{mark}-chat/versions"
    post(versions, json={"sweep": won, "checkpoint": "winner"})
    promotion = post("/v1/promotions", json={"model": f"{mark}-chat", "version": 1})
    compared = {"name": f"{mark}-both", "methods": ["simpo", "dpo"], "base_model": "practice", "dataset": "practice"}
    run = plane.post(f"{mark}-run", kind="runs")["id"]
    post(f"/v1/runs/{run}/pause")  # the first edit of both, so that one id stands for either
    with plane.store.read() as session:
        told = select(WebhookDelivery.id).where(WebhookDelivery.webhook_id == hook["id"]).limit(1)
        delivery = session.scalars(told).one()
    return {
        "sweep_id": live,
        "trial_id": "trl_0000",
        "edit": post(f"/v1/sweeps/{live}/pause")["id"],
        "run_id": run,
        "evaluation_id": post("/v1/evaluations", json={"name": f"{mark}-eval", "sweep": won})["id"],
        "comparison_id": post("/v1/comparisons", json=compared)["id"],
        "deployment_id": served,
        "feedback_id": post("/v1/feedback", json={"messages": talk, "answer": judged, "rating": "up"})["id"],
        "dataset_id": data["id"],
        "file": file,
        "job_id": tuned["id"],
        "model": f"{mark}-chat",
        "version": "1",
        "promotion_id": promotion["id"],
        "webhook_id": hook["id"],
        "delivery_id": delivery,
        "key_id": post("/v1/keys", json={"name": f"{mark}-key", "role": "viewer"})["id"],
        "won": won,
    }
