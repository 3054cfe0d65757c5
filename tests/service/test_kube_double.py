"""The double answers as a real API server was measured to; the same cases run against a real one.

    KUBE_CONFORMANCE_URL=https://... python -m pytest tests/service/test_kube_double.py

What goes with the variable stands in kube_server.py. What only a double can be made to do is skipped there, by name.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.kube import KubeApi, KubeError
from service.serving.deployer import DeployerError
from service.serving.rayservice import RayServiceDeployer
from tests.service.kube_server import Server, api_server, rayjob
from tests.service.test_rayservice import SERVICE, WINNER

Json = dict[str, Any]


@pytest.fixture
def server() -> Iterator[Server]:
    with api_server() as found:
        yield found


def told(answer: httpx.Response, status: int, reason: str, words: str) -> None:
    """The answer is this refusal, as a Status object."""
    body = answer.json()
    assert answer.status_code == status, answer.text
    assert (body["kind"], body["status"], body["reason"], body["code"]) == ("Status", "Failure", reason, status)
    assert words in body["message"], body["message"]


def test_a_new_object_has_its_defaults_and_first_versions(server: Server) -> None:
    answer = server.create(server.name())
    thing = answer.json()
    assert answer.status_code == 201
    defaults = {"backoffLimit": 0, "submissionMode": "K8sJobMode", "ttlSecondsAfterFinished": 0}
    assert {key: thing["spec"][key] for key in defaults} == defaults
    assert thing["metadata"]["generation"] == 1
    assert {"uid", "resourceVersion", "creationTimestamp", "managedFields"} <= set(thing["metadata"])


def test_the_same_name_twice(server: Server) -> None:
    name = server.name()
    server.create(name)
    told(server.create(name), 409, "AlreadyExists", "already exists")


def test_what_is_not_there(server: Server) -> None:
    told(server.http.get(server.path("nobody")), 404, "NotFound", 'rayjobs.ray.io "nobody" not found')
    told(server.http.delete(server.path("nobody")), 404, "NotFound", "not found")


def test_a_put_with_an_old_version(server: Server) -> None:
    name = server.name()
    old = server.create(name).json()
    new = json.loads(json.dumps(old)) | {"spec": {**old["spec"], "entrypoint": "b"}}
    changed = server.http.put(server.path(name), json=new).json()
    assert changed["metadata"]["generation"] == 2
    told(server.http.put(server.path(name), json=new), 409, "Conflict", "the object has been modified")


def test_a_status_has_a_door_of_its_own(server: Server) -> None:
    name = server.name()
    thing = server.create(name).json()
    thing["status"] = {"jobStatus": "RUNNING"}
    ignored = server.http.put(server.path(name), json=thing).json()
    assert "jobStatus" not in ignored.get("status", {})
    ignored["status"] = {"jobStatus": "RUNNING"}
    kept = server.http.put(server.path(name, "status"), json=ignored).json()
    assert kept["status"]["jobStatus"] == "RUNNING" and kept["metadata"]["generation"] == 1


def test_an_apply_makes_and_the_same_again_changes_nothing(server: Server) -> None:
    name = server.name()
    first = server.apply(name, {"entrypoint": "a"})
    again = server.apply(name, {"entrypoint": "a"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["metadata"]["resourceVersion"] == again.json()["metadata"]["resourceVersion"]


def test_an_apply_on_somebody_elses_field(server: Server) -> None:
    name = server.name()
    server.apply(name, {"entrypoint": "a"}, "somebody")
    refused = server.apply(name, {"entrypoint": "b"})
    told(refused, 409, "Conflict", 'conflict with "somebody" using ray.io/v1: .spec.entrypoint')
    (cause,) = refused.json()["details"]["causes"]
    assert (cause["reason"], cause["field"]) == ("FieldManagerConflict", ".spec.entrypoint")
    assert server.apply(name, {"entrypoint": "a"}).status_code == 200, "the same value is shared"
    forced = server.apply(name, {"entrypoint": "b"}, force="true").json()
    assert forced["spec"]["entrypoint"] == "b"
    told(server.apply(name, {"entrypoint": "a"}, "somebody"), 409, "Conflict", 'conflict with "simpo"')


def test_what_is_no_longer_applied_goes(server: Server) -> None:
    name = server.name()
    server.apply(name, {"entrypoint": "a", "jobId": "x"})
    assert "jobId" not in server.apply(name, {"entrypoint": "a"}).json()["spec"]


def test_an_apply_for_an_object_that_is_gone_or_another(server: Server) -> None:
    name = server.name()
    told(
        server.apply(name, {"entrypoint": "a"}, uid="11111111-aaaa-bbbb-cccc-222222222222"),
        409,
        "Conflict",
        "uid mismatch",
    )
    server.create(name)
    wrong = server.apply(name, {"entrypoint": "a"}, uid="11111111-aaaa-bbbb-cccc-222222222222", force="true")
    assert (wrong.status_code, wrong.json()["reason"]) == (409, "Conflict")


@pytest.mark.parametrize("name", ["UPPER", "x_y", "a" * 254])
def test_names_that_no_object_has(server: Server, name: str) -> None:
    told(server.create(name), 422, "Invalid", "metadata.name")


def test_a_long_name_is_one_and_a_long_label_is_none(server: Server) -> None:
    name = f"{server.name()}-".ljust(64, "a")
    server.made.append(name)
    assert server.create(name).status_code == 201
    told(server.create(server.name(), labels={"key": "a" * 64}), 422, "Invalid", "must be no more than 63")


def test_a_rule_of_the_crd(server: Server) -> None:
    told(
        server.create(server.name(), {"managedBy": "evil"}), 422, "Invalid", "the managedBy field value must be either"
    )


def test_sizes(server: Server) -> None:
    told(server.create(server.name(), annotations={"a": "x" * 263_000}), 422, "Invalid", "may not be more than 262144")
    huge = server.create(server.name(), {"entrypoint": "x" * 2_000_000})
    told(huge, 500, "InternalError" if server.own else huge.json()["reason"], "request is too large")


def test_unknown_fields(server: Server) -> None:
    kept = server.create(server.name(), {"entrypoint": "a", "nobodyKnows": 1}).json()
    assert "nobodyKnows" not in kept["spec"]
    params = {"fieldValidation": "Strict"}
    strict = server.http.post(server.path(), json=rayjob(server.name(), {"nobodyKnows": 1}), params=params)
    told(strict, 400, "BadRequest", 'unknown field "spec.nobodyKnows"')


def test_a_finalizer_holds_a_deleted_object(server: Server) -> None:
    name = server.name()
    server.create(name, finalizers=["example.com/held"])
    assert server.http.delete(server.path(name)).status_code == 200
    thing = server.http.get(server.path(name)).json()
    assert "deletionTimestamp" in thing["metadata"]
    headers = {"content-type": "application/merge-patch+json"}
    server.http.patch(server.path(name), content='{"metadata":{"finalizers":null}}', headers=headers)
    assert server.http.get(server.path(name)).status_code == 404


def test_a_delete_of_another_object(server: Server) -> None:
    name = server.name()
    uid = server.create(name).json()["metadata"]["uid"]
    wrong = {"preconditions": {"uid": "11111111-aaaa-bbbb-cccc-222222222222"}}
    told(server.http.request("DELETE", server.path(name), json=wrong), 409, "Conflict", "Precondition failed: UID")
    right = {"preconditions": {"uid": uid}}
    assert server.http.request("DELETE", server.path(name), json=right).status_code == 200


def test_selectors(server: Server) -> None:
    names = [server.name(), server.name()]
    mark = names[0]
    for name, kind in zip(names, ("a", "b"), strict=True):
        server.create(name, labels={"kind": kind, "mark": mark})
    found = server.http.get(server.path(), params={"labelSelector": f"mark={mark},kind=b"}).json()["items"]
    assert [thing["metadata"]["name"] for thing in found] == names[1:]
    by_status = server.http.get(server.path(), params={"fieldSelector": "status.jobStatus=RUNNING"})
    told(by_status, 400, "BadRequest", "field label not supported")


def test_pages(server: Server) -> None:
    mark = server.name()
    for _ in range(5):
        server.create(server.name(), labels={"mark": mark})
    query: Json = {"labelSelector": f"mark={mark}", "limit": 2}
    sizes = []
    while True:
        page = server.http.get(server.path(), params=query).json()
        sizes.append(len(page["items"]))
        if not page["metadata"].get("continue"):
            break
        query["continue"] = page["metadata"]["continue"]
    assert sizes == [2, 2, 1]


def test_a_watch_tells_what_happens_and_ends_with_a_bookmark(server: Server) -> None:
    since = server.http.get(server.path(), params={"limit": 1}).json()["metadata"]["resourceVersion"]
    name = server.name()
    server.create(name, labels={"mark": name})
    server.apply(name, {"jobId": "x"})
    server.http.delete(server.path(name))
    query = {"watch": "true", "resourceVersion": since, "labelSelector": f"mark={name}", "timeoutSeconds": "1"}
    lines = server.http.get(server.path(), params={**query, "allowWatchBookmarks": "true"}).text.splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["type"] for event in events][:3] == ["ADDED", "MODIFIED", "DELETED"]
    assert not server.own or events[-1]["type"] == "BOOKMARK"


# -- what only a double can be made to do


def test_an_expired_watch_and_an_expired_page(server: Server) -> None:
    double = server.double
    for _ in range(3):
        server.create(server.name())
    page = server.http.get(server.path(), params={"limit": 2}).json()
    server.create(server.name())
    double.compact()
    query = {"watch": "true", "resourceVersion": page["metadata"]["resourceVersion"], "timeoutSeconds": "1"}
    (line,) = server.http.get(server.path(), params=query).text.splitlines()
    event = json.loads(line)
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    late = server.http.get(server.path(), params={"limit": 2, "continue": page["metadata"]["continue"]})
    told(late, 410, "Expired", "too old")
    fresh = server.http.get(server.path()).json()["metadata"]["resourceVersion"]
    assert server.http.get(server.path(), params={**query, "resourceVersion": fresh}).text == ""


def test_faults_quota_and_roles(server: Server) -> None:
    double = server.double
    double.faults = [(429, "TooManyRequests", 3.0), (503, "ServiceUnavailable", None)]
    busy = server.http.get(server.path())
    told(busy, 429, "TooManyRequests", "")
    assert busy.headers["retry-after"] == "3"
    assert "retry-after" not in server.http.get(server.path()).headers
    double.quota = {"rayjobs": 0}
    told(server.create(server.name()), 403, "Forbidden", "exceeded quota")
    double.rules = [{"resources": ["rayjobs"], "verbs": ["get"]}]
    told(server.http.get(server.path()), 403, "Forbidden", 'cannot list resource "rayjobs"')
    server.http.headers["authorization"] = "Bearer other"
    told(server.http.get(server.path()), 401, "Unauthorized", "Unauthorized")


def test_a_list_that_lags_behind(server: Server) -> None:
    double = server.double
    double.put("rayservices", SERVICE)
    server.create(server.name())
    double.freeze_lists()
    name = server.name()
    server.create(name)
    assert len(server.http.get(server.path()).json()["items"]) == 1
    assert server.http.get(server.path(name)).status_code == 200


# -- our client and our deployer, on the same server


def test_the_five_calls_of_our_client(server: Server, tmp_path: Path) -> None:
    api, name = KubeApi(kubeconfig=server.kubeconfig(tmp_path)), server.name()
    assert api.namespace == server.namespace and api.get("rayjobs", name) is None
    body = rayjob(name, None) | {"metadata": {"name": name, "labels": {"mark": name}}}
    uid = api.create("rayjobs", body)["metadata"]["uid"]
    with pytest.raises(KubeError) as caught:
        api.create("rayjobs", body)
    assert (caught.value.status, caught.value.word) == (409, "AlreadyExists")
    assert [thing["metadata"]["uid"] for thing in api.find("rayjobs", f"mark={name}")] == [uid]
    seen = api.get("rayjobs", name)
    assert seen is not None and seen.thing["spec"]["backoffLimit"] == 0
    with pytest.raises(KubeError, match="Precondition failed") as caught:
        api.delete("rayjobs", name, "11111111-aaaa-bbbb-cccc-222222222222")
    assert caught.value.status == 409
    api.delete("rayjobs", name, uid)
    api.delete("rayjobs", name, uid)
    assert api.get("rayjobs", name) is None
    api.close()


def test_our_deployer_without_an_operator(server: Server, tmp_path: Path) -> None:
    """Field ownership is the API server's; only what becomes of the models is KubeRay's."""
    api, name = KubeApi(kubeconfig=server.kubeconfig(tmp_path)), server.name()
    pod = {"metadata": {}, "spec": {"containers": [{"name": "ray-head", "image": "registry.invalid/ray:1"}]}}
    spec = {"rayClusterConfig": {"headGroupSpec": {"rayStartParams": {}, "template": pod}}}
    made = {**SERVICE, "metadata": {"name": name}, "spec": spec}
    path = server.path(name).replace("/rayjobs/", "/rayservices/")
    server.http.post(path.removesuffix(f"/{name}"), json=made, params={"fieldManager": "kubectl"}).raise_for_status()
    deployer = RayServiceDeployer(api, name)
    try:
        deployer.apply([WINNER])
        assert {id: seen.state for id, seen in deployer.observe().items()} == {"dep_1": "PENDING"}
        thing = server.http.get(path).json()
        (ours,) = [entry for entry in thing["metadata"]["managedFields"] if entry["manager"] == "simpo"]
        assert set(ours["fieldsV1"]["f:spec"]) == {"f:serveConfigV2"}
        patch, headers = '{"spec": {"serveConfigV2": "{}"}}', {"content-type": "application/merge-patch+json"}
        server.http.patch(path, content=patch, headers=headers, params={"fieldManager": "a-human"}).raise_for_status()
        with pytest.raises(DeployerError, match='conflict with "a-human"'):
            deployer.apply([WINNER])
        RayServiceDeployer(api, name, force=True).apply([WINNER])
        assert set(deployer.observe()) == {"dep_1"}
    finally:
        server.http.delete(path)
        api.close()
