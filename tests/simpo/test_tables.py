"""Files that people hand in: every form reads the same, every mistake is named with its line."""

import gzip
import json
from pathlib import Path

import pytest

from simpo.errors import DataError
from simpo.tables import read_table

pytestmark = pytest.mark.quick

CSV = 'model,score,note\na,1.5,"two\nlines, quoted"\nb,,\n'
LINES = '{"model": "a", "score": 1.5, "note": "two\\nlines, quoted"}\n\n{"model": "b", "score": null, "note": ""}\n'


@pytest.mark.parametrize(
    "text",
    [CSV, CSV.replace("\n", "\r\n"), "\ufeff" + CSV, LINES, json.dumps([json.loads(LINES.splitlines()[0])] * 1)],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_form_reads_the_same(text: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a table of any name"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    table = read_table(path)
    assert table.columns == ("model", "score", "note")
    first = table.rows[0]
    assert (first.text("model"), first.number("score"), first.get("missing")) == ("a", 1.5, None)
    assert first.text("note").replace("\r", "") == "two\nlines, quoted"
    if len(table.rows) > 1:
        assert table.rows[1].number_or_none("score") is None and table.rows[1].get("note") is None


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    assert [row.line for row in read_table(path).rows] == [3, 4]
    path.write_text(LINES)
    assert [row.line for row in read_table(path).rows] == [1, 3]


def test_tabs_separate_too_and_numbers_name_the_same_thing(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("index\tx\n3\tnan\n")
    row = read_table(path).rows[0]
    assert row.text("index") == "3" and row.number_or_none("x") is None
    path.write_text('{"index": 3.0, "x": true}')
    row = read_table(path).rows[0]
    assert row.text("index") == "3" and row.number_or_none("x") is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"a,b\n", "a header but no row"),
        (b"a,b\n1,2,3\n", "line 2: the row has more values than the header's 2"),
        (b'a,b\n"1,2\n', "not valid CSV"),
        (b'{"a": 1}\n{"a": \n', "line 2: this is not valid JSON"),
        (b'{"a": 1}\n[1]\n', "line 2: a row must be a JSON object, not list"),
        (b"[1]", "line 1: a row must be a JSON object, not int"),
        (b"a\n\xff\xfe\n", "not UTF-8"),
        (b"\x1f\x8bnonsense", "cannot be read"),
    ],
)
def test_mistakes_are_named(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason) as caught:
        read_table(path)
    assert caught.value.path == str(path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "t.csv")
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,\n")
    table = read_table(path)
    with pytest.raises(DataError, match=r"there is no column c \(there are: a, b\)\. A table has a and c"):
        table.require("a", "c", meaning="A table has a and c")
    with pytest.raises(DataError, match="line 2: b is blank"):
        table.rows[0].text("b")
    with pytest.raises(DataError, match="line 2: b must be a finite number, not ''"):
        table.rows[0].number("b")
