"""What a project may name by path or by the id of another sweep: no other project's data is reached by way of a file.

Paths of the machine are allowed in specs (`service.orders`), and the store lies on that machine. So every path of an
order that leads into the store is looked up: it must lie under a sweep or a dataset that the session, which is the
project's, sees.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from service.errors import invalid, pointer_of
from service.models import Sweep
from service.models_data import Dataset
from service.settings import Settings

_OWNERS: Mapping[str, type[Sweep] | type[Dataset]] = {"sweeps": Sweep, "datasets": Dataset}


def check_reach(session: Session, settings: Settings, order: Mapping[str, Any], within: Sequence[str] = ()) -> None:
    """Raises Invalid (422) for a path into the store that is not the project's, and for another project's sweep.

    Says what it says of what is not there at all. `within`: where `order` stands in the request.
    """
    faults = [
        (pointer_of([*within, *place]), f"there is no file or directory {text} on the service's machine")
        for place, text in _texts(order, ())
        if "/" in text and not _mine(session, settings, text)
    ]
    faults += [
        (pointer_of([*within, *place]), f"there is no sweep {text}: GET /v1/sweeps lists them")
        for place, text in _texts(order, ())
        if len(place) > 1 and place[-2] == "warm_start" and session.get(Sweep, text) is None
    ]
    if faults:
        raise invalid(faults)


def _mine(session: Session, settings: Settings, text: str) -> bool:
    path, store = Path(text), settings.store.resolve()
    if not path.is_absolute():
        return ".." not in path.parts and not text.startswith("~")  # a hub id, or text of another kind
    if "\0" in text:
        return False
    resolved = path.resolve()
    if store.is_relative_to(resolved):
        return False  # around the store: everybody's
    if not resolved.is_relative_to(store):
        return True
    kind, *rest = resolved.relative_to(store).parts
    return kind in _OWNERS and bool(rest) and session.get(_OWNERS[kind], rest[0]) is not None


def _texts(value: Any, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, (*place, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*place, index))
