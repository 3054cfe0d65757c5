"""What a project may name by path or by the id of another sweep: no other project's data is reached by way of a file.

Paths of the machine are allowed in specs (`service.orders`), and the store lies on that machine. So every path of a
request that leads into the store is looked up: it must lie under a sweep or a dataset that the session, which is the
project's, sees. This is asked before anybody looks at the disk, so that what is there and what is not sound alike.
Where SIMPO_SOURCE_ROOTS is set, a path outside of the store must lie, links followed, under one of its directories.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from service.errors import invalid, pointer_of
from service.models import Sweep
from service.models_data import Dataset
from service.settings import Settings

_OWNERS: Mapping[str, type[Sweep] | type[Dataset]] = {"sweeps": Sweep, "datasets": Dataset}
_ID = re.compile(r"[a-z]{2,8}_[0-9a-z]{1,32}")

Place = tuple[str | int, ...]


def check_reach(session: Session, settings: Settings, body: Mapping[str, Any]) -> None:
    """Raises Invalid (422) for each path of a request that leads into the store and is not the project's."""
    faults = [
        (pointer_of(place), f"there is no file or directory {text} on the service's machine")
        for place, text in _texts(body)
        if "/" in text and not _mine(session, settings, text)
    ]
    if faults:
        raise invalid(faults)


def check_warm_start(session: Session, order: Mapping[str, Any]) -> None:
    """Raises Invalid (422) for an earlier sweep that the project does not have."""
    faults = [
        (pointer_of(place), f"there is no sweep {text}: GET /v1/sweeps lists them")
        for place, text in _texts(order)
        if len(place) > 1 and place[-2] == "warm_start" and not _is_there(session, Sweep, text)
    ]
    if faults:
        raise invalid(faults)


def _mine(session: Session, settings: Settings, text: str) -> bool:
    path, store = Path(text), settings.local_store.resolve()
    if not path.is_absolute():
        return ".." not in path.parts and not text.startswith("~")  # a hub id, or text of another kind
    try:
        resolved = path.resolve()
    except (OSError, ValueError, RuntimeError):  # NUL, a lone surrogate, a ring of links
        return False
    if not resolved.is_relative_to(store):
        # Nobody reads a directory to its depth, so one around the store is no way in.
        roots = settings.source_roots
        return roots is None or any(resolved.is_relative_to(Path(root).resolve()) for root in roots.split(":"))
    kind, *rest = (*resolved.relative_to(store).parts, "")
    return kind in _OWNERS and _is_there(session, _OWNERS[kind], rest[0])


def _is_there(session: Session, table: type[Sweep] | type[Dataset], id: str) -> bool:
    return _ID.fullmatch(id) is not None and session.get(table, id) is not None


def _texts(value: Any) -> Iterator[tuple[Place, str]]:
    """Every text in a JSON value, with its place. No recursion: what people send may be nested as deep as they like."""
    waiting: list[tuple[Place, Any]] = [((), value)]
    while waiting:
        place, inner = waiting.pop()
        if isinstance(inner, str):
            yield place, inner
        elif isinstance(inner, Mapping):
            waiting += [((*place, key), each) for key, each in reversed(list(inner.items()))]
        elif isinstance(inner, list | tuple):
            waiting += [((*place, index), each) for index, each in reversed(list(enumerate(inner)))]
