"""The run directory of a sweep: paths, exclusive claims, numbered journal, heartbeat, atomic publication. Light.

    <root>/spec.json                        written once
    <root>/prepared/                        what a comparison has prepared for all its sweeps; absent elsewhere
    <root>/attempts/<n>/claim.json          made exclusively: the attempt's number is its fencing number
    <root>/attempts/<n>/journal/<seq>.jsonl segments named by their first record, append-only
    <root>/control/<seq>.json               edits of people, one a file, never changed (`sweeps.control`)
    <root>/attempts/<n>/reserve             space set aside for the last word on a full disk
    <root>/attempts/<n>/heartbeat.json      counter and counts; its age is measured by the reader's clock
    <root>/attempts/<n>/signals.json        what running trials heed: hold, stop, deadline (`sweeps.signals`)
    <root>/attempts/<n>/prepared/           what all trials share
    <root>/attempts/<n>/trials/<trial>/     checkpoints, manifest.json last
    <root>/attempts/<n>/result.json         published last: its presence is the attempt's success
    <store>/references/                     of <root> = <store>/sweeps/<id>: reference log-probabilities, for all sweeps

Ray jobs write here, the service reads here; neither ever opens the other's store. Every file appears whole: written
beside its place, flushed to disk, then renamed. Where its place is a `sweeps.remote.Remote`, this directory is one
node's working copy of one in an object store: what is published goes there first, and the store decides who claims.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from simpo.errors import SimPOError, StorageError
from sweeps.place import Here, Place

Level = Literal["info", "warn", "error"]


class Record(TypedDict):
    """One line of a journal. `seq` counts from 1 within an attempt; (attempt, seq) is unique in a sweep."""

    seq: int
    attempt: int
    at: str
    type: str
    level: Level
    message: str
    data: dict[str, Any]


class Heartbeat(TypedDict):
    """Proof of life: the reader notes when `counter` changed by its own clock, never by `at`."""

    attempt: int
    counter: int
    at: str
    counts: dict[str, Any]
    pid: NotRequired[int]


class RunDirError(SimPOError):
    """A run directory that is missing, holds another spec, or cannot be written."""


class UnwritableRunDir(RunDirError, StorageError):
    """A run directory that has no space left, or may not be written."""


class AttemptClaimed(SimPOError):
    """Another driver owns this attempt's number, or a higher one."""


RESERVE = "reserve"
RESERVE_BYTES = 64 * 1024
"""Space that an attempt keeps, so that it can say that there is none."""


class RunDir:
    """A sweep's directory. Making the object touches nothing."""

    def __init__(self, root: str | Path, place: Place | None = None) -> None:
        """place: what the directory is a working copy of (`sweeps.working_copy`); None: it is the thing itself."""
        self.root = Path(root).absolute()
        self.place: Place = place or Here(self.root)

    @property
    def spec_path(self) -> Path:
        """Where the immutable spec lies."""
        return self.root / "spec.json"

    @property
    def prepared(self) -> Path:
        """What somebody else has prepared for this sweep, if anybody did: a comparison, for all of its sweeps."""
        return self.root / "prepared"

    @property
    def references(self) -> Path:
        """Where reference log-probabilities are kept: one place for all sweeps of a store, which lie in its `sweeps/`.

        A run directory that lies elsewhere keeps its own.
        """
        siblings = self.root.parent
        return (siblings.parent if siblings.name == "sweeps" else self.root) / "references"

    @property
    def control(self) -> Path:
        """Where people's edits of a running sweep lie, each named by its number."""
        return self.root / "control"

    def add_edit(self, edit: Mapping[str, Any]) -> int:
        """Publish an edit under the lowest number above all others, whole and for good; returns that number."""
        text = json.dumps(edit, allow_nan=False)
        while True:
            self.refresh_edits()
            taken = [int(path.stem) for path in self.control.glob("*.json") if path.stem.isdecimal()]
            seq = max(taken, default=0) + 1
            with contextlib.suppress(FileExistsError):  # another writer was quicker
                self.publish(self.control / f"{seq:08d}.json", text, exclusive=True)
                return seq

    def put_edit(self, seq: int, edit: Mapping[str, Any]) -> None:
        """Publish an edit under a number given to it; the same again is fine, another one there is RunDirError."""
        path = self.control / f"{seq:08d}.json"
        try:
            self.publish(path, json.dumps(edit, allow_nan=False), exclusive=True)
        except FileExistsError:
            self.refresh_edits()
            if _read_json(path) != dict(edit):
                raise RunDirError(f"edit {seq} was made by somebody else: ask again", str(path)) from None

    def write_spec(self, spec: Mapping[str, Any]) -> None:
        """Write spec.json once; the same content again is fine, another is RunDirError."""
        if not self.spec_path.exists():
            with contextlib.suppress(FileExistsError):
                self.publish(self.spec_path, json.dumps(spec, indent=1), exclusive=True)
                return
            self.refresh()  # somebody else was quicker
        if self.read_spec() != dict(spec):
            raise RunDirError("holds the spec of another sweep: choose an empty directory", str(self.root))

    def read_spec(self) -> dict[str, Any]:
        """The stored spec's JSON. Raises RunDirError when there is none or it is not JSON."""
        try:
            values = json.loads(self.spec_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunDirError("has no readable spec.json: is it a sweep's directory?", str(self.root)) from error
        if not isinstance(values, dict):
            raise RunDirError("spec.json does not hold a mapping", str(self.root))
        return values

    def attempts(self) -> list["Attempt"]:
        """All claimed attempts, by rising number."""
        claims = self.root.glob("attempts/*/claim.json")
        numbers = sorted(int(path.parent.name) for path in claims if path.parent.name.isdecimal())
        return [Attempt(self, number) for number in numbers]

    def highest(self) -> int:
        """The highest claimed number, 0 before the first claim."""
        here = max((attempt.number for attempt in self.attempts()), default=0)
        with _told():
            return max(here, self.place.highest())

    def attempt(self, number: int) -> "Attempt":
        """An attempt to read from; whether it was claimed is not checked."""
        return Attempt(self, number)

    def claim(self, number: int) -> "Attempt":
        """Take an attempt's number for this process. Raises AttemptClaimed when it, or a higher one, is taken."""
        if number < 1:
            raise RunDirError("attempts count from 1", "attempt")
        highest = self.highest()
        if highest > number:
            raise AttemptClaimed(f"attempt {highest} has superseded attempt {number} in {self.root}", "attempt")
        attempt = Attempt(self, number)
        owner = {"attempt": number, "host": socket.gethostname(), "pid": os.getpid(), "at": _now()}
        owner["token"] = secrets.token_hex(8)  # no two claims are the same bytes
        try:
            self.publish(attempt.path / "claim.json", json.dumps(owner), exclusive=True)
        except FileExistsError as error:
            raise AttemptClaimed(
                f"attempt {number} of {self.root} belongs to another driver: resume with a higher number", "attempt"
            ) from error
        if self.place.remote:
            self._check_refusal(attempt)
        with _told():
            Here(self.root).publish(attempt.path / RESERVE, " " * RESERVE_BYTES)
        return attempt

    def claim_next(self) -> "Attempt":
        """Take the lowest number above all claims."""
        return self.claim(self.highest() + 1)

    def publish(self, path: Path, text: str, *, exclusive: bool = False, durable: bool = True) -> None:
        """All of the text or nothing at `path`; of a working copy in the object store first.

        Raises FileExistsError when exclusive and there; UnwritableRunDir on no space, no permission, no store.
        """
        with _told():
            self.place.publish(path, text, exclusive=exclusive, durable=durable)

    def refresh(self) -> None:
        """See that every text of anybody's is here. Raises UnwritableRunDir."""
        with _told():
            self.place.refresh()

    def refresh_edits(self) -> None:
        """See that every edit is here. Raises UnwritableRunDir."""
        with _told():
            self.place.refresh_edits()

    def _check_refusal(self, attempt: "Attempt") -> None:
        """See that the store refuses a second claim: with one that does not, two drivers of an attempt would run."""
        try:
            self.publish(attempt.path / "claim.json", "{}", exclusive=True)
        except FileExistsError:
            return
        raise RunDirError("ignores If-None-Match on PutObject, so nothing can be claimed in it", self.place.uri)


class Attempt:
    """One driver's part of a run directory. Appending is for its owner; reading is for everyone."""

    def __init__(self, run: RunDir, number: int) -> None:
        self.run = run
        self.number = number
        self.path = run.root / "attempts" / str(number)
        self.listeners: list[Callable[[Record], None]] = []
        """Called with each record once it is on disk, in the appending thread."""
        self.broken: StorageError | None = None
        """Set when the directory could not be written: nothing is appended from then on but the last word."""
        self._seq = 0
        self._beats = 0
        self._lock = threading.Lock()

    @property
    def prepared(self) -> Path:
        """What all trials share."""
        return self.path / "prepared"

    def trial_path(self, trial_id: str) -> Path:
        """Where a trial's checkpoints lie."""
        return self.path / "trials" / trial_id

    @property
    def signals(self) -> Path:
        """What running trials heed; absent until somebody interferes."""
        return self.path / "signals.json"

    def signal(self, signals: Mapping[str, Any]) -> None:
        """Replace what running trials heed."""
        self.run.publish(self.signals, json.dumps(signals, allow_nan=False), durable=False)

    def relative(self, path: str | Path) -> str:
        """A path as results name it: relative to the run directory."""
        return Path(path).relative_to(self.run.root).as_posix()

    def append(
        self, kind: str, message: str, data: Mapping[str, Any] | None = None, *, level: Level = "info"
    ) -> Record:
        """Add one record, on disk when this returns. From any thread of the owner."""
        return self.append_many([(kind, message, dict(data or {}), level)])[0]

    def append_many(self, entries: Iterable[tuple[str, str, dict[str, Any], Level]]) -> list[Record]:
        """Add records as one segment: readers see all of them or none."""
        with self._lock:
            self.check()
            records = [
                Record(seq=seq, attempt=self.number, at=_now(), type=kind, level=level, message=message, data=data)
                for seq, (kind, message, data, level) in enumerate(entries, self._seq + 1)
            ]
            if records:
                # allow_nan=False: NaN is no JSON; a number that is not finite must be told in words.
                text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
                try:
                    self.run.publish(self.path / "journal" / f"{records[0]['seq']:08d}.jsonl", text, exclusive=True)
                except StorageError as error:
                    self.broken = error  # a library may swallow this one; whoever waits calls `check`
                    raise
                self._seq = records[-1]["seq"]
        for record in records:
            for listener in self.listeners:
                listener(record)
        return records

    def check(self) -> None:
        """Raise what `broken` holds, if anything."""
        if self.broken is not None:
            raise self.broken

    def last_word(self, kind: str, message: str, data: Mapping[str, Any], *, level: Level) -> None:
        """Append the record that closes the attempt, on a full disk too: some space was set aside for it.

        Raises UnwritableRunDir where even that was not enough.
        """
        (self.path / RESERVE).unlink(missing_ok=True)
        self.broken = None
        self.append(kind, message, data, level=level)

    def beat(self, counts: Mapping[str, Any]) -> None:
        """Replace the heartbeat with the next one."""
        self._beats += 1
        beat = Heartbeat(attempt=self.number, counter=self._beats, at=_now(), counts=dict(counts), pid=os.getpid())
        self.run.publish(self.path / "heartbeat.json", json.dumps(beat, allow_nan=False), durable=False)

    def superseded(self) -> bool:
        """Whether a higher attempt was claimed: this one must stop."""
        return self.run.highest() > self.number

    def publish_result(self, result: Mapping[str, Any]) -> None:
        """Make the attempt a success, once. Raises AttemptClaimed when it was superseded or has a result."""
        if self.superseded():
            raise AttemptClaimed(f"attempt {self.number} was superseded: its result is not accepted", "attempt")
        (self.path / RESERVE).unlink(missing_ok=True)
        try:
            text = json.dumps(result, indent=1, allow_nan=False)
            self.run.publish(self.path / "result.json", text, exclusive=True)
        except FileExistsError as error:
            raise AttemptClaimed(f"attempt {self.number} has a result already", "attempt") from error


def read_journal(attempt: Attempt, after_seq: int = 0, most: int | None = None) -> list[Record]:
    """The unbroken run of records after `after_seq`, the first `most` of them; a torn or missing tail ends it.

    Cheap to call again and again.
    """
    folder = attempt.path / "journal"
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except FileNotFoundError:
        return []
    segments = sorted(int(name[:-6]) for name in names if name.endswith(".jsonl") and name[:-6].isdecimal())
    # The segment that holds after_seq + 1 is the last one that starts at or before it.
    first = max(bisect_right(segments, after_seq + 1) - 1, 0)
    records: list[Record] = []
    for path in (folder / f"{segment:08d}.jsonl" for segment in segments[first:]):
        if most is not None and len(records) >= most:
            return records[:most]
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            record = _parsed(line)
            if record is None:
                return records
            if record["seq"] <= after_seq:
                continue
            if record["seq"] != after_seq + len(records) + 1:
                return records
            records.append(record)
    return records[:most]


def read_heartbeat(attempt: Attempt) -> Heartbeat | None:
    """The newest heartbeat, or None before the first."""
    beat: Heartbeat | None = _read_json(attempt.path / "heartbeat.json")
    return beat


def read_result(attempt: Attempt) -> dict[str, Any] | None:
    """The published result, or None: only its presence says that the attempt succeeded."""
    result: dict[str, Any] | None = _read_json(attempt.path / "result.json")
    return result


def last_result(run: RunDir) -> dict[str, Any] | None:
    """The result of the newest attempt that has published one."""
    results = (read_result(attempt) for attempt in reversed(run.attempts()))
    return next((result for result in results if result is not None), None)


def _parsed(line: str) -> Record | None:
    try:
        record: Record = json.loads(line)
        return record if isinstance(record, dict) and isinstance(record.get("seq"), int) else None
    except ValueError:
        return None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Trouble with disk or store as trouble with the run directory."""
    try:
        yield
    except RunDirError:
        raise
    except StorageError as error:
        raise UnwritableRunDir(error.message, error.field) from error
