"""Warnings are errors, and every exception says why."""

import re
from pathlib import Path

import pytest

from tests.house import REPO, sources

pytestmark = pytest.mark.quick


def unexplained_filters(text: str) -> list[str]:
    """Entries of `filterwarnings` in a pyproject.toml, but `error`, without a comment on the line or the one above."""
    block = re.search(r"^filterwarnings = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    if not block:
        return ["pyproject.toml has no filterwarnings"]
    found, commented = [], False
    for line in block[1].splitlines():
        entry = re.match(r"""\s*(["'])(.+?)\1,?\s*(#\s*\S.*)?$""", line)
        if entry and entry[2] != "error" and not (entry[3] or commented):
            found.append(entry[2])
        commented = line.lstrip().startswith("#")
    return found


def test_warnings_are_errors_and_exceptions_are_explained() -> None:
    text = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^filterwarnings = \[\n\s*"error",', text, re.MULTILINE)
    assert unexplained_filters(text) == []


def test_an_unexplained_exception_is_found() -> None:
    lines = '  "error",\n  # ray 2.60 does this at import\n  "ignore:a",\n  "ignore:b",  # because\n  "ignore:c",\n'
    assert unexplained_filters(f"filterwarnings = [\n{lines}]\n") == ["ignore:c"]
    assert unexplained_filters("") != []


def silenced(text: str) -> list[int]:
    """Lines that switch a warning off without saying why there or on the two lines above."""
    lines = text.splitlines()
    switches = re.compile(r"pytest\.mark\.filterwarnings|warnings\.(simplefilter|filterwarnings)\(\s*.ignore")
    return [
        n for n, line in enumerate(lines, start=1) if switches.search(line) and "#" not in "".join(lines[n - 3 : n])
    ]


def test_nothing_is_silenced_without_a_reason() -> None:
    # Not the benchmarks: there TRL's warnings are TRL's own affair.
    tests = [path for path in (REPO / "tests").rglob("*.py") if "bench" not in path.parts and path != Path(__file__)]
    files = [*tests, *(REPO / source.path for source in sources())]
    found = {path.relative_to(REPO).as_posix(): silenced(path.read_text(encoding="utf-8")) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}
    assert silenced('warnings.simplefilter("ignore")\n') == [1]
    assert silenced('with a:\n    # torch says so\n    warnings.simplefilter("ignore")\n') == []
