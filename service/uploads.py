"""Bytes of strangers -> a file of rows that is safe to keep: checked as it streams, refused by name at the first fault.

What is checked: sizes as sent and unpacked, the kind of file (by its first bytes, never by its name), the length of
lines, UTF-8, one JSON object a line. Memory is bounded by a line, whatever is sent.
"""

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.errors import Invalid, TooLarge, Unavailable

MAX_LINE = 8 * 1024 * 1024
"""Bytes of one row: about two million tokens."""

_COLUMNS_FROM = 100  # rows; the others may have more
_MAX_COLUMNS = 50
_UNPACK_STEP = 1 << 20
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive"),
    (b"PAR1", "a parquet file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"BZh", "a bzip2 file"),
)
_REMEDY = "upload JSON lines, plain or as .gz"


@dataclass(frozen=True, kw_only=True)
class Received:
    """A whole upload, checked."""

    path: Path
    """Where it waits; `Incoming.discard` removes it there."""
    sha256: str
    format: str
    """jsonl or jsonl.gz"""
    bytes: int
    unpacked_bytes: int
    rows: int
    columns: tuple[str, ...]


class Incoming:
    """One upload on its way in. Blocking; used by one request, off the event loop."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """`max_bytes`: of the file, as sent and as unpacked. Raises Unavailable (503): the folder cannot be written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix="incoming-", dir=folder)
        except OSError as error:
            raise _unwritable(error) from error
        self._file = os.fdopen(handle, "wb")
        self._path = Path(name)
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._head = b""
        self._sent = 0
        self._rows: _Rows = _Rows(max_bytes)
        self._unpack: _Gunzip | None = None
        self._known = False

    def feed(self, data: bytes) -> None:
        """The next bytes. Raises Invalid (422), TooLarge (413), Unavailable (503)."""
        self._sent += len(data)
        if self._sent > self._max_bytes:
            raise too_large(self._max_bytes, "as sent")
        self._hash.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise _unwritable(error) from error
        if not self._known:
            self._head += data
            if len(self._head) < 6:
                return
            data = self._recognise()
        self._pass_on(data)

    def finish(self) -> Received:
        """The end of the bytes. Raises as `feed`."""
        if not self._known:
            self._pass_on(self._recognise())
        if self._unpack is not None:
            self._unpack.finish()
        self._rows.finish()
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise _unwritable(error) from error
        return Received(
            path=self._path,
            sha256=self._hash.hexdigest(),
            format="jsonl" if self._unpack is None else "jsonl.gz",
            bytes=self._sent,
            unpacked_bytes=self._rows.bytes,
            rows=self._rows.count,
            columns=tuple(self._rows.columns),
        )

    def discard(self) -> None:
        """Leave nothing behind, unless the file was moved to its place."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _recognise(self) -> bytes:
        self._known = True
        for magic, what in _FOREIGN:
            if self._head.startswith(magic):
                raise Invalid(f"This is {what}: {_REMEDY}.", code="unknown_format", errors=[("/file", f"is {what}")])
        if self._head.startswith(_GZIP):
            self._unpack = _Gunzip()
        return self._head

    def _pass_on(self, data: bytes) -> None:
        if self._unpack is None:
            self._rows.feed(data)
            return
        for piece in self._unpack.feed(data):
            self._rows.feed(piece)


def too_large(limit: int, how: str) -> TooLarge:
    """413 of a data file."""
    return TooLarge(
        f"The file is larger than {limit} bytes {how}: split it, or raise SIMPO_MAX_DATASET_BYTES.",
        code="dataset_too_large",
        facts={"limit": limit},
    )


class _Rows:
    """Lines of JSON, looked at one by one."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self.count = 0
        self.columns: dict[str, None] = {}
        self._max_bytes = max_bytes
        self._line = 0
        self._tail = b""

    def feed(self, data: bytes) -> None:
        self.bytes += len(data)
        if self.bytes > self._max_bytes:
            raise too_large(self._max_bytes, "when unpacked")
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            self._look(line)
        if len(self._tail) > MAX_LINE:
            raise self._fault("line_too_long", f"is longer than {MAX_LINE} bytes")

    def finish(self) -> None:
        self._look(self._tail)
        if not self.count:
            raise Invalid(f"There is no row in it: {_REMEDY}.", code="no_rows", errors=[("/file", "holds no row")])

    def _look(self, line: bytes) -> None:
        if len(line) > MAX_LINE:
            raise self._fault("line_too_long", f"is longer than {MAX_LINE} bytes")
        if not self._line:
            line = line.removeprefix(_BOM)
        text = line.strip()
        if text:
            self._look_at_row(text)
        self._line += 1

    def _look_at_row(self, text: bytes) -> None:
        try:
            values = json.loads(text.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise self._fault("not_utf8", f"is not UTF-8 (byte {error.start + 1} of it)") from None
        except (ValueError, RecursionError) as error:
            raise self._fault("not_json", f"is not JSON ({str(error)[:120]})") from None
        if not isinstance(values, dict):
            raise self._fault("not_an_object", f"is a JSON {type(values).__name__}, not an object")
        self.count += 1
        if self.count <= _COLUMNS_FROM:
            for key in values:
                if len(self.columns) < _MAX_COLUMNS:
                    self.columns[key[:100]] = None

    def _fault(self, code: str, what: str) -> Invalid:
        where = f"line {self._line + 1} {what}"
        return Invalid(f"The file's {where}: {_REMEDY}, one object a line.", code=code, errors=[("/file", where)])


class _Gunzip:
    """Gzip members, unpacked in steps, so that a bomb goes off in small pieces and against a limit."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member.eof:
                data = data.lstrip(b"\0")  # tapes pad the end of a file, and gzip allows it
                if not data:
                    return
                self._member = zlib.decompressobj(wbits=31)
            try:
                yield self._member.decompress(data, _UNPACK_STEP)
            except zlib.error as error:
                raise self._broken(str(error)) from None
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail

    def finish(self) -> None:
        if not self._member.eof:
            raise self._broken("it breaks off")

    def _broken(self, why: str) -> Invalid:
        detail = f"The gzip file is damaged ({why[:100]}): compress it again."
        return Invalid(detail, code="broken_gzip", errors=[("/file", "is a damaged gzip file")])


def _unwritable(error: OSError) -> Unavailable:
    return Unavailable(f"The store cannot be written ({error.strerror}).", code="store_unwritable")
