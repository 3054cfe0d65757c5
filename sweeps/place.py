"""What lies behind a run directory: nothing but itself, or an object store (`sweeps.remote`). Light."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from sweeps.store import write_whole


class Place(Protocol):
    """Paths are those of the run directory, which is where everything is read. Methods raise StorageError."""

    uri: str
    """How people name the run directory."""
    beat_s: float
    """Seconds between two beats of a driver, and two looks for a successor and for edits."""
    remote: bool
    """Whether other nodes have other copies of the directory, so that what they need must be put and fetched."""

    def publish(self, path: Path, text: str, *, exclusive: bool = False, durable: bool = True) -> None:
        """All of a text or nothing. Raises FileExistsError where it is exclusive and there."""

    def refresh(self) -> None:
        """See that every text is here that anybody has published."""

    def refresh_edits(self) -> None:
        """The same for people's edits alone."""

    def refresh_attempt(self, number: int) -> None:
        """The same for one attempt: journal, heartbeat, result."""

    def highest(self) -> int:
        """The highest claimed attempt that is not to be seen in the directory."""

    def looking(self, path: Path) -> Callable[[], None]:
        """A cheap call that brings one text up to date now and then, and never fails."""

    def push(self, directory: Path) -> None:
        """Publish a finished directory."""

    def pull(self, directory: Path) -> bool:
        """See that a directory is here; False: nobody has it. Raises CheckpointError where it is damaged."""

    def pull_prepared(self, directory: Path) -> bool:
        """The same for what an attempt has prepared, which counts once it is sealed."""

    def pull_newest(self, places: Iterable[str | Path], prefix: str) -> list[tuple[str, str]]:
        """See that the last one by name of the directories in `places` that begin so is here.

        The answer: (path, reason) of those that are damaged and were passed over for an older one.
        """

    def holds(self, directory: Path) -> bool:
        """Whether all of a directory can be had."""

    def folders(self, directory: Path) -> list[Path]:
        """What directories are in it."""

    def drop(self, directory: Path) -> None:
        """Remove a directory; what cannot be removed only costs space."""

    def clear(self) -> None:
        """Remove the run directory."""


class Here:
    """The directory itself, which all nodes see: everything is here already."""

    beat_s = 1.0
    remote = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def publish(self, path: Path, text: str, *, exclusive: bool = False, durable: bool = True) -> None:
        """Written beside its place, then renamed or linked."""
        write_whole(path, text.encode(), exclusive=exclusive, durable=durable)

    def refresh(self) -> None:
        """Nothing to do."""

    def refresh_edits(self) -> None:
        """Nothing to do."""

    def refresh_attempt(self, number: int) -> None:
        """Nothing to do."""

    def highest(self) -> int:
        """All are to be seen."""
        return 0

    def looking(self, path: Path) -> Callable[[], None]:
        """Nothing to do."""
        return lambda: None

    def push(self, directory: Path) -> None:
        """Nothing to do."""

    def pull(self, directory: Path) -> bool:
        """Whether it is there."""
        return directory.is_dir()

    def pull_prepared(self, directory: Path) -> bool:
        """Whether it is there; its seal is the reader's affair."""
        return directory.is_dir()

    def pull_newest(self, places: Iterable[str | Path], prefix: str) -> list[tuple[str, str]]:
        """Nothing to do: whoever reads them finds out which are damaged."""
        return []

    def holds(self, directory: Path) -> bool:
        """Whether it is there."""
        return directory.is_dir()

    def folders(self, directory: Path) -> list[Path]:
        """Those that are there."""
        return sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []

    def drop(self, directory: Path) -> None:
        """As far as it can be removed."""
        shutil.rmtree(directory, ignore_errors=True)

    def clear(self) -> None:
        """As far as it can be removed."""
        self.drop(self.root)
