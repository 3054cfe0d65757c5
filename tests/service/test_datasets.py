"""Datasets over a real store: uploads and what is refused by name, specs that name them, reports, deletion."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from service.auth import create_key
from service.datasets import KEPT, forget_files
from service.examine import Abandoned, DoctorFailed, Patient
from service.models_data import Dataset
from service.settings import Settings
from service.uploads import MAX_LINE
from tests.fakes import FakeDriver
from tests.service.conftest import Plane, make_plane

Json = dict[str, Any]
ROWS = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "no"} for n in range(6)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
JSONL = {"content-type": "application/jsonl"}


def upload(plane: Plane, content: bytes = TEXT, query: str = "", **headers: str) -> Any:
    return plane.client.post(f"/v1/datasets{query}", content=content, headers={**JSONL, **headers})


def stored(plane: Plane, content: bytes = TEXT, query: str = "") -> Json:
    answer = upload(plane, content, query)
    assert answer.status_code == 201, answer.text
    body: Json = answer.json()
    return body


def files(plane: Plane) -> list[str]:
    folder = plane.settings.datasets_dir
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# -- uploads


def test_an_uploaded_dataset(plane: Plane) -> None:
    answer = upload(plane, query="?name=pairs&filename=pairs.jsonl")
    body = answer.json()
    assert answer.status_code == 201 and answer.headers["location"] == f"/v1/datasets/{body['id']}"
    assert (body["object"], body["name"], body["filename"], body["state"]) == (
        *("dataset", "pairs", "pairs.jsonl", "READY"),
    )
    assert (body["bytes"], body["rows"], body["format"]) == (len(TEXT), 6, "jsonl")
    assert body["columns"] == ["prompt", "chosen", "rejected"]
    assert body["sha256"] == hashlib.sha256(TEXT).hexdigest()
    assert body["validation"]["state"] == "NONE"
    assert files(plane) == [f"{body['id']}/rows.jsonl"]
    assert (plane.settings.datasets_dir / files(plane)[0]).read_bytes() == TEXT
    shown = plane.client.get(answer.headers["location"])
    assert shown.json() == body and shown.headers["etag"] == answer.headers["etag"]
    assert str(plane.settings.store) not in shown.text, "paths stay inside"
    assert plane.events(body["id"]) == ["dataset.created"]


def test_the_same_bytes_are_the_same_dataset(plane: Plane) -> None:
    first = stored(plane, query="?name=pairs")
    again = upload(plane)
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    other = upload(plane, query="?name=other")
    assert (other.status_code, other.json()["code"], other.json()["existing"]) == (409, "dataset_exists", first["id"])
    taken = upload(plane, TEXT + TEXT, "?name=pairs")
    assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")
    assert len(files(plane)) == 1, "nothing of a refused one stays"


def test_gzip_and_forms_are_read_as_they_stream(plane: Plane) -> None:
    packed = gzip.compress(TEXT[:200]) + gzip.compress(TEXT[200:]) + b"\0\0"
    form = {"file": ("pairs.jsonl.gz", packed, "application/gzip")}
    answer = plane.client.post("/v1/datasets?name=packed", files=form)
    body = answer.json()
    assert answer.status_code == 201, answer.text
    assert (body["filename"], body["format"], body["rows"]) == ("pairs.jsonl.gz", "jsonl.gz", 6)
    assert (body["bytes"], body["unpacked_bytes"]) == (len(packed), len(TEXT))
    preview = plane.client.get(f"/v1/datasets/{body['id']}/preview?limit=2").json()
    assert [each["values"] for each in preview["data"]] == ROWS[:2] and not preview["truncated"]
    assert preview["data"][1]["line"] == 2


def test_an_upload_of_many_pieces_and_an_idempotency_key(plane: Plane) -> None:
    pieces = [TEXT[start : start + 7] for start in range(0, len(TEXT), 7)]
    answers = [
        plane.client.post("/v1/datasets", content=iter(pieces), headers={**JSONL, "idempotency-key": "k"})
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[1].headers["idempotency-replayed"] == "true" and len(files(plane)) == 1
    reused = upload(plane, TEXT + TEXT, **{"idempotency-key": "k"})
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", "no_rows", "no row"),
        (b"\n \n", "no_rows", "no row"),
        (TEXT + b'{"prompt": "\xff"}\n', "not_utf8", "line 7 is not UTF-8"),
        (TEXT + b"{'prompt': 1}\n", "not_json", "line 7 is not JSON"),
        (TEXT + b"[1]", "not_an_object", "line 7 is a JSON list"),
        (b"[" * 200_000, "not_json", "line 1"),
        (b'{"prompt": "' + b"x" * MAX_LINE + b'"}', "line_too_long", "line 1 is longer"),
        (b"PK\x03\x04 and more", "unknown_format", "a zip archive"),
        (b"PAR1 and more", "unknown_format", "a parquet file"),
        (gzip.compress(TEXT)[:-12], "broken_gzip", "breaks off"),
        (b"\x1f\x8b and no gzip", "broken_gzip", "damaged"),
    ],
)
def test_what_is_no_data_is_refused_by_name(plane: Plane, content: bytes, code: str, words: str) -> None:
    answer = upload(plane, content)
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert words in answer.json()["detail"] and answer.json()["errors"][0]["pointer"] == "/file"
    assert files(plane) == [] and upload(plane).status_code == 201


def test_names_that_could_be_paths_are_refused(plane: Plane) -> None:
    for filename in ("../../etc/passwd", "..%2f..%2fx.jsonl", "a\\b.jsonl", "/etc/x.jsonl", "a\0b", "..", "x.pkl"):
        answer = plane.client.post("/v1/datasets", params={"filename": filename}, content=TEXT, headers=JSONL)
        assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"] == "/filename", filename
    assert files(plane) == []
    for name in ("../x", "A", "a/b"):
        assert plane.client.post("/v1/datasets", params={"name": name}, content=TEXT, headers=JSONL).status_code == 422


def test_the_size_is_limited_as_sent_and_as_unpacked(settings: Settings) -> None:
    for plane in make_plane(settings, max_dataset_bytes=100_000):
        answer = upload(plane, TEXT * 500)
        assert (answer.status_code, answer.json()["code"]) == (413, "dataset_too_large"), answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        streamed = plane.client.post("/v1/datasets", content=iter([TEXT] * 500), headers=JSONL)
        assert streamed.status_code == 413, "also where no length is told"
        bomb = zlib.compressobj(9, wbits=31)
        packed = bomb.compress(b'{"a": "' + b"0" * 50_000_000) + bomb.flush()
        answer = upload(plane, packed)
        assert len(packed) < 100_000 and answer.status_code == 413 and "unpacked" in answer.json()["detail"]
        assert files(plane) == []


def test_other_ways_to_send_are_refused(plane: Plane) -> None:
    for headers in ({"content-type": "application/json"}, {}, {**JSONL, "content-encoding": "gzip"}):
        answer = plane.client.post("/v1/datasets", content=TEXT, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type"), headers
    for form in ({"rows": ("a.jsonl", TEXT)}, {"file": ("a.jsonl", TEXT), "name": (None, "b")}):
        answer = plane.client.post("/v1/datasets", files=form)  # type: ignore[arg-type]
        assert answer.status_code == 422 and "unknown" in answer.json()["detail"]
    broken = {"content-type": "multipart/form-data; boundary=x"}
    for content in (b"--x\r\n", b"nothing of a form", b"--x--\r\n"):
        answer = plane.client.post("/v1/datasets", content=content, headers=broken)
        assert answer.status_code == 422, content
    assert files(plane) == []


def test_only_a_key_that_may_write_datasets_uploads(plane: Plane) -> None:
    for scopes, status in ((["read", "jobs:write"], 403), (["datasets:write"], 201)):
        key = create_key(plane.store, "narrow", scopes=scopes, clock=plane.clock)
        assert upload(plane, authorization=f"Bearer {key}").status_code == status


def test_lists_filter_and_page(plane: Plane) -> None:
    ids = [stored(plane, TEXT * n, f"?name=n{n}")["id"] for n in (1, 2, 3)]
    listed = plane.client.get("/v1/datasets?limit=2").json()
    assert [row["id"] for row in listed["data"]] == ids[:0:-1] and listed["has_more"]
    assert plane.client.get(f"/v1/datasets?after={ids[1]}").json()["data"][0]["id"] == ids[0]
    assert plane.client.get("/v1/datasets?name=n2").json()["data"][0]["id"] == ids[1]
    assert plane.client.get("/v1/datasets?state=NONE").status_code == 422
    assert plane.client.get("/v1/datasets/dst_0").status_code == 404


# -- specs that name them


def test_a_spec_names_a_dataset_and_the_driver_is_told_its_file(plane: Plane) -> None:
    train, held_out = stored(plane), stored(plane, TEXT * 2)
    dataset = {"train": train["id"], "eval": held_out["id"]}
    accepted = plane.post("a", dataset=dataset)
    expected = str(plane.settings.datasets_dir / train["id"] / "rows.jsonl")
    assert accepted["spec"]["dataset"]["train"] == expected and Path(expected).is_file()
    plane.turn()
    assert FakeDriver(plane.settings.run_dir(accepted["id"])).spec.dataset.train == expected
    run = plane.post("b", kind="runs", dataset=train["id"])
    assert run["spec"]["dataset"]["train"] == expected
    for place, pointer in (({"train": "dst_0"}, "/dataset/train"), ({**dataset, "eval": "dst_0"}, "/dataset/eval")):
        refused = plane.client.post("/v1/sweeps", json={"name": "c", "dataset": place})
        assert refused.status_code == 422 and refused.json()["errors"][0]["pointer"] == pointer
        assert "no dataset dst_0" in refused.json()["detail"]


def test_a_dataset_is_deleted_when_nobody_reads_it(plane: Plane) -> None:
    body = stored(plane, query="?name=pairs")
    path = f"/v1/datasets/{body['id']}"
    sweep = plane.post("a", dataset=body["id"])
    assert plane.client.delete(path).status_code == 428
    assert plane.client.delete(path, headers={"if-match": '"99"'}).status_code == 412
    refused = plane.client.delete(path, headers={"if-match": "*"})
    assert (refused.status_code, refused.json()["code"], refused.json()["existing"]) == (
        *(409, "dataset_in_use", sweep["id"]),
    )
    plane.client.post(f"/v1/sweeps/{sweep['id']}/cancel")
    plane.turn()
    gone = plane.client.delete(path, headers={"if-match": plane.client.get(path).headers["etag"]})
    assert gone.status_code == 200 and gone.json()["state"] == "DELETED" and gone.json()["expire_time"]
    for answer in (
        plane.client.get(path),
        plane.client.get(f"{path}/report"),
        plane.client.get(f"{path}/events"),
        plane.client.delete(path, headers={"if-match": "*"}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "dataset_deleted"), answer.text
        assert f"{body['id']} was deleted" in answer.json()["detail"]
    assert body["id"] in plane.sweep(sweep["id"])["spec"]["dataset"]["train"], "what read it still names it"
    assert plane.client.get("/v1/datasets").json()["data"] == []
    assert plane.client.get("/v1/datasets?state=DELETED").json()["data"][0]["id"] == body["id"]
    assert plane.client.get(f"{path}/preview").status_code == 404
    assert plane.client.post(f"{path}/validate").status_code == 404
    again = stored(plane, query="?name=pairs")
    assert again["id"] != body["id"], "bytes and name are free again"
    refused = plane.client.post("/v1/sweeps", json={"name": "b", "dataset": body["id"]})
    assert refused.status_code == 422 and "no dataset" in refused.json()["detail"]
    assert plane.events(body["id"])[-1] == "dataset.deleted"


def test_files_go_a_day_after_their_dataset(plane: Plane) -> None:
    kept, gone = stored(plane), stored(plane, TEXT * 2)
    plane.client.delete(f"/v1/datasets/{gone['id']}", headers={"if-match": "*"})

    def forget() -> list[str]:
        with plane.store.read() as session:
            forget_files(session, plane.settings, plane.clock.now())
        return files(plane)

    assert len(forget()) == 2
    plane.clock.advance(KEPT.total_seconds() + 1)
    assert forget() == [f"{kept['id']}/rows.jsonl"]


# -- reports


class FakeDoctor:
    """Says what a test told it to say."""

    def __init__(self) -> None:
        self.patients: list[Patient] = []
        self.error: Exception | None = None
        self.ok = True
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self, patient: Patient, wanted: Callable[[], bool]) -> Json:
        assert wanted()
        self.patients.append(patient)
        self.meanwhile()
        if self.error is not None:
            raise self.error
        counts = {"error": int(not self.ok), "warning": 1, "info": 0}
        return {"ok": self.ok, "rows": 6, "pairs": 6, "counts": counts, "findings": []}


def test_a_report_is_made_off_the_request_path(settings: Settings) -> None:
    doctor = FakeDoctor()
    for plane in make_plane(settings, doctor=doctor):
        body, beside = stored(plane), stored(plane, TEXT * 2)
        path = f"/v1/datasets/{body['id']}"
        assert plane.client.get(f"{path}/report").json()["code"] == "no_report"
        answer = plane.client.post(f"{path}/validate", json={"eval": beside["id"]})
        assert answer.status_code == 202 and answer.json()["validation"]["state"] == "PENDING"
        assert doctor.patients == [], "no work in a request"
        plane.turn()
        assert doctor.patients[0].rows.name == "rows.jsonl" and doctor.patients[0].eval is not None
        shown = plane.client.get(path).json()["validation"]
        assert (shown["state"], shown["ok"]) == ("SUCCEEDED", True)
        report = plane.client.get(f"{path}/report").json()
        assert report["dataset"] == body["id"] and report["report"]["pairs"] == 6
        assert report["request"]["eval"] == beside["id"]
        assert plane.events(body["id"])[-1] == "dataset.validated"
        for wrong, pointer in (
            ({"eval": "dst_0"}, "/eval"),
            ({"base_model": "org/name"}, "/base_model"),
            ({"base_model": "/no/model"}, "/base_model"),
            ({"limit": 3}, "/limit"),
        ):
            refused = plane.client.post(f"{path}/validate", json=wrong)
            assert refused.status_code == 422 and refused.json()["errors"][0]["pointer"] == pointer


def test_a_report_that_cannot_be_made_says_why_and_one_that_was_cut_off_is_made_again(settings: Settings) -> None:
    doctor = FakeDoctor()
    for plane in make_plane(settings, doctor=doctor):
        path = f"/v1/datasets/{stored(plane)['id']}"
        plane.client.post(f"{path}/validate")
        doctor.error = Abandoned()
        plane.turn()
        assert plane.client.get(path).json()["validation"]["state"] == "RUNNING"
        doctor.error = DoctorFailed("It took too long.")
        plane.turn()
        assert plane.client.get(path).json()["validation"]["message"] == "It took too long."
        assert plane.client.get(path).json()["validation"]["state"] == "FAILED"
        doctor.error = OSError("no memory for a process")
        plane.client.post(f"{path}/validate")
        plane.turn()
        assert "no memory" in plane.client.get(path).json()["validation"]["message"], "and others have their turn"
        doctor.error = None
        plane.client.post(f"{path}/validate")
        beside = {"eval": path.rpartition("/")[2]}
        doctor.meanwhile = partial(plane.client.post, f"{path}/validate", json=beside)
        plane.turn()
        assert plane.client.get(path).json()["validation"]["state"] == "PENDING", "a newer wish waits"
        doctor.meanwhile = lambda: None
        plane.turn()
        assert plane.client.get(f"{path}/report").json()["request"]["eval"] is not None
        with plane.store.read() as session:
            assert session.scalars(select(Dataset.validation)).all() == ["SUCCEEDED"]
