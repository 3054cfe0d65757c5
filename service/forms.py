"""A file on its way in over HTTP: as the body itself, or as one part of a form; never kept whole."""

from collections.abc import AsyncIterator, Collection

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from service.errors import Invalid, ServiceError, UnsupportedType, invalid

PLAIN_TYPES = (
    *("application/jsonl", "application/x-ndjson", "application/jsonlines", "application/gzip", "application/x-gzip"),
    "application/octet-stream",
)
"""Content types of a body that is the file itself."""

_MAX_FIELD = 1024
_STEP = 1 << 20  # bytes that are handed on at once: a thread is asked for each


class FileBody:
    """The file of one request, to be read once. `filename` and `fields` are whole after the last chunk."""

    def __init__(self, request: Request, *, fields: Collection[str]) -> None:
        """`fields`: names of the form's other fields. Raises UnsupportedType (415)."""
        self.filename: str | None = None
        self.fields: dict[str, str] = {}
        self._request = request
        self._known = fields
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise UnsupportedType(f"Content-Encoding {encoding[:40]!r} is not undone here: send the file as it is.")
        kind, options = parse_options_header(request.headers.get("content-type"))
        self._boundary = options.get(b"boundary") if kind == b"multipart/form-data" else None
        if self._boundary is None and kind.decode("latin-1") not in PLAIN_TYPES:
            kinds = ", ".join(PLAIN_TYPES)
            raise UnsupportedType(f"Send a part `file` of multipart/form-data, or the file as body, one of {kinds}.")

    @property
    def form(self) -> bool:
        """Whether it comes as a form."""
        return self._boundary is not None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file's bytes. Raises Invalid (422) for a form that is not understood, ServiceError (400) when cut off."""
        parts = _Parts(self._boundary, self._known) if self._boundary is not None else None
        waiting = bytearray()
        try:
            async for data in self._request.stream():
                waiting += data if parts is None else parts.feed(data)
                if len(waiting) >= _STEP:
                    yield bytes(waiting)
                    waiting.clear()
        except ClientDisconnect as error:
            raise CutOff("The upload broke off.") from error
        if waiting:
            yield bytes(waiting)
        if parts is not None:
            parts.finish()
            self.filename, self.fields = parts.filename, parts.fields


class CutOff(ServiceError):
    """The client went away: nobody reads this answer, the log does."""

    status, code = 400, "upload_cut_off"


class _Parts:
    """The form's parser: bytes of the part `file` come out of `feed`, small fields are kept."""

    def __init__(self, boundary: bytes, known: Collection[str]) -> None:
        self.filename: str | None = None
        self.fields: dict[str, str] = {}
        self._known = known
        self._out = bytearray()
        self._header, self._headers = [bytearray(), bytearray()], dict[bytes, bytes]()
        self._field: str | None = None
        self._value = bytearray()
        self._files = 0
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin,
                "on_part_data": self._take,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> bytes:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(str(error)[:100]) from None
        taken = bytes(self._out)
        self._out.clear()
        return taken

    def finish(self) -> None:
        if not self._ended:
            raise _malformed("it breaks off")
        if not self._files:
            raise invalid([("/file", "is required: the part that holds the rows")])

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        self._header = [bytearray(), bytearray()]

    def _begin(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        self._value.clear()
        if name == "file":
            self._files += 1
            if self._files > 1:
                raise invalid([("/file", "is given twice: send one file a request")])
            self._field = None
            self.filename = options.get(b"filename", b"").decode("utf-8", "replace") or None
            return
        if name not in self._known:
            raise invalid([(f"/{name[:60]}", "unknown: not one that is understood here")])
        if name in self.fields:
            raise invalid([(f"/{name}", "is given twice")])
        self._field = name

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._out += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD:
            raise invalid([(f"/{self._field}", f"is longer than {_MAX_FIELD} bytes")])

    def _end_part(self) -> None:
        if self._field is not None:
            self.fields[self._field] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._ended = True


def _malformed(why: str) -> Invalid:
    return Invalid(f"The form is malformed ({why}).", code="malformed_form", errors=[("", f"is no whole form: {why}")])
