"""Copies of checkpoints in an object store, for whoever reads them on a node: fetched once, verified, bounded. Light.

    ROOT/lock        held while room is made
    ROOT/ID.lock     shared by those who use a copy, exclusive for who fetches or removes it; goes with its process
    ROOT/ID.json     what the copy holds, {name: {sha256, size}}: from here on its room is taken
    ROOT/ID/         the copy, whole

ID follows from the checkpoint's URI, s3://BUCKET/PREFIX/KEY. What lies there never changes: a sweep writes a checkpoint
once. A copy is verified at each use, since a node that loses power may keep a name without its contents.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from simpo.errors import CheckpointError, StorageError
from sweeps.store import S3, Store, StoreUnavailable, open_store, write_whole
from sweeps.trees import Files, holds_files, parse_files, pull_files, tree_files
from sweeps.working_copy import own_folder

log = logging.getLogger(__name__)

MAX_BYTES = 20 << 30
"""Of all copies on a node."""
PATIENCE_S = 120.0
"""For a store that is away: who waits for the checkpoint gets no second chance soon."""
_AGAIN_S = 5.0
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A whole checkpoint on this node, which nobody removes before it is closed."""

    path: Path
    """Its directory. To be read alone."""
    lock: IO[bytes]

    def close(self) -> None:
        """From now on it may go. So it may when the process ends."""
        self.lock.close()


class CheckpointCache:
    """One directory of copies, which any number of processes share. All methods may be called from any thread."""

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        patience_s: float = PATIENCE_S,
        open_store: Callable[[str], Store] = open_store,
    ) -> None:
        """Describe it.

        Args:
            root: the directory; None: one of this user's under the temporary directory.
            max_bytes: of all copies; what was used longest ago goes first, what is in use stays.
            patience_s: so long a store that is away is asked again.
            open_store: for tests.
        """
        self._root = None if root is None else Path(root)
        self._max_bytes = max_bytes
        self._patience_s = patience_s
        self._open_store = open_store

    def hold(self, uri: str) -> Copy:
        """A copy of the checkpoint s3://BUCKET/KEY. Whoever comes while another fetches it waits for that one's.

        Raises:
            CheckpointError: the store has none there, or a damaged one.
            StorageError: the store is away (StoreUnavailable), or there is no room.
            ConfigError: no such URI.
        """
        copy = own_folder(self._root, "simpo-models", "the cache of checkpoints") / _id(uri)
        lock = _lock_of(copy).open("ab")
        try:
            self._share(uri, copy, lock)
        except BaseException:
            lock.close()
            raise
        os.utime(_lock_of(copy))
        return Copy(path=copy, lock=lock)

    def _share(self, uri: str, copy: Path, lock: IO[bytes]) -> None:
        """Returns with the lock shared, and the copy there and verified."""
        until = time.monotonic() + self._patience_s
        fetched = False
        while True:
            fcntl.flock(lock, fcntl.LOCK_SH)  # waits for who fetches it
            if copy.is_dir() and (fetched or _is_whole(copy)):
                return
            try:
                # Only tried: of two that find none one fetches it, and then has it in use for as long as it lives.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                damaged = copy.is_dir()
                if damaged and time.monotonic() > until:
                    raise CheckpointError(f"{copy} is damaged and in use: end the process that has it open") from None
                time.sleep(min(_AGAIN_S, self._patience_s) if damaged else _POLL_S)
            else:
                _remove(copy)
                self._fetch(uri, copy)
                fetched = True

    def _fetch(self, uri: str, copy: Path) -> None:
        until = time.monotonic() + self._patience_s
        while True:
            try:
                self._fetch_once(uri, copy)
            except StoreUnavailable as error:
                if time.monotonic() + _AGAIN_S > until:
                    raise
                log.warning("%s is waited for: %s", uri, error)
                time.sleep(_AGAIN_S)
            else:
                return

    def _fetch_once(self, uri: str, copy: Path) -> None:
        bucket, _, key = uri.removeprefix(S3).partition("/")
        store = self._open_store(S3 + bucket)
        files, tree, part = _find(store, key)
        own = {name.removeprefix(part): facts for name, facts in files.items() if name.startswith(part)}
        if not own:
            raise CheckpointError(f"{uri}: the store has no such checkpoint, or not any more: choose another one")
        self._take_room(copy, own)
        try:
            pull_files(store, tree, files, copy, part=part)
        except BaseException:
            _record_of(copy).unlink(missing_ok=True)
            raise

    def _take_room(self, copy: Path, files: Files) -> None:
        """Note what comes, once the copies that were used longest ago have made room."""
        room = self._max_bytes - _size(files)
        with (copy.parent / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            others = [path.with_suffix("") for path in copy.parent.glob("*.json") if path != _record_of(copy)]
            taken = {other: _size(_files(other)) for other in sorted(others, key=_used_at)}
            for other in list(taken):
                with _alone(other) as free:
                    if free and (sum(taken.values()) > room or not other.is_dir()):
                        _remove(other)
                        del taken[other]
            if sum(taken.values()) > room:
                used = f"of the {_gib(self._max_bytes)} for copies {_gib(sum(taken.values()))} are in use on this node"
                remedy = "raise SIMPO_MODEL_CACHE_BYTES, or serve less"
                message = f"a checkpoint of {_gib(_size(files))} has no room: {used}: {remedy}"
                raise StorageError(message, str(copy.parent))
            write_whole(_record_of(copy), json.dumps(files).encode())


def _id(uri: str) -> str:
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


def _find(store: Store, key: str) -> tuple[Files, str, str]:
    """(files, key of the directory in the store, folder in that): a base made for a sweep lies within another one."""
    files = tree_files(store, key)
    if files is not None:
        return files, key, ""
    above, _, name = key.rpartition("/")
    return (above and tree_files(store, above)) or {}, above, f"{name}/"


def _lock_of(copy: Path) -> Path:
    return copy.with_suffix(".lock")


def _record_of(copy: Path) -> Path:
    return copy.with_suffix(".json")


def _files(copy: Path) -> Files:
    """What the copy should hold; {} where nobody knows."""
    try:
        return parse_files(_record_of(copy).read_bytes())
    except (OSError, ValueError):
        return {}


def _is_whole(copy: Path) -> bool:
    files = _files(copy)
    try:
        return bool(files) and copy.is_dir() and holds_files(copy, files)
    except OSError:
        return False


def _size(files: Files) -> int:
    return sum(int(facts["size"]) for facts in files.values())


def _used_at(copy: Path) -> float:
    try:
        return _lock_of(copy).stat().st_mtime
    except OSError:
        return 0.0


@contextmanager
def _alone(copy: Path) -> Iterator[bool]:
    """Whether nobody else has the copy; if so, nobody gets it meanwhile."""
    with _lock_of(copy).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _remove(copy: Path) -> None:
    """With what fetches that were killed have left. Its lock stays: others may have it open."""
    for path in (copy, *copy.parent.glob(f".{copy.name}.*")):
        shutil.rmtree(path, ignore_errors=True)
    _record_of(copy).unlink(missing_ok=True)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
