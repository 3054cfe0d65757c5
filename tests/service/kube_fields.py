"""Who manages which field: the arithmetic of server-side apply, for kube_double.py.

A field is the path of a leaf; objects merge by key, lists are one leaf (as in a CRD without list-type markers).
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

Json = dict[str, Any]
Path = tuple[str, ...]
Owners = dict[tuple[str, str], set[Path]]
"""(manager, Apply or Update) -> the leaves it manages."""
Conflict = tuple[str, Path]

_SYSTEM = (
    *("name", "namespace", "uid", "resourceVersion", "generation"),
    *("creationTimestamp", "deletionTimestamp", "managedFields"),
)


def owned_by(thing: Json, manager: str, operation: str) -> Owners:
    """Everything of a new object is its maker's."""
    return {(manager, operation): {path for path, _ in leaves(thing)}}


def leaves(thing: Json) -> Iterator[tuple[Path, Any]]:
    """(path, value) of every leaf that somebody can manage; not the status, not what the server sets."""
    for key, value in thing.items():
        if key == "metadata":
            for name in set(value) - set(_SYSTEM):
                yield from _leaves(value[name], ("metadata", name))
        elif key not in ("apiVersion", "kind", "status"):
            yield from _leaves(value, (key,))


def merge(old: Json, wish: Json, owners: Owners, manager: str, force: bool) -> tuple[Json, list[Conflict]]:
    """(object after an apply, conflicts); `owners` is changed where there are none."""
    now, wanted = dict(leaves(old)), dict(leaves(wish))
    conflicts = [
        (other, path)
        for (other, operation), held in owners.items()
        if (other, operation) != (manager, "Apply")
        for path in sorted(held & set(wanted))
        if path in now and now[path] != wanted[path]
    ]
    if conflicts and not force:
        return old, conflicts
    mine = owners.get((manager, "Apply"), set())
    result = copy.deepcopy(old)
    for path in mine - set(wanted):  # what we applied before and no longer say goes, unless another has it too
        if not any(path in held for key, held in owners.items() if key != (manager, "Apply")):
            _drop(result, path)
    for path, value in wanted.items():
        _set(result, path, copy.deepcopy(value))
    for _, path in conflicts:
        for key, held in owners.items():
            if key != (manager, "Apply"):
                held.discard(path)
    owners[manager, "Apply"] = set(wanted)
    return result, []


def updated(old: Json, new: Json, owners: Owners, manager: str, operation: str) -> None:
    """Change `owners` for an update: who changes a field has it, and nobody else."""
    before, after = dict(leaves(old)), dict(leaves(new))
    changed = {path for path in after if path not in before or before[path] != after[path]}
    gone = set(before) - set(after)
    if not changed and not gone:
        return
    for held in owners.values():
        held -= changed | gone
    owners.setdefault((manager, operation), set()).update(changed)


def told(conflicts: Sequence[Conflict]) -> tuple[str, list[Json]]:
    """(message, causes) of a 409."""
    each = [f'conflict with "{other}" using ray.io/v1: .{".".join(path)}' for other, path in conflicts]
    plural = "conflict" if len(each) == 1 else "conflicts"
    causes = [
        {"reason": "FieldManagerConflict", "message": text.partition(": .")[0], "field": f".{'.'.join(path)}"}
        for text, (_, path) in zip(each, conflicts, strict=True)
    ]
    return f"Apply failed with {len(each)} {plural}: {'; '.join(each)}", causes


def shown(owners: Owners, now: str, before: Sequence[Json], actor: tuple[str, str] | None) -> list[Json]:
    """managedFields; the entry of who changed something gets a new time, the others keep theirs."""
    entries = []
    times = {(e["manager"], e["operation"]): e["time"] for e in before}
    for (manager, operation), held in owners.items():
        tree: Json = {}
        for path in sorted(held):
            at = tree
            for part in path:
                at = at.setdefault(f"f:{part}", {})
        if tree:
            entry = {"manager": manager, "operation": operation, "apiVersion": "ray.io/v1", "fieldsType": "FieldsV1"}
            time = now if (manager, operation) == actor else times.get((manager, operation), now)
            entries.append({**entry, "fieldsV1": tree, "time": time})
    return entries


def merged(thing: Json, patch: Json) -> Json:
    """RFC 7396: null removes, objects merge, everything else replaces."""
    result = copy.deepcopy(thing)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(child, (*path, key))
    else:
        yield path, value


def _set(thing: Json, path: Path, value: Any) -> None:
    for part in path[:-1]:
        thing = thing.setdefault(part, {})
    thing[path[-1]] = value


def _drop(thing: Json, path: Path) -> None:
    for part in path[:-1]:
        if part not in thing:
            return
        thing = thing[part]
    thing.pop(path[-1], None)
