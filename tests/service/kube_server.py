"""The API server that the cases of conformance run on: the double, or a real one that the environment names.

KUBE_CONFORMANCE_URL is its origin; KUBE_CONFORMANCE_TOKEN, KUBE_CONFORMANCE_CA (a file) and
KUBE_CONFORMANCE_NAMESPACE go with it. It needs KubeRay's CRDs and no operator.
"""

import json
import os
import secrets
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.service.kube_double import NAMESPACE, TOKEN, KubeDouble

Json = dict[str, Any]

REAL = os.environ.get("KUBE_CONFORMANCE_URL", "")
APPLY = "application/apply-patch+yaml"


class Server:
    """An API server, and names of objects of which nobody else has one."""

    def __init__(self, http: httpx.Client, double: KubeDouble | None) -> None:
        self.http = http
        self.own = double
        self.namespace = os.environ.get("KUBE_CONFORMANCE_NAMESPACE", NAMESPACE)
        self.made: list[str] = []

    @property
    def double(self) -> KubeDouble:
        """Skips where the server is real."""
        if self.own is None:
            pytest.skip("only a double can be made to do this: KUBE_CONFORMANCE_URL names a real server")
        return self.own

    def name(self) -> str:
        """A fresh one."""
        self.made.append(f"case-{secrets.token_hex(4)}")
        return self.made[-1]

    def path(self, *parts: str) -> str:
        """Of the RayJobs, or of one."""
        return "/".join((f"/apis/ray.io/v1/namespaces/{self.namespace}/rayjobs", *parts))

    def kubeconfig(self, folder: Path) -> Path:
        """A file as kubectl has it."""
        cluster = {"server": str(self.http.base_url)}
        if REAL and os.environ.get("KUBE_CONFORMANCE_CA"):
            cluster["certificate-authority"] = os.environ["KUBE_CONFORMANCE_CA"]
        context = {"cluster": "a", "user": "a", "namespace": self.namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "a",
            "contexts": [{"name": "a", "context": context}],
            "clusters": [{"name": "a", "cluster": cluster}],
            "users": [{"name": "a", "user": {"token": self.http.headers["authorization"].removeprefix("Bearer ")}}],
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    def create(self, name: str, spec: Json | None = None, **metadata: Any) -> httpx.Response:
        """POST."""
        body = {**rayjob(name, spec), "metadata": {"name": name, **metadata}}
        return self.http.post(self.path(), json=body, params={"fieldManager": "maker"})

    def apply(
        self, name: str, spec: Json, manager: str = "simpo", uid: str | None = None, **query: str
    ) -> httpx.Response:
        """Server-side apply."""
        body = rayjob(name, None) | {"spec": spec}
        if uid:
            body["metadata"]["uid"] = uid
        headers, params = {"content-type": APPLY}, {"fieldManager": manager, **query}
        return self.http.patch(self.path(name), content=json.dumps(body), headers=headers, params=params)


@contextmanager
def api_server() -> Iterator[Server]:
    """The one to be asked; what was made there is removed at the end."""
    if REAL:
        ca = os.environ.get("KUBE_CONFORMANCE_CA")
        verify = ssl.create_default_context(cafile=ca) if ca else True
        headers = {"authorization": f"Bearer {os.environ.get('KUBE_CONFORMANCE_TOKEN', '')}"}
        with httpx.Client(base_url=REAL, headers=headers, verify=verify, timeout=30) as http:
            real = Server(http, None)
            yield real
            for name in real.made:
                http.patch(
                    real.path(name),
                    content='{"metadata":{"finalizers":null}}',
                    headers={"content-type": "application/merge-patch+json"},
                )
                http.delete(real.path(name))
        return
    headers = {"authorization": f"Bearer {TOKEN}"}
    with KubeDouble() as double, httpx.Client(base_url=double.url, headers=headers, timeout=30) as http:
        yield Server(http, double)


def rayjob(name: str, spec: Json | None) -> Json:
    """As small as the CRD admits it."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": spec or {"entrypoint": "a"},
    }
