"""Directories in a store - checkpoints, what was prepared - and copies of them on a node. Light.

    <key>/<first 16 of its SHA-256>/<name>      each file
    <key>.tree.json                             {name: {sha256, size}}, put last: without it there is no directory

A file's hash is in its key, so two writers of one directory, one of whom was only believed dead, mix nothing up: the
last manifest names its own writer's files, and those are there. A copy is verified before it gets its name.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simpo.errors import CheckpointError, StorageError
from sweeps.store import Store

TREE = ".tree.json"
Files = dict[str, dict[str, Any]]
"""Name -> {sha256, size in bytes}."""
_PREFIX = 16


def push_tree(store: Store, key: str, directory: Path) -> None:
    """Put a directory, its manifest last. Files that are there are not sent again. Raises StoreUnavailable."""
    files: Files = {}
    there = store.look(f"{key}/", deep=True).entries
    for name, path in _files(directory):
        digest, size = _digest(path), path.stat().st_size
        files[name] = {"sha256": digest, "size": size}
        held = there.get(f"{digest[:_PREFIX]}/{name}")
        if held is None or held.size != size:
            store.put_file(_key(key, name, digest), path)
    store.put(f"{key}{TREE}", json.dumps(files, indent=1, sort_keys=True).encode())


def pull_tree(store: Store, key: str, directory: Path) -> bool:
    """Make `directory` a verified copy, whole or not at all; one that is there stays. False: the store has none.

    Raises CheckpointError where what the store has is damaged, StorageError where store or disk fail.
    """
    files = None if directory.is_dir() else tree_files(store, key)
    if files is None:
        return directory.is_dir()
    pull_files(store, key, files, directory)
    return True


def tree_files(store: Store, key: str) -> Files | None:
    """What a directory of the store holds; None: the store has none. Raises CheckpointError, StoreUnavailable."""
    text = store.get(f"{key}{TREE}")
    if text is None:
        return None
    try:
        return parse_files(text)
    except ValueError as error:
        raise CheckpointError(f"{store.uri}/{key}{TREE} is no manifest of ours: it is damaged") from error


def pull_files(store: Store, key: str, files: Files, directory: Path, *, part: str = "") -> None:
    """Make `directory`, which is not there, a verified copy of these files, whole or not at all. Raises as `pull_tree`.

    part: of those under this folder alone, which ends with /; their names in the copy are without it.
    """
    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        for name, facts in files.items():
            if not name.startswith(part):
                continue
            path = partial / name.removeprefix(part)
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = str(facts["sha256"])
            if not store.get_file(_key(key, name, digest), path) or _digest(path) != digest:
                raise CheckpointError(f"{store.uri}/{key}: {name} is missing or differs from its hash: it is damaged")
        _put(partial, directory)
    except OSError as error:
        message = f"cannot be written ({error.strerror}): check space and permissions"
        raise StorageError(message, str(directory)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def parse_files(text: bytes) -> Files:
    """The files that a manifest names. Raises ValueError for what is none of ours."""
    try:
        files: Files = json.loads(text)
        for name, facts in files.items():
            if Path(name).is_absolute() or ".." in Path(name).parts or not isinstance(facts["sha256"], str):
                raise ValueError(name)
            int(facts["size"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error
    return files


def holds_files(directory: Path, files: Files) -> bool:
    """Whether a copy has every file as it was, by its hash. Raises OSError where it cannot be read."""
    paths = ((directory / name, facts) for name, facts in files.items())
    return all(path.is_file() and _digest(path) == facts["sha256"] for path, facts in paths)


def has_tree(store: Store, key: str) -> bool:
    """Whether the store has all of a directory."""
    return store.get(f"{key}{TREE}") is not None


def trees_in(store: Store, prefix: str) -> list[str]:
    """Names of the directories that the store has all of, directly under a prefix that ends with /."""
    return [name.removesuffix(TREE) for name in store.look(prefix).entries if name.endswith(TREE)]


def drop_tree(store: Store, key: str) -> None:
    """Remove a directory and all directories under it, its manifest first."""
    store.delete([f"{key}{TREE}"])
    store.delete([entry.key for entry in store.look(f"{key}/", deep=True).entries.values()])


def _put(partial: Path, directory: Path) -> None:
    """In its place, unless another process of this node was quicker: its copy is as good."""
    try:
        partial.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise


def _key(key: str, name: str, digest: str) -> str:
    return f"{key}/{digest[:_PREFIX]}/{name}"


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield path.relative_to(directory).as_posix(), path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
