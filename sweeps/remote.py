"""A run directory in an object store, and one node's working copy of it. Light.

The store is the truth. Whoever works on a sweep - its driver, the trials on other nodes, people, the service - has a
working copy in an ordinary directory and reads there; this class brings over what a reader has not yet, and puts into
the store what must survive, before the copy has it:

    texts    spec, claims, edits, journals, heartbeat, signals, result: under the same names as in a directory
    trees    prepared/, checkpoints, mixtures: manifest last, verified on arrival (`sweeps.trees`)

What is only of use on the spot stays there: Tune's files, references, what was half-written. A copy may be deleted
whenever nobody works in it.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from simpo.errors import CheckpointError, StorageError
from sweeps.store import Store, write_whole
from sweeps.trees import drop_tree, has_tree, pull_tree, push_tree, trees_in

LOOK_S = 2.0
"""Least time between two looks of a running trial at its signals in the store."""
_SEALED = "prepared.json"


class Remote:
    """A `sweeps.place.Place`: the store's side of one run directory. From any thread."""

    beat_s = 3.0
    """Three requests a beat."""
    remote = True

    def __init__(self, store: Store, root: Path) -> None:
        self.store = store
        self.root = root
        self.uri = store.uri
        self._etags: dict[str, str] = {}

    def publish(self, path: Path, text: str, *, exclusive: bool = False, durable: bool = True) -> None:
        """In the store first, which decides who is first."""
        data = text.encode()
        if exclusive:
            self.store.put_new(self._key(path), data)
        else:
            self.store.put(self._key(path), data, durable=durable)
        with contextlib.suppress(StorageError):  # the store has it; that our disk is full shows at the next checkpoint
            write_whole(path, data, durable=False)

    def refresh(self) -> None:
        """Bring over every text that this copy has not: spec, claims, edits, journals, heartbeats, results.

        A copy of what the store no longer holds, or holds otherwise, is of a directory that somebody removed: it goes.
        """
        spec = self.store.get("spec.json")
        if spec is None:
            shutil.rmtree(self.root, ignore_errors=True)
            return
        write_whole(self.root / "spec.json", spec, durable=False)
        self.refresh_edits()
        there = self._claimed()
        local = self.root / "attempts"
        for number in [path.name for path in local.iterdir()] if local.is_dir() else []:
            if number not in there:
                shutil.rmtree(local / number, ignore_errors=True)
        for number in there:
            self._refresh_attempt(number, whole=True)

    def refresh_edits(self) -> None:
        """Bring over people's edits."""
        self._pull_missing("control/")

    def refresh_attempt(self, number: int) -> None:
        """Bring over what is new of one attempt. By ETag: what has not changed is not read again."""
        self._refresh_attempt(str(number), whole=False)

    def highest(self) -> int:
        """The highest claimed attempt, 0 before the first: nothing of an attempt is written before its claim."""
        return max((int(number) for number in self._claimed()), default=0)

    def looking(self, path: Path, clock: Callable[[], float] = time.monotonic) -> Callable[[], None]:
        """A cheap call that brings a text over now and then; trouble with the store leaves things as they are."""
        looked = float("-inf")

        def look() -> None:
            nonlocal looked
            if clock() - looked >= LOOK_S:
                looked = clock()
                with contextlib.suppress(StorageError):
                    entry = self.store.look(f"{self._key(path.parent)}/").entries.get(path.name)
                    if entry is not None:
                        self._pull_changed(entry.key, entry.etag)

        return look

    def push(self, directory: Path) -> None:
        """Put a finished directory of the working copy into the store. Raises StorageError."""
        push_tree(self.store, self._key(directory), directory)

    def pull(self, directory: Path) -> bool:
        """See that a directory of the working copy is there; False: the store has none. Raises CheckpointError."""
        return pull_tree(self.store, self._key(directory), directory)

    def holds(self, directory: Path) -> bool:
        """Whether the store has all of a directory: what is here alone may be of a push that failed."""
        return has_tree(self.store, self._key(directory))

    def pull_prepared(self, directory: Path) -> bool:
        """`prepared/` of an attempt: what is here without its seal was never finished."""
        if not (directory / _SEALED).exists():
            if not self.holds(directory):
                return False  # nor is what lies here anybody's
            shutil.rmtree(directory, ignore_errors=True)
        return self.pull(directory)

    def pull_newest(self, places: Iterable[str | Path], prefix: str) -> list[tuple[str, str]]:
        """Of the directories in `places` whose names begin so, see that the last one by name is here.

        One that is damaged in the store is told as (path, reason), and the next older one taken.
        """
        found = [
            Path(place) / name
            for place in places
            for name in trees_in(self.store, f"{self._key(Path(place))}/")
            if name.startswith(prefix)
        ]
        damaged = []
        for path in sorted(found, key=lambda each: each.name, reverse=True):
            try:
                self.pull(path)
                break
            except CheckpointError as error:
                damaged.append((str(path), str(error)))
        return damaged

    def folders(self, directory: Path) -> list[Path]:
        """What lies in a directory of the store."""
        return [directory / name for name in self.store.look(f"{self._key(directory)}/").folders]

    def drop(self, directory: Path) -> None:
        """From both; a copy on another node stays, and nobody reads it."""
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(StorageError):
            drop_tree(self.store, self._key(directory))

    def clear(self) -> None:
        """What is ours under the prefix, which may be shared."""
        shutil.rmtree(self.root, ignore_errors=True)
        with contextlib.suppress(StorageError):
            for folder in ("attempts", "control"):
                drop_tree(self.store, folder)
            self.store.delete(["spec.json"])

    def _refresh_attempt(self, number: str, *, whole: bool) -> None:
        prefix = f"attempts/{number}/"
        there = self.store.look(prefix)
        for name in ("claim.json", "heartbeat.json", "result.json"):
            if name in there.entries:
                self._pull_changed(prefix + name, there.entries[name].etag)
        if "journal" in there.folders:
            self._pull_missing(prefix + "journal/", growing=not whole)

    def _claimed(self) -> list[str]:
        return [name for name in self.store.look("attempts/").folders if name.isdecimal()]

    def _pull_missing(self, prefix: str, *, growing: bool = False) -> None:
        """Texts that are never changed. growing: there are none but these and later ones, so only those are listed."""
        local = self.root / prefix
        names = [path.name for path in local.iterdir() if not path.name.startswith(".")] if local.is_dir() else []
        last = max(names, default="") if growing else ""
        for name, entry in self.store.look(prefix, after=last).entries.items():
            if name not in names and (data := self.store.get(entry.key)) is not None:
                write_whole(local / name, data, durable=False)

    def _pull_changed(self, key: str, etag: str) -> None:
        path = self.root / key
        if self._etags.get(key) == etag and path.exists():
            return
        data = self.store.get(key)
        if data is None:
            return
        if path.name == "claim.json" and path.exists() and path.read_bytes() != data:
            shutil.rmtree(path.parent, ignore_errors=True)  # of another sweep that had this name
        write_whole(path, data, durable=False)
        self._etags[key] = etag

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()
