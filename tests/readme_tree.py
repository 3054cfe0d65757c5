"""README's annotated tree: what is on disk, one caption each.

    python -m tests.readme_tree            print it as it should be
    python -m tests.readme_tree --write    write it into README.md

Captions stand in README itself and are kept; a new file gets the first sentence of its docstring, to be shortened by
hand.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.house import REPO

README = REPO / "README.md"
HEADING = "## The tree"
FOLDERS = ("simpo", "sweeps", "service", "k8s", "tests")
MAX_CAPTION = 90

_LINE = re.compile(r"^( *)(\S+)(?: {2,}(\S.*))?$")
_IGNORED = {"__pycache__", "node_modules"}


def on_disk(root: Path = REPO) -> list[str]:
    """Every entry the tree must have, in order: folders (ending in /) and, outside tests and k8s, Python files."""
    return [entry for name in FOLDERS if (root / name).is_dir() for entry in _entries(root / name, root)]


def in_readme(text: str) -> dict[str, str]:
    """Path -> caption, of the tree in README.

    Raises ValueError for a line that is no entry of a tree.
    """
    block = re.search(rf"^{re.escape(HEADING)}\n.*?```text\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    if not block:
        raise ValueError(f"README.md has no ```text block under {HEADING!r}")
    found: dict[str, str] = {}
    parents: list[str] = []
    for line in block[1].splitlines():
        entry = _LINE.match(line)
        if not entry or len(entry[1]) % 2 or len(entry[1]) // 2 > len(parents):
            raise ValueError(f"README.md, {HEADING!r}: cannot read the line {line!r}")
        depth = len(entry[1]) // 2
        path = "".join(parents[:depth]) + entry[2]
        parents = [*parents[:depth], entry[2]]
        found[path] = entry[3] or ""
    return found


def rendered(captions: Mapping[str, str]) -> str:
    """The tree as it should be, with these captions."""
    names = {path: _indented(path) for path in on_disk()}
    column = max(map(len, names.values())) + 2
    lines = [f"{name:<{column}}{captions.get(path) or _first_sentence(REPO / path)}" for path, name in names.items()]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _indented(path: str) -> str:
    """The entry's own name, two blanks for each folder it is in."""
    *folders, name = path.rstrip("/").split("/")
    return "  " * len(folders) + name + ("/" if path.endswith("/") else "")


def _entries(folder: Path, root: Path) -> Iterator[str]:
    yield folder.relative_to(root).as_posix() + "/"
    children = sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name))
    for child in children:
        if child.is_dir() and child.name not in _IGNORED and _holds_something(child):
            yield from _entries(child, root)
        elif child.suffix == ".py" and child.name != "__init__.py" and folder.relative_to(root).parts[0] != "tests":
            yield child.relative_to(root).as_posix()


def _holds_something(folder: Path) -> bool:
    """Folders that git would not keep are no part of the tree."""
    return any(path.is_file() and "__pycache__" not in path.parts for path in folder.rglob("*"))


def _first_sentence(path: Path) -> str:
    source = path / "__init__.py" if path.is_dir() else path
    if not source.is_file():
        return ""
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return re.split(r"[.:;](?:\s|$)", " ".join(text.split()))[0]


def main(arguments: list[str]) -> None:
    """Print the tree, or write it."""
    text = README.read_text(encoding="utf-8")
    tree = rendered(in_readme(text))
    if "--write" in arguments:
        start = text.index("```text\n", text.index(HEADING)) + len("```text\n")
        README.write_text(text[:start] + tree + text[text.index("```", start) :], encoding="utf-8")
    else:
        print(tree)


if __name__ == "__main__":
    main(sys.argv[1:])
