"""The shape of the source: sizes, names, docstrings, what may run at import, who reads the environment."""

import ast
import importlib
import inspect
import pickle
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from tests.house import PACKAGES, Source, sources

MAX_LINES = 400
FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "common", "misc", "constants", "manager"}
READS_ENVIRONMENT: Mapping[str, str] = {
    "service/settings.py": "the one place where the service is configured",
    "service/cli.py": "the command line is a client: address, key and home of whoever types",
    "service/local_process.py": "hands the environment on to the processes of the embedded stack",
    "sweeps/__main__.py": "Ray tells its jobs by RAY_ADDRESS which cluster is theirs; a spec names its judge's key",
    "sweeps/ray_session.py": "sets what Ray and Tune read nowhere else; reads nothing",
}
"""Files that may read environment variables, each with its reason."""
REGISTERS_AT_IMPORT: Mapping[str, str] = {
    "service/cli.py": "joins the commands, Typer's way",
    "sweeps/__main__.py": "joins the commands, Typer's way",
    "sweeps/yaml_text.py": "teaches a YAML loader of its own to read 2e-5 as a number",
}
"""Files with statements at module level that do something, each with its reason."""

quick = pytest.mark.quick


def findings(rule: Callable[[Source], Iterator[str]], *packages: str) -> list[str]:
    """What `rule` finds in all files of these packages."""
    return [text for source in sources(*packages) for text in rule(source)]


# -- sizes and names


def too_long(source: Source) -> Iterator[str]:
    """Files that a stranger cannot read in five minutes."""
    if len(source.lines) > MAX_LINES:
        yield f"{source.path}: {len(source.lines)} lines, more than {MAX_LINES}: split it by what its parts are for"


def drawers(source: Source) -> Iterator[str]:
    """File names that say nothing about what is inside."""
    words = set(source.path.removesuffix(".py").replace("/", "_").split("_"))
    if words & FORBIDDEN_NAMES:
        yield f"{source.path}: name the file after what it is about, not {', '.join(sorted(words & FORBIDDEN_NAMES))}"


@quick
def test_no_file_is_too_long() -> None:
    assert findings(too_long) == []
    assert list(too_long(Source("simpo/a.py", "x = 1\n" * 401))) != []
    assert list(too_long(Source("simpo/a.py", "x = 1\n" * 400))) == []


@quick
def test_no_file_is_a_drawer() -> None:
    assert findings(drawers, "simpo", "sweeps", "service", "tests") == []
    for path in ("simpo/utils.py", "service/cli_helpers.py", "sweeps/common/a.py"):
        assert list(drawers(Source(path, ""))) != [], path
    assert list(drawers(Source("simpo/commonality.py", ""))) == []


# -- packages and imports


def more_than_a_docstring(source: Source) -> Iterator[str]:
    """`__init__.py` files that do, or re-export, something."""
    if source.path.endswith("/__init__.py"):
        documented = ast.get_docstring(source.tree) is not None
        if not documented or len(source.tree.body) != 1:
            yield f"{source.path}: must hold a docstring (what the package is about) and nothing else"


@quick
def test_packages_hold_a_docstring_only() -> None:
    assert findings(more_than_a_docstring) == []
    assert list(more_than_a_docstring(Source("simpo/__init__.py", '"""A."""\nfrom simpo.fit import fit'))) != []
    assert list(more_than_a_docstring(Source("simpo/__init__.py", ""))) != []
    assert list(more_than_a_docstring(Source("simpo/__init__.py", '"""A."""\n'))) == []


_DEFINITIONS = (
    *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign),
)


def does_something(source: Source) -> Iterator[str]:
    """Statements at module level that are no definition: they would run at import."""
    for node in source.tree.body:
        prose = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        condition = ast.unparse(node.test) if isinstance(node, ast.If) else ""
        guarded = condition.startswith("__name__ == ") or condition == "TYPE_CHECKING"
        assertion = isinstance(node, ast.Assert)  # of ours, about the tables above it
        if not (isinstance(node, _DEFINITIONS) or prose or guarded or assertion):
            yield f"{source.path}:{node.lineno}: nothing may happen at import: move this into a function"


@quick
def test_nothing_happens_at_import() -> None:
    found = [text for text in findings(does_something) if text.partition(":")[0] not in REGISTERS_AT_IMPORT]
    assert found == []
    assert list(does_something(Source("simpo/a.py", "import torch\ntorch.set_num_threads(1)"))) != []
    assert list(does_something(Source("simpo/a.py", "if __name__ == '__main__':\n    main()"))) == []


@pytest.mark.parametrize("module", [source.module for source in sources()])
def test_every_module_imports(module: str) -> None:
    importlib.import_module(module)


# -- the environment and the screen


def environment_reads(source: Source) -> Iterator[str]:
    """Reads of environment variables, and command-line options that fall back on one."""
    for node in ast.walk(source.tree):
        name = ""
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            name = next((f"os.{alias.name}" for alias in node.names if alias.name in ("environ", "getenv")), "")
        elif isinstance(node, ast.keyword) and node.arg == "envvar":
            name = "envvar="
        if name in ("os.environ", "os.getenv", "os.environb", "envvar="):
            where = node.value.lineno if isinstance(node, ast.keyword) else getattr(node, "lineno", 0)
            yield f"{source.path}:{where}: {name}: environment variables are read in service/settings.py alone"


def prints(source: Source) -> Iterator[str]:
    """Output of a library: only command lines speak to the screen."""
    if source.path.endswith("/__main__.py"):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "pprint"):
            yield f"{source.path}:{node.lineno}: libraries do not print: return it, log it, or report it"


@quick
def test_the_environment_is_read_in_one_place() -> None:
    found = findings(environment_reads)
    assert [text for text in found if text.partition(":")[0] not in READS_ENVIRONMENT] == []
    unused = set(READS_ENVIRONMENT) - {text.partition(":")[0] for text in found}
    assert not unused, f"take out of READS_ENVIRONMENT: {sorted(unused)}"
    for text in ("import os\nos.environ['A']", "from os import getenv", "typer.Option(envvar='A')"):
        assert list(environment_reads(Source("service/a.py", text))) != [], text


@quick
def test_libraries_do_not_print() -> None:
    assert findings(prints) == []
    assert list(prints(Source("simpo/a.py", "def f():\n    print(1)"))) != []
    assert list(prints(Source("simpo/__main__.py", "print(1)"))) == []


# -- docstrings


def undocumented(source: Source) -> Iterator[str]:
    """Public modules, classes and functions without a docstring."""
    if ast.get_docstring(source.tree) is None:
        yield f"{source.path}: the module needs a docstring"
    yield from _undocumented(source, source.tree, "")


def _undocumented(source: Source, scope: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for node in scope.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        # A method of a class that derives from something of ours or a library's has its contract there.
        inherited = isinstance(scope, ast.ClassDef) and bool(scope.bases)
        if ast.get_docstring(node) is None and not (inherited and not isinstance(node, ast.ClassDef)):
            yield f"{source.path}:{node.lineno}: {prefix}{node.name} needs a docstring"
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(source, node, f"{prefix}{node.name}.")


@quick
def test_everything_public_has_a_docstring() -> None:
    assert findings(undocumented, "simpo", "sweeps") == []
    text = '"""A."""\nclass A:\n    """A."""\n    def f(self): ...\ndef g(): ...\ndef _h(): ...\n'
    assert len(list(undocumented(Source("simpo/a.py", text)))) == 2
    assert len(list(undocumented(Source("simpo/a.py", "x = 1")))) == 1


# -- errors


def error_classes(package: str, *, light: bool) -> list[type[Exception]]:
    """Public exception classes of the package: those of its light files made for errors, or all the others."""
    found = []
    for source in sources(package):
        names = [node.name for node in source.tree.body if isinstance(node, ast.ClassDef) and _may_be_error(node)]
        if names and source.path.endswith(("errors.py", "faults.py")) == light:
            module = importlib.import_module(source.module)
            classes = [getattr(module, name) for name in names if not name.startswith("_")]
            found += [cls for cls in classes if issubclass(cls, Exception)]
    return found


def _may_be_error(node: ast.ClassDef) -> bool:
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    return any(name.endswith(("Error", "Exception")) for name in bases)


def example_of(cls: type[Exception]) -> Exception:
    """An instance with a telling value for every argument."""
    if cls.__init__ in (Exception.__init__, ValueError.__init__, RuntimeError.__init__):
        return cls("what")
    hints = get_type_hints(cls.__init__)
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    positional = [_value(hints[p.name]) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = {p.name: _value(hints[p.name]) for p in parameters if p.kind is p.KEYWORD_ONLY}
    return cls(*positional, **named)


def _value(hint: Any) -> Any:
    """Something of that type, not empty: containers hold one element."""
    arguments = [argument for argument in get_args(hint) if argument not in (type(None), ...)]
    origin = get_origin(hint)
    if origin is Literal:
        return arguments[0]
    if origin in (Union, UnionType):
        return _value(arguments[0])
    if origin is not None and issubclass(origin, Mapping):
        return {_value(arguments[0]): _value(arguments[1])}
    if origin is not None:  # tuple[X, ...], list[X], Sequence[X] ...
        return (list if origin is list else tuple)(_value(argument) for argument in arguments)
    return {float: 3.5, int: 3, bool: True, dict: {"a": 1}, list: ["what"], tuple: ("what",)}.get(hint, "what")


class _Forgetful(ValueError):
    """The trap: two arguments, one string for `super()`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


def survives_pickling(error: Exception) -> bool:
    """Whether the error says the same, and has the same fields, in another process."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except TypeError:
        return False
    return type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)


def _all_survive(classes: list[type[Exception]]) -> None:
    lost = [f"{cls.__module__}.{cls.__name__}" for cls in classes if not survives_pickling(example_of(cls))]
    assert lost == [], "pass all arguments to super().__init__ and format in __str__"


@quick
@pytest.mark.parametrize("package", PACKAGES)
def test_errors_cross_process_borders(package: str) -> None:
    _all_survive(error_classes(package, light=True))


@pytest.mark.parametrize("package", PACKAGES)
def test_errors_of_heavy_modules_cross_process_borders(package: str) -> None:
    _all_survive(error_classes(package, light=False))


@quick
def test_an_error_that_does_not_survive_is_found() -> None:
    assert error_classes("simpo", light=True)
    assert not survives_pickling(_Forgetful("a", "b"))
