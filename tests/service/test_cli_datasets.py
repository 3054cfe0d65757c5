"""`simpo dataset ...` and the client under it, against the real application in this process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service.cli import app
from service.client import Client
from service.client_errors import ApiError
from service.settings import Settings
from tests.service.conftest import Plane, make_plane
from tests.service.test_datasets import ROWS, TEXT, FakeDoctor


@pytest.fixture
def doctor() -> FakeDoctor:
    return FakeDoctor()


@pytest.fixture
def plane(settings: Settings, doctor: FakeDoctor) -> Iterator[Plane]:
    """One whose reconciler works by itself."""
    yield from make_plane(settings, doctor=doctor, reconcile=True, reconcile_interval_s=0.05)


def simpo(plane: Plane, *words: str) -> Any:
    words = ("--url", "http://testserver", "--key", plane.key, *words)
    return CliRunner().invoke(app, words, obj=into(plane), env={"COLUMNS": "200", "NO_COLOR": "1"})


def into(plane: Plane) -> httpx.MockTransport:
    """The application itself answers, without a network."""

    def answer(request: httpx.Request) -> httpx.Response:
        url, headers = str(request.url), dict(request.headers)
        given = plane.client.request(request.method, url, headers=headers, content=request.read())
        return httpx.Response(given.status_code, headers=dict(given.headers), content=given.content)

    return httpx.MockTransport(answer)


def test_the_life_of_a_dataset(plane: Plane, doctor: FakeDoctor, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(TEXT)
    uploaded = json.loads(simpo(plane, "dataset", "upload", str(file), "--name", "pairs", "--json").stdout)
    assert (uploaded["name"], uploaded["filename"], uploaded["rows"]) == ("pairs", "pairs.jsonl", 6)
    again = simpo(plane, "dataset", "upload", str(file))
    assert again.exit_code == 0 and uploaded["id"] in again.stdout and "6 rows (prompt, chosen" in again.stdout
    for words in (("list",), ("show", "pairs"), ("show", uploaded["id"])):
        shown = simpo(plane, "dataset", *words)
        assert shown.exit_code == 0 and uploaded["id"] in shown.stdout, shown.stderr
        as_json = json.loads(simpo(plane, "dataset", *words, "--json").stdout)
        assert as_json in (uploaded, [uploaded])
    rows = json.loads(simpo(plane, "dataset", "preview", "pairs", "-n", "2", "--json").stdout)
    assert [row["values"] for row in rows] == ROWS[:2]
    assert "It is 1." in simpo(plane, "dataset", "preview", "pairs").stdout
    checked = simpo(plane, "dataset", "validate", "pairs", "--eval", "pairs")
    assert checked.exit_code == 0 and "ready to train on" in checked.stdout, checked.stderr
    assert json.loads(simpo(plane, "dataset", "validate", "pairs", "--json").stdout)["ok"]
    doctor.ok = False
    assert simpo(plane, "dataset", "validate", "pairs").exit_code == 1
    gone = simpo(plane, "dataset", "delete", "pairs")
    assert gone.exit_code == 0 and "is deleted" in gone.stdout
    assert simpo(plane, "dataset", "list").stdout.startswith("There is no dataset")


def test_mistakes_are_one_sentence(plane: Plane, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("no json")
    for words, sentence in (
        (("upload", str(tmp_path / "b.jsonl")), "there is no file"),
        (("upload", str(tmp_path / "a.jsonl")), "line 1 is not JSON"),
        (("show", "nobody"), "There is no dataset nobody"),
    ):
        answer = simpo(plane, "dataset", *words)
        assert answer.exit_code == 2 and sentence in answer.stderr, answer.stderr


def test_the_client_says_what_is_in_use(plane: Plane, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl.gz"
    file.write_bytes(TEXT)
    with Client("http://testserver", plane.key, transport=into(plane)) as client:
        assert client.datasets.upload(file)["format"] == "jsonl", "by its bytes, not by its name"
        (known,) = client.datasets.iterate()
        client.create_sweep({"name": "a", "dataset": known["id"]})
        with pytest.raises(ApiError) as caught:
            client.datasets.delete(known["id"])
        assert (caught.value.status, caught.value.code) == (409, "dataset_in_use")
