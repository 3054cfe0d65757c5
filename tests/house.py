"""What the tests of the house look at: our own source files, parsed once."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PACKAGES = ("simpo", "sweeps", "service")


@dataclass(frozen=True, kw_only=True)
class Import:
    """One module that an import statement names."""

    name: str
    """Absolute dotted name; of `from a import b` it is a.b, which may be a module or something in one."""
    line: int
    """Where."""
    lazy: bool
    """Inside a function: runs when that is called."""
    typing_only: bool
    """Under `if TYPE_CHECKING`: never runs."""


@dataclass(frozen=True)
class Source:
    """One Python file."""

    path: str
    """Relative to the repository, with /."""
    text: str
    """Its content."""

    @classmethod
    def read(cls, path: Path) -> "Source":
        """The file at `path`."""
        return cls(path.relative_to(REPO).as_posix(), path.read_text(encoding="utf-8"))

    @property
    def module(self) -> str:
        """Dotted name."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        """simpo, sweeps, service or tests."""
        return self.path.partition("/")[0]

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text, self.path)

    @cached_property
    def lines(self) -> list[str]:
        """The lines; `lines[n - 1]` is line n."""
        return self.text.splitlines()

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """Every import, wherever it stands."""
        return tuple(_imports(self.tree, lazy=False, typing_only=False))


@cache
def sources(*packages: str) -> tuple[Source, ...]:
    """The Python files of these packages; of simpo, sweeps and service by default."""
    found = [path for package in packages or PACKAGES for path in sorted((REPO / package).rglob("*.py"))]
    return tuple(Source.read(path) for path in found)


def _imports(node: ast.AST, *, lazy: bool, typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(name=alias.name, line=child.lineno, lazy=lazy, typing_only=typing_only)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:  # relative imports are refused by a test: level is 0
                name = f"{child.module}.{alias.name}"
                yield Import(name=name, line=child.lineno, lazy=lazy, typing_only=typing_only)
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            for part in child.body:
                yield from _imports(ast.Module([part], []), lazy=lazy, typing_only=True)
            for part in child.orelse:
                yield from _imports(ast.Module([part], []), lazy=lazy, typing_only=typing_only)
        else:
            inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, lazy=inside, typing_only=typing_only)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
