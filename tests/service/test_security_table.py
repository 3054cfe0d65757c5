"""The lessons of other services' advisories, one row each: what happened there does not happen here.

A row is a test of this file, or names the tests elsewhere that hold it (`test_rows_that_are_held_elsewhere`).
"""

import asyncio
import hashlib
import hmac
import json
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from service.app import create_app
from service.auth import Authenticator, create_key
from service.gate import Gate
from service.hardening import check_production
from service.settings import Settings
from service.uploads import Incoming
from simpo.errors import ConfigError
from tests.fakes import FakeClock, FakeDeployer, FakeJobs
from tests.house import REPO
from tests.service.conftest import Plane, make_plane

Json = dict[str, Any]
ROW = b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n'

ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "CVE-2026-2614 the reader re-validates what the writer stored": (
        "tests/serving/test_engine.py::test_a_pickle_is_refused_even_with_a_manifest_that_knows_it",
        "tests/simpo/test_checkpoint.py::test_pickled_weights_are_refused",
    ),
    "CVE-2026-2393 webhooks reach the public internet alone, and their answers are nobody's": (
        "tests/service/test_webhook_url.py::test_an_address_of_the_public_internet_is_kept_in_one_form",
        "tests/service/test_webhooks.py::test_a_name_of_an_inner_address_is_refused_before_a_byte_is_sent",
        "tests/service/test_webhooks.py::test_a_redirect_is_not_followed_and_no_answer_is_kept",
    ),
    "CVE-2026-64849 the address that was checked is the one that is connected to": (
        "tests/service/test_webhooks.py::test_a_name_that_changes_its_address_is_asked_once",
        "tests/sweeps/test_judges.py::test_the_connection_goes_to_the_address_that_was_checked",
        "tests/sweeps/test_judges_http.py::test_redirects_are_not_followed",
    ),
    "CVE-2024-4263 every method of every route has a scope; another project's things are not there": (
        "tests/service/test_matrix.py::test_every_route_needs_the_scope_that_the_document_says",
        "tests/service/test_matrix.py::test_another_projects_id_is_an_id_that_there_is_not",
    ),
    "CVE-2024-27132 pages run their own script alone": (
        "tests/service/test_try_page.py::test_the_page_needs_nothing_from_elsewhere_and_its_policy_lets_nothing_in",
    ),
    "Heads of requests that never end, or are too large": (
        "tests/service/test_http_head.py::test_a_head_that_never_ends_is_refused_and_kept_nowhere",
        "tests/service/test_http_head.py::test_a_whole_head_that_is_too_large_is_a_431",
    ),
    "Connections that send nothing, or a head, or what nobody waits for, byte by byte": (
        "tests/service/test_slow_heads.py::test_whoever_makes_us_wait_is_cut_off",
        "tests/service/test_slow_heads.py::test_what_is_slow_after_its_head_is_not_cut_off",
    ),
    "Chat templates: size of a checkpoint's own, of what it writes, and its faults by name": (
        "tests/simpo/test_tokenize.py::test_a_template_of_a_checkpoint_has_a_size",
        "tests/simpo/test_tokenize.py::test_a_template_that_goes_astray_is_refused_by_name",
    ),
    "Archives, bombs and bodies that say another encoding": (
        "tests/service/test_datasets.py::test_what_is_no_data_is_refused_by_name",
        "tests/service/test_datasets.py::test_the_size_is_limited_as_sent_and_as_unpacked",
        "tests/service/test_datasets.py::test_other_ways_to_send_are_refused",
    ),
    "Errors say nothing of our inside; logs hold no secret, and a line is a line": (
        "tests/service/test_api.py::test_a_mistake_of_ours_says_nothing_of_its_inside",
        "tests/service/test_logs.py::test_no_secret_is_written_wherever_it_stands",
        "tests/service/test_logs.py::test_a_record_is_a_line_of_json_with_its_request",
    ),
    "Tokens: algorithms, issuers, audiences and times, each wrong once": ("tests/service/test_oidc.py::",),
    "A revoked key opens nothing within seconds": (
        "tests/service/test_keys.py::test_a_revoked_key_opens_nothing_within_seconds",
    ),
}


def test_rows_that_are_held_elsewhere() -> None:
    for row, places in ELSEWHERE.items():
        for place in places:
            path, _, name = place.partition("::")
            assert re.search(rf"^(async )?def {name or 'test_'}", (REPO / path).read_text(), re.MULTILINE), (row, place)


def refused(plane: Plane, source: str) -> Iterator[tuple[str, Any]]:
    """The answers to every request that takes the name of data or of a model, with that in its place."""
    quoted = quote(source, safe="")
    bodies: list[tuple[str, Json]] = [
        ("/v1/sweeps", {"name": "a", "dataset": source}),
        ("/v1/sweeps", {"name": "a", "dataset": {"train": "practice", "eval": source}}),
        ("/v1/runs", {"name": "a", "learning_rate": 1e-4, "base_model": source}),
        ("/v1/comparisons", {"name": "a", "base_model": source}),
        ("/v1/deployments", {"name": "a", "sweep": source}),
        ("/v1/deployments", {"name": "a", "model": source}),
        ("/v1/promotions", {"model": "a", "sweep": source}),
        ("/v1/evaluations", {"name": "a", "sweep": source}),
        ("/v1/fine_tuning/jobs", {"model": source, "training_file": "file-x"}),
        ("/v1/fine_tuning/jobs", {"model": "practice", "training_file": source}),
    ]
    for path, body in bodies:
        yield f"POST {path} {body}", plane.client.post(path, json=body)
    for path in ("/v1/sweeps/{}", "/v1/datasets/{}/preview", "/v1/files/{}/content", "/v1/registry/models/{}"):
        yield f"GET {path}", plane.client.get(path.format(quoted))
    upload = plane.client.post("/v1/datasets", params={"filename": f"{source}.jsonl"}, content=ROW, headers=_JSONL)
    yield "POST /v1/datasets?filename=", upload


_JSONL = {"content-type": "application/jsonl"}

TRAVERSALS = {
    "CVE-2023-1177 and 2780, 6831, 6909: backslashes": ["..\\..\\secret", "\\..\\file", "a\\..\\..\\b"],
    "CVE-2023-1176: absolute paths of another kind": ["C:\\secret", "\\\\host\\share\\x", "//host/share/x"],
    "CVE-2023-2356: relative traversal": ["../x", "../../etc/passwd", "a/../../b", "/srv/../etc/passwd", "./../x"],
    "CVE-2024-1560: decoded twice": ["%2e%2e/x", "%252e%252e%252fx", "..%2fx", "%2e%2e%5cx"],
    "Fuzz: NUL, URLs of files, other slashes, homes": [
        *("a\0b", "/srv/a\0b", "file:///etc/passwd", "file:/etc/passwd", "..\u2215x", "..\uff0fx", "~root/x", "~/x"),
    ],
    "SSRF: no request fetches an address": [
        *("http://169.254.169.254/latest", "https://example.org/x.jsonl", "s3://bucket/x", "gs://bucket/x"),
        *("ftp://host/x", "http://[::ffff:127.0.0.1]/x", "hf://datasets/x/y", "gopher://x/1"),
    ],
}


@pytest.mark.parametrize("row", TRAVERSALS)
def test_no_name_of_data_or_of_a_model_leads_elsewhere(plane: Plane, row: str) -> None:
    for source in TRAVERSALS[row]:
        for asked, answer in refused(plane, source):
            assert answer.status_code in (400, 404, 409, 422), (source, asked, answer.status_code, answer.text)
    counts = plane.counts()
    assert counts["sweeps"] == counts["deployments"] == 0
    held = plane.settings.datasets_dir
    assert not held.exists() or not list(held.rglob("*.jsonl"))


def test_paths_reach_the_named_directories_alone_links_followed(settings: Settings, tmp_path: Path) -> None:
    """CVE-2023-1176, and links: /etc/passwd is no data where SIMPO_SOURCE_ROOTS says where data is."""
    inside, outside = tmp_path / "data", tmp_path / "secret"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "rows.jsonl").write_bytes(ROW)
    (inside / "way-out").symlink_to(outside)
    (inside / "link.jsonl").symlink_to(outside / "rows.jsonl")
    for plane in make_plane(settings, source_roots=f"{tmp_path / 'no-such'}:{inside}"):
        for source in (outside / "rows.jsonl", inside / "way-out" / "rows.jsonl", inside / "link.jsonl", "/etc/passwd"):
            answer = plane.client.post("/v1/sweeps", json={"name": "a", "dataset": str(source)})
            assert answer.status_code == 422, source
            assert "no file or directory" in answer.json()["errors"][0]["message"]  # whether or not it is there
        assert plane.client.post("/v1/sweeps", json={"name": "a", "dataset": str(inside / "rows.jsonl")}).is_success


def test_no_route_takes_a_path(plane: Plane) -> None:
    """CVE-2023-30172: artifacts are opaque ids. CVE-2025-11201: a model comes from a sweep or the registry alone."""
    document = plane.client.get("/openapi.json").json()
    for path, item in document["paths"].items():
        for operation in item.values():
            names = {parameter["name"].lower() for parameter in operation.get("parameters", ())}
            assert not names & {"path", "file_path", "dir", "uri", "url", "source", "artifact"}, path
    for name in ("DeploymentIn", "PromotionIn", "VersionIn", "EvaluationIn"):
        fields = set(document["components"]["schemas"][name]["properties"])
        assert not fields & {"path", "model_path", "source", "uri", "url"}, name


def test_what_the_service_sets_nobody_else_sets(plane: Plane) -> None:
    """OWASP API3; CVE-2026-2614: no flag of a request skips a check."""
    for field in ("project", "state", "submission_id", "image", "runtime_env", "entrypoint", "created_by", "force"):
        for path, body in (
            ("/v1/sweeps", {"name": "a"}),
            ("/v1/deployments", {"name": "a", "sweep": "swp_1"}),
            ("/v1/promotions", {"model": "a", "sweep": "swp_1"}),
        ):
            answer = plane.client.post(path, json={**body, field: "x"})
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"/{field}"), (path, field)


def test_pickles_are_no_data(plane: Plane) -> None:
    for content in (b"\x80\x04\x95\x0a\x00\x00\x00", b"cos\nsystem\n(S'true'\ntR.", b"\x1f\x8b" + b"\x80\x04" * 9):
        answer = plane.client.post("/v1/datasets", content=content, headers=_JSONL)
        assert answer.status_code == 422, content


def test_errors_are_json_and_echo_no_header(plane: Plane) -> None:
    """CVE-2023-6568: a header of the request stood in a page of errors."""
    evil = "<script>alert(1)</script>"
    for path in ("/v1/sweeps", "/v1/files", f"/v1/sweeps/{evil}", f"/{evil}", "/v1/chat/completions"):
        answer = plane.client.post(path, content=b"x", headers={"content-type": evil, "x-evil": evil, "accept": evil})
        assert answer.status_code >= 400 and answer.headers["content-type"].endswith("json")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not [value for value in answer.headers.values() if evil in value]
        if evil not in path:
            assert evil not in answer.text


def test_uploads_wait_in_a_folder_of_ours_for_us_alone(tmp_path: Path) -> None:
    """CVE-2022-0736: temporary files that others could read or foresee."""
    first, second = (Incoming(tmp_path / "datasets", 1 << 20) for _ in range(2))
    files = sorted((tmp_path / "datasets").iterdir())
    assert len(files) == 2 and all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    first.discard()
    second.discard()
    assert not list((tmp_path / "datasets").iterdir())


# -- bodies


def test_a_body_nested_a_hundred_thousand_times_is_refused(plane: Plane) -> None:
    deep = "[" * 100_000
    wrapped = '{"name": "a", "space": ' + '{"x": ' * 50_000 + "1" + "}" * 50_001
    for path in ("/v1/sweeps", "/v1/deployments", "/v1/fine_tuning/jobs", "/v1/chat/completions", "/v1/comparisons"):
        for body in (deep, wrapped):
            answer = plane.client.post(path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code in (400, 404, 422), (path, answer.status_code)
    row = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    assert plane.client.post("/v1/datasets", content=row, headers=_JSONL).status_code == 422


def test_a_length_that_is_no_number_and_one_that_lies_are_counted(plane: Plane) -> None:
    async def ask(length: str, size: int) -> int:
        """One request past the framework's client, which would not send such a thing."""
        sent: list[Any] = []
        pieces = iter([b"x" * (1 << 20)] * size)

        async def receive() -> Json:
            piece = next(pieces, None)
            return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {plane.key}".encode()), (b"content-length", length.encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/sweeps", "headers": headers, "query_string": b""}
        await plane.client.app(scope, receive, send)  # type: ignore[arg-type]
        return int(sent[0]["status"])

    for length, size, status in (("10", 6, 413), ("-5", 6, 413), ("1e9", 6, 413), ("x", 6, 413), ("9" * 30, 0, 413)):
        assert asyncio.run(ask(length, size)) == status, length
    assert asyncio.run(ask("x", 0)) == 422


def test_a_body_that_does_not_come_is_not_waited_for(plane: Plane) -> None:
    async def ask(path: str, first: bytes, then: bytes = b"") -> Any:
        sent: list[Any] = []
        waiting = [first]

        async def receive() -> Json:
            if not waiting and not then:
                await asyncio.Event().wait()
            elif not waiting:
                await asyncio.sleep(0.01)  # never too long for one piece
            return {"type": "http.request", "body": waiting.pop() if waiting else then, "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {plane.key}".encode()), (b"content-type", b"application/jsonl")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        gate = Gate(plane.client.app, Authenticator(plane.store, plane.clock), patience_s=0.05)
        await gate({**scope, "state": {}}, receive, send)
        return sent[0]["status"]

    assert asyncio.run(ask("/v1/sweeps", b'{"name"')) == 408
    assert asyncio.run(ask("/v1/datasets", b'{"prompt"')) == 408
    assert asyncio.run(ask("/v1/datasets", b'{"prompt"', b" ")) == 408, "piece by piece, for as long as one likes"


# -- who asks, and from where


def test_a_key_in_the_url_opens_nothing(plane: Plane) -> None:
    del plane.client.headers["authorization"]
    for name in ("api_key", "key", "token", "access_token", "authorization"):
        assert plane.client.get("/v1/sweeps", params={name: plane.key}).status_code == 401
        assert plane.client.get("/v1/sweeps", headers={"cookie": f"{name}={plane.key}"}).status_code == 401
    plane.client.headers["authorization"] = f"Bearer {plane.key}"
    answer = plane.client.get("/v1/sweeps", params={"api_key": plane.key})
    assert answer.status_code == 422 and plane.key not in answer.text


def test_keys_are_compared_in_constant_time(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []
    real = hmac.compare_digest

    def spy(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    key = create_key(plane.store, "fresh")
    assert plane.client.get("/v1/sweeps", headers={"authorization": f"Bearer {key}"}).status_code == 200
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert (digest, digest) in compared


def test_the_host_header_leads_nobody_elsewhere(plane: Plane) -> None:
    evil = {"host": "evil.example", "x-forwarded-host": "evil.example", "x-forwarded-proto": "gopher"}
    answers = [plane.client.post("/v1/sweeps", json={"name": "a"}, headers=evil)]
    for path in ("/v1/sweeps/", "/v1/sweeps?limit=1"):
        answers.append(plane.client.get(path, headers=evil, follow_redirects=False))
    for answer in answers:
        assert answer.status_code not in (301, 302, 303, 307, 308)
        assert "evil.example" not in answer.text and "evil.example" not in str(dict(answer.headers))
    assert answers[0].headers["location"].startswith("/v1/sweeps/")


def test_no_other_origin_is_let_in(plane: Plane) -> None:
    """A page of a stranger, in the browser of somebody who can reach the service, gets nothing (CVE-2025-62593)."""
    asked = {"origin": "https://evil.example", "access-control-request-method": "DELETE"}
    answers = [plane.client.options("/v1/sweeps", headers=asked), plane.client.get("/v1/sweeps", headers=asked)]
    for path in ("/healthz", "/openapi.json"):
        answers.append(plane.client.get(path, headers={**asked, "authorization": ""}))
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    # What a form of such a page could send is not understood, with a key or without one.
    form = plane.client.post("/v1/sweeps", content='{"name": "a"}', headers={"content-type": "text/plain"})
    assert form.status_code == 422 and plane.counts()["sweeps"] == 0


def test_a_line_of_the_log_cannot_be_forged(plane: Plane, caplog: pytest.LogCaptureFixture) -> None:
    forged = "a%0d%0aERROR%20root:%20the%20key%20was%20stolen"
    plane.client.get(f"/v1/sweeps/{forged}", headers={"x-request-id": "a\tb; forged"})
    answer = plane.client.get("/v1/sweeps", headers={"x-request-id": "forged: 1"})
    assert answer.headers["x-request-id"].startswith("req_")
    assert "\nERROR root: the key was stolen" not in caplog.text


# -- chat templates


@pytest.mark.parametrize("template", ["", " ", "x" * (64 * 1024 + 1)])
def test_a_chat_template_has_a_size(plane: Plane, template: str) -> None:
    answer = plane.client.post("/v1/sweeps", json={"name": "a", "tokens": {"chat_template": template}})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/tokens/chat_template")


def test_a_request_brings_no_template_of_its_own(plane: Plane) -> None:
    """litellm's GHSA-46cm: the template that is rendered is the checkpoint's."""
    document = json.dumps(plane.client.get("/openapi.json").json()["paths"]["/v1/chat/completions"])
    assert "chat_template" not in document


# -- production


def strong(**changes: Any) -> Settings:
    settings: Json = {"ray_token": "t" * 32, "source_roots": "/srv/data", "public_judges": True, "production": True}
    return Settings(**{**settings, **changes})


@pytest.mark.parametrize(
    ("change", "variable"),
    [
        ({"ray_token": None}, "SIMPO_RAY_TOKEN"),
        ({"source_roots": None}, "SIMPO_SOURCE_ROOTS"),
        ({"public_judges": False}, "SIMPO_PUBLIC_JUDGES"),
        ({"webhook_loopback": True}, "SIMPO_WEBHOOK_LOOPBACK"),
        ({"log_level": "DEBUG"}, "SIMPO_LOG_LEVEL"),
        ({"ray_jobs_url": "http://me:pw@ray:8265"}, "SIMPO_RAY_JOBS_URL"),
    ],
)
def test_production_refuses_a_weak_setting_by_name(change: Json, variable: str) -> None:
    check_production(strong())
    with pytest.raises(ConfigError, match=variable) as caught:
        create_app(strong(**change), jobs=FakeJobs(), deployer=FakeDeployer(), clock=FakeClock())
    assert "pw" not in str(caught.value)
    check_production(strong(**change, production=False))


def test_an_api_that_leaves_ray_to_others_needs_no_token_of_it() -> None:
    check_production(strong(ray_token=None, reconcile=False))


def test_production_names_everything_that_is_weak() -> None:
    with pytest.raises(ConfigError, match=r"SIMPO_RAY_TOKEN.*SIMPO_SOURCE_ROOTS.*SIMPO_PUBLIC_JUDGES"):
        check_production(Settings(production=True))
