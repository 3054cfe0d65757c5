"""Where run directories outlive the machine that writes them: a few verbs, for a directory and an object store. Light.

What a store promises, and `tests/sweeps/store_contract.py` asks of each kind:
    a key appears whole or not at all, whoever is killed meanwhile;
    of all who `put_new` one key, exactly one wins, and the store itself refuses the others;
    what was put is what `get` and `look` answer from then on, also to others;
    trouble that may pass is tried again a bounded number of times, then told as StoreUnavailable.
"""

import contextlib
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from simpo.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from sweeps.store_s3 import S3Store

S3 = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class StoreUnavailable(StorageError):
    """A store that does not answer, or does not let us in: nobody's spec is wrong, and later it may go."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One key of a store."""

    key: str
    """Relative to the store's root."""
    etag: str
    """Changes whenever the content does."""
    size: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What lies directly under a prefix."""

    entries: dict[str, Entry] = field(default_factory=dict)
    """By what follows the prefix in their keys, in order."""
    folders: list[str] = field(default_factory=list)
    """Names of further prefixes, without the slash."""


class Store(Protocol):
    """Keys are plain relative paths with / between names. All methods raise StoreUnavailable."""

    uri: str
    """How people name it. Holds no secret."""

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """Make or replace a key. durable=False: it may be lost with the machine (a heartbeat)."""

    def put_new(self, key: str, data: bytes) -> None:
        """Make a key that nobody has made. Raises FileExistsError."""

    def get(self, key: str) -> bytes | None:
        """Its content, or None."""

    def look(self, prefix: str, *, after: str = "", deep: bool = False) -> Look:
        """What lies under a prefix that is empty or ends with /, past the name `after`. deep: with all below it."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove keys; those that are not there are fine."""

    def put_file(self, key: str, path: Path) -> None:
        """Make or replace a key of any size from a file."""

    def get_file(self, key: str, path: Path) -> bool:
        """Write its content to `path`, which is no one else's yet; False where there is no such key."""


class DirectoryStore:
    """A directory of a file system with atomic rename and hard links."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = str(self.root)

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """Written beside its place, then renamed."""
        write_whole(self._path(key), data, durable=durable)

    def put_new(self, key: str, data: bytes) -> None:
        """Written beside its place, then linked."""
        write_whole(self._path(key), data, exclusive=True)

    def get(self, key: str) -> bytes | None:
        """Its content, or None."""
        with _told(key, "read"):
            try:
                return self._path(key).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def look(self, prefix: str, *, after: str = "", deep: bool = False) -> Look:
        """What begins with a dot is being written."""
        base = self._path(prefix) if prefix else self.root
        entries, folders = {}, []
        with _told(prefix, "listed"):
            for path in sorted(base.rglob("*") if deep else base.iterdir()) if base.is_dir() else ():
                name = path.relative_to(base).as_posix()
                if any(part.startswith(".") for part in name.split("/")) or name <= after:
                    continue
                with contextlib.suppress(FileNotFoundError):  # it was replaced or removed meanwhile
                    if path.is_dir():
                        folders += [] if deep else [name]
                        continue
                    facts = path.stat()
                    etag = f"{facts.st_ino:x}-{facts.st_mtime_ns:x}-{facts.st_size:x}"
                    entries[name] = Entry(key=prefix + name, etag=etag, size=facts.st_size)
        return Look(entries=dict(sorted(entries.items())), folders=folders)

    def delete(self, keys: Iterable[str]) -> None:
        """Folders that are left empty stay."""
        for key in keys:
            with _told(key, "removed"):
                self._path(key).unlink(missing_ok=True)

    def put_file(self, key: str, path: Path) -> None:
        """Copied beside its place, then renamed."""
        target = self._path(key)
        with _told(key, "written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _beside(target) as temporary:
                shutil.copyfile(path, temporary)
                _sync(temporary)
                temporary.replace(target)
            _sync(target.parent)

    def get_file(self, key: str, path: Path) -> bool:
        """A copy."""
        with _told(key, "read"):
            try:
                shutil.copyfile(self._path(key), path)
            except FileNotFoundError:
                return False
        return True

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)


def open_store(where: str | Path) -> Store:
    """A store by its name: a directory, or s3://BUCKET/PREFIX. Raises ConfigError for anything else."""
    if not str(where).startswith(S3):
        if re.match(r"[a-z][a-z0-9+.-]*://", str(where)):
            raise ConfigError("must be a directory or s3://BUCKET/PREFIX", "store")
        return DirectoryStore(Path(where))
    return s3_store(str(where))


def s3_store(uri: str, **how: Any) -> "S3Store":
    """One by s3://BUCKET/PREFIX; `how`: as `S3Store.of`. Raises ConfigError, also where boto3 is not installed."""
    try:
        from sweeps.store_s3 import S3Store  # noqa: PLC0415  # lazy: boto3 is an extra, and takes half a second
    except ImportError as error:
        raise ConfigError(f"needs the extra s3, pip install 'simpo[s3]' ({error})", "store") from error
    return S3Store.of(uri, **how)


def parse_uri(uri: str) -> tuple[str, str]:
    """(bucket, prefix) of s3://BUCKET/PREFIX. Raises ConfigError; the message does not repeat what may be a secret."""
    bucket, _, prefix = uri.removeprefix(S3).strip("/").partition("/")
    if not uri.startswith(S3) or not _BUCKET.fullmatch(bucket) or any(sign in prefix for sign in "?#@"):
        raise ConfigError("must be s3://BUCKET/PREFIX: keys and endpoint come from the environment (AWS_...)", "store")
    return bucket, checked_key(prefix) if prefix else ""


def checked_key(key: str) -> str:
    """The key, where it is a plain relative path. Raises ConfigError."""
    parts = key.removesuffix("/").split("/")
    if "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"{key!r} is no plain relative path", "key")
    return key


def write_whole(path: Path, data: bytes, *, exclusive: bool = False, durable: bool = True) -> None:
    """All of the bytes or nothing at `path`.

    Raises FileExistsError when exclusive and there; StoreUnavailable on no space, no permission and the like.
    """
    taken = False
    with _told(str(path), "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _beside(path) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            try:
                os.link(temporary, path) if exclusive else temporary.replace(path)  # link refuses what exists
            except FileExistsError:
                taken = True
        if durable:
            _sync(path.parent)
    if taken:
        raise FileExistsError(str(path))


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name of our own next to a path, gone at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def _told(what: str, how: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"cannot be {how} ({error.strerror}): check space and permissions"
        raise StoreUnavailable(message, what) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
