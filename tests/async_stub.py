"""`service/client_async.pyi`: the types of the asynchronous client, made from the blocking one's.

    python -m tests.async_stub            whether it is as it should be
    python -m tests.async_stub --write    make it

A method is awaited, one that yields is iterated asynchronously, a topic (`datasets`) is a class of the same kind.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.house import REPO

STUB = REPO / "service" / "client_async.pyi"
CLIENT, TOPICS, ASYNC = (REPO / "service" / f"{name}.py" for name in ("client", "client_topics", "client_async"))

_HEAD = '"""Made from service/client.py and its topics by `python -m tests.async_stub --write`."""\n'
_OWN = ("__init__", "__aenter__", "__aexit__")


def rendered() -> str:
    """The stub as it should be."""
    topics = dict(_topics())
    bodies = [_class(f"Async{name}", path, name) for name, path in sorted(set(topics.values()))]
    own = [_signature(method) for method in _methods(ASYNC, "AsyncClient") if method.name in _OWN]
    properties = [f"@property\ndef {topic}(self) -> Async{name}: ..." for topic, (name, _) in topics.items()]
    shown = [_awaited(method) for method in _methods(CLIENT, "Client") if not method.name.startswith("_")]
    main = _indented("AsyncClient", ["url: str", *own, *properties, *shown])
    text = "\n\n".join([*bodies, main])
    return "\n".join([_HEAD, *_imports(text, [CLIENT, ASYNC, *(path for _, path in topics.values())]), "", text, ""])


def blocking_methods() -> Iterator[tuple[str, ast.FunctionDef]]:
    """(topic or "", public method) of the blocking client."""
    yield from (("", method) for method in _methods(CLIENT, "Client") if not method.name.startswith("_"))
    for topic, (name, path) in _topics():
        yield from ((topic, method) for method in _methods(path, name) if not method.name.startswith("_"))


def _topics() -> Iterator[tuple[str, tuple[str, Path]]]:
    """Property of a client -> (class, its module)."""
    homes = {
        alias.name: REPO / f"{(node.module or '').replace('.', '/')}.py"
        for node in ast.walk(ast.parse(TOPICS.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for method in _methods(TOPICS, "Topics"):
        assert isinstance(method.returns, ast.Name), method.name
        yield method.name, (method.returns.id, homes[method.returns.id])


def _methods(path: Path, name: str) -> list[ast.FunctionDef]:
    found = next(
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef) and node.name == name
    )
    return [each for each in found.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]  # type: ignore[misc]


def _class(name: str, path: Path, blocking: str) -> str:
    return _indented(name, [_awaited(each) for each in _methods(path, blocking) if not each.name.startswith("_")])


def _indented(name: str, members: list[str]) -> str:
    return "\n".join([f"class {name}:", *(f"    {line}" for member in members for line in member.splitlines())])


def _awaited(method: ast.FunctionDef) -> str:
    """Its signature for somebody who awaits."""
    returns = ast.unparse(method.returns) if method.returns else "None"
    text = _signature(method)
    if returns.startswith("Iterator["):
        return text.replace("-> Iterator[", "-> AsyncIterator[")
    return f"async {text}"


def _signature(method: ast.FunctionDef) -> str:
    given = ast.parse(ast.unparse(method.args).join(("def f(", "): ..."))).body[0]
    assert isinstance(given, ast.FunctionDef)
    given.args.defaults = [ast.Constant(...) for _ in given.args.defaults]
    given.args.kw_defaults = [None if each is None else ast.Constant(...) for each in given.args.kw_defaults]
    returns = ast.unparse(method.returns) if method.returns else "None"
    prefix = "async " if isinstance(method, ast.AsyncFunctionDef) else ""
    return f"{prefix}def {method.name}({ast.unparse(given.args)}) -> {returns}: ..."


def _imports(text: str, paths: list[Path]) -> list[str]:
    """Lines that bring in every name that the annotations use."""
    nodes = list(ast.walk(ast.parse(text)))
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    made = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    lines = {"AsyncIterator": "from collections.abc import AsyncIterator"}
    for path in paths:
        module = f"service.{path.stem}"
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                lines.update({alias.name: f"import {alias.name}" for alias in node.names})
            elif isinstance(node, ast.ImportFrom):
                lines.update({alias.name: f"from {node.module} import {alias.name}" for alias in node.names})
            elif isinstance(node, ast.ClassDef):
                lines.setdefault(node.name, f"from {module} import {node.name}")
            elif isinstance(node, ast.Assign):
                targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
                lines.update({target: f"from {module} import {target}" for target in targets if target not in lines})
    builtin = set(dir(__builtins__)) | set(__builtins__ if isinstance(__builtins__, dict) else ())
    return sorted(lines[name] for name in used - made - builtin)


def main() -> int:
    """The command line. Exit code 1: it is not as it should be."""
    if "--write" in sys.argv[1:]:
        STUB.write_text(rendered())
    return 0 if STUB.exists() and STUB.read_text() == rendered() else 1


if __name__ == "__main__":
    sys.exit(main())
