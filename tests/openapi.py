"""The frozen OpenAPI document, `service/openapi.json`: what clients may rely on.

    python -m tests.openapi            what differs from it now
    python -m tests.openapi --write    freeze what the routes say now

A change is additive when every earlier client goes on: no operation, field of an answer, legal word or status goes, and
nothing becomes required. Other changes are listed by name; freezing them is a decision (service/README.md).
"""

import difflib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.app import create_app
from service.openapi import operations
from service.settings import Settings
from tests.house import REPO

Json = dict[str, Any]

FROZEN = REPO / "service" / "openapi.json"
COMMAND = "python -m tests.openapi --write"


def current() -> Json:
    """The document of this tree, with every route that settings may turn on."""
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(database_url=f"sqlite:///{directory}/x.db", store=Path(directory), reconcile=False)
        document: Json = create_app(settings).openapi()
    return document


def frozen() -> Json:
    """The committed one."""
    document: Json = json.loads(FROZEN.read_text())
    return document


def text_of(document: Json) -> str:
    """As it is committed: sorted, a line each."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def difference(before: Json, after: Json) -> str:
    """Unified, each piece under the operation or schema that it belongs to; empty where there is none."""
    pieces = []
    olds, news = dict(_pieces(before)), dict(_pieces(after))
    for name in sorted({*olds, *news}):
        old, new = olds.get(name, ""), news.get(name, "")
        lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "frozen", "now", n=2, lineterm="")
        if old != new:
            pieces.append("\n".join([f"== {name}", *list(lines)[2:]]))
    return "\n".join(pieces)


def broken(before: Json, after: Json) -> list[str]:
    """What an earlier client would miss."""
    found = []
    now = {(path, method): operation for path, method, operation in operations(after)}
    for path, method, old in operations(before):
        name, new = f"{method.upper()} {path}", now.get((path, method))
        if new is None:
            found.append(f"{name} is gone")
            continue
        found += [f"{name}: {what}" for what in _operation(old, new)]
    for name, old in before["components"]["schemas"].items():
        schema = after["components"]["schemas"].get(name)
        found += [f"{name} is gone"] if schema is None else list(_schema(name, old, schema))
    return found


def _operation(old: Json, new: Json) -> Iterator[str]:
    then, now = ({(p["in"], p["name"].lower()): p for p in each.get("parameters", ())} for each in (old, new))
    for key in then.keys() - now.keys():
        yield f"the parameter {key[1]} is gone"
    for key, parameter in now.items():
        if parameter.get("required") and not then.get(key, {}).get("required"):
            yield f"the parameter {key[1]} is required now"
    for code in old["responses"].keys() - new["responses"].keys():
        yield f"the answer {code} is gone"
    if new.get("requestBody", {}).get("required") and not old.get("requestBody", {}).get("required"):
        yield "a body is required now"
    if old["operationId"] != new["operationId"]:
        yield f"it was called {old['operationId']}"


def _schema(place: str, old: Any, new: Any) -> Iterator[str]:
    """Of one schema, and of what it holds."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return
    properties = old.get("properties", {})
    for field in properties.keys() - new.get("properties", {}).keys():
        yield f"{place}.{field} is gone"
    if place.endswith(("In", "Spec", "Body")):
        for field in set(new.get("required", ())) - set(old.get("required", ())):
            yield f"{place}.{field} is required now"
    for word in [word for word in old.get("enum", ()) if word not in new.get("enum", [word])]:
        yield f"{place}: {word!r} is no legal word any more"
    for field, inner in properties.items():
        yield from _schema(f"{place}.{field}", inner, new.get("properties", {}).get(field))


def _pieces(document: Json) -> Iterator[tuple[str, str]]:
    for path, method, operation in operations(document):
        yield f"{method.upper()} {path}", text_of(operation)
    for kind, members in document["components"].items():
        for name, schema in members.items():
            yield f"components/{kind}/{name}", text_of(schema)


def main() -> int:
    """The command line. Exit code 1: there is a difference."""
    now = current()
    if "--write" in sys.argv[1:]:
        if FROZEN.exists():
            print("\n".join(broken(frozen(), now)) or "What was frozen goes on as it was.")
        FROZEN.write_text(text_of(now))
        return 0
    told = difference(frozen(), now)
    print(told or "No difference.")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
