"""Documents that cannot rot: README's tree, commands, tables and examples are held to the program."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from service.app import create_app
from service.cli import app as cli
from service.settings import Settings
from simpo.methods import METHODS, hyperparameters
from sweeps.comparison_spec import ComparisonSpec
from sweeps.spec import SweepSpec
from tests import readme_tree
from tests.house import REPO, sources

pytestmark = pytest.mark.quick

README = (REPO / "README.md").read_text(encoding="utf-8")
MAKEFILE = (REPO / "Makefile").read_text(encoding="utf-8")


# -- the tree


def test_the_tree_in_readme_equals_the_disk() -> None:
    listed, there = list(readme_tree.in_readme(README)), readme_tree.on_disk()
    assert listed == there, (
        f"README.md, section The tree: lacks {sorted(set(there) - set(listed))}, "
        f"has too much {sorted(set(listed) - set(there))}; "
        "run `python -m tests.readme_tree --write`, then shorten the new captions"
    )


def test_every_entry_of_the_tree_has_one_short_caption() -> None:
    for path, caption in readme_tree.in_readme(README).items():
        assert caption, f"README.md, section The tree: {path} needs a caption"
        assert len(caption) <= readme_tree.MAX_CAPTION, f"README.md, section The tree: shorten the caption of {path}"


def test_a_wrong_tree_is_found() -> None:
    lines = "simpo/  the algorithm\n  evaluation/  numbers\n    judge.py  a protocol\n  fit.py\n"
    assert readme_tree.in_readme(f"## The tree\n\n```text\n{lines}```\n") == {
        "simpo/": "the algorithm",
        "simpo/evaluation/": "numbers",
        "simpo/evaluation/judge.py": "a protocol",
        "simpo/fit.py": "",
    }
    with pytest.raises(ValueError, match="cannot read the line"):
        readme_tree.in_readme("## The tree\n\n```text\nsimpo/  a\n      fit.py  too deep\n```\n")
    with pytest.raises(ValueError, match="no ```text block"):
        readme_tree.in_readme("# simpo\n")


def test_the_disk_is_read_without_what_is_no_source(tmp_path: Path) -> None:
    for path in (
        "simpo/__init__.py",
        "simpo/fit.py",
        "simpo/__pycache__/a.pyc",
        "tests/k8s/test_a.py",
        "k8s/base/a.yaml",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "simpo/empty").mkdir()
    assert readme_tree.on_disk(tmp_path) == ["simpo/", "simpo/fit.py", "k8s/", "k8s/base/", "tests/", "tests/k8s/"]


# -- commands


def commands(text: str) -> Iterator[str]:
    """Command lines in shell blocks, continued lines joined; and short ones in the text, like `make test`."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`((?:make|simpo) [^`\n]+)`", prose)
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith((" ", "#")):
                yield line


def wrong_command(line: str) -> str | None:
    """What is wrong with a `make` or `simpo` line: an unknown target, command or option; None if nothing."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        unknown = [word for word in words[1:] if not re.search(rf"^{re.escape(word)}:", MAKEFILE, re.MULTILINE)]
        return f"the Makefile has no target {unknown[0]}" if unknown else None
    return _wrong_simpo(words[1:]) if words[0] == "simpo" else None


def _wrong_simpo(words: list[str]) -> str | None:
    command: Any = typer.main.get_command(cli)  # Typer brings its own copy of click, without public types
    for word in words:
        if word in ("|", ">", "&", "&&", ";"):
            break
        inner = getattr(command, "commands", None)
        if word.startswith("-"):
            option = word.partition("=")[0]
            known = [name for parameter in command.params for name in parameter.opts]
            if option not in (*known, "--help"):
                return f"{command.name} has no option {option}: it has {', '.join(known)}"
        elif inner is not None:
            if word not in inner:
                return f"there is no command {word!r}: there are {', '.join(inner)}"
            command = inner[word]
    return f"{command.name} needs a command" if hasattr(command, "commands") and words else None


def test_every_command_in_readme_exists() -> None:
    lines = list(commands(README))
    assert any(line.startswith("simpo sweep create") for line in lines)
    assert [f"{line}: {wrong}" for line in lines if (wrong := wrong_command(line))] == []


@pytest.mark.parametrize("line", ["make tset", "simpo swep list", "simpo sweep create --wacht", "simpo sweep"])
def test_a_wrong_command_is_found(line: str) -> None:
    assert wrong_command(line)
    assert list(commands(f"text `{line}`\n\n```bash\n{line} \\\n  # more\n```\n")) == [line, f"{line}    # more"]


@pytest.mark.parametrize(
    "line", ["make check test", "simpo sweep create -f a.yaml --watch", "simpo up", "pip install x"]
)
def test_a_right_command_passes(line: str) -> None:
    assert wrong_command(line) is None


# -- requests


def requests(text: str) -> Iterator[tuple[str, str, str]]:
    """(method, path, JSON body) of every curl line in shell blocks."""
    for line in commands(text):
        words = shlex.split(line, comments=True)
        if words[0] == "curl":
            body = next((after for word, after in pairwise(words) if word in ("--json", "-d")), "")
            method = next((after for word, after in pairwise(words) if word == "-X"), "POST" if body else "GET")
            (url,) = (word for word in words if word.startswith("$URL/"))
            yield method, url.removeprefix("$URL").partition("?")[0].replace("$SWEEP", "swp_1"), body


def test_every_curl_in_readme_meets_a_route_and_a_valid_body(tmp_path: Path) -> None:
    found = list(requests(README))
    assert ("GET", "/v1/sweeps/swp_1/events", "") in found
    routes = create_app(Settings(database_url=f"sqlite:///{tmp_path}/simpo.db", store=tmp_path)).openapi()["paths"]
    for method, path, body in found:
        template = next((known for known in routes if re.fullmatch(re.sub(r"{\w+}", r"[^/]+", known), path)), None)
        assert template, f"README.md: there is no route {path}"
        assert method.lower() in routes[template], f"README.md: {template} takes no {method}"
        values = json.loads(body or "{}")
        if template == "/v1/sweeps" and body:
            SweepSpec.model_validate(values)


# -- tables and examples


def test_the_table_of_methods_equals_the_methods() -> None:
    section = README.partition("## Methods")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \| ([^|]*) \|", section, re.MULTILINE)
    expected = [
        (name, "yes" if cls.needs_reference else "no", ", ".join(f"`{key}`" for key in hyperparameters(cls)) or "none")
        for name, cls in METHODS.items()
    ]
    assert [(name, reference, keys.strip()) for name, reference, keys in rows] == expected, (
        "README.md, section Methods: one row for each of simpo.config.METHODS: name, reference model, hyperparameters"
    )


def test_the_example_spec_is_accepted() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        values = yaml.safe_load(block)
        (ComparisonSpec if "methods" in values else SweepSpec).model_validate(values)


def test_the_changelog_starts_with_the_version() -> None:
    version = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    latest = re.search(r"^## (\S+)", (REPO / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert latest
    assert latest[1] == version


def test_every_file_that_readme_names_is_there() -> None:
    for document in [REPO / "README.md", *REPO.glob("*/README.md")]:
        named = re.findall(
            r"`((?:simpo|sweeps|service|tests|k8s)/[\w./-]+\.\w+)`", document.read_text(encoding="utf-8")
        )
        assert [path for path in named if not (REPO / path).exists()] == [], document
    assert len(re.findall(r"`(?:sweeps|service)/[\w/]+\.py`", README)) > 10


def missing_documents(text: str, folder: Path) -> list[str]:
    """Documents that a text mentions and that are not in the repository."""
    mentioned = set(re.findall(r"(?<![\w./-])([\w./-]*\w\.md)\b", text))
    return sorted(name for name in mentioned if not ((folder / name).exists() or (REPO / name).exists()))


def test_documents_that_the_source_mentions_are_there() -> None:
    found = {
        source.path: missing
        for source in sources()
        if (missing := missing_documents(source.text, (REPO / source.path).parent))
    }
    assert found == {}
    assert missing_documents("see design.md and k8s/README.md", REPO) == ["design.md"]
