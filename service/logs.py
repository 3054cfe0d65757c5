"""Log lines: JSON for programs, text for a person at a terminal; each with its request, none with a secret.

Nothing that somebody sent can end a line or begin another one: JSON escapes it, and so does the text form.
"""

import json
import logging
import re
import secrets
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from service.clock import rfc3339
from service.settings import Settings

FIELDS = "fields"
"""`log.info(..., extra={FIELDS: {...}})`: facts of a line beside its words."""
_HIDDEN = "***"
_SECRETS = re.compile(
    r"\bsk-[\w-]{6,}"  # our keys (sk-simpo-) and OpenAI's
    r"|\bwhsec_[\w+/=-]+"  # of webhooks
    r"|\bhf_\w{6,}"  # Hugging Face
    r"|\b(?:ghp|gho|ghs|github_pat|xox[abp])[_-][\w-]{6,}|\bAKIA[0-9A-Z]{12,}"
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]*"  # signed tokens
)
_NAMED = (
    (re.compile(r"(?i)\b(bearer|basic)(\s+)[\w.~+/=-]{4,}"), r"\1\2" + _HIDDEN),
    (re.compile(r"(://[^\s/:@]*):[^\s/]+@"), r"\1:" + _HIDDEN + "@"),
    (
        re.compile(
            r"(?i)\b(password|passwd|secret|api[_-]?key|access[_-]?token|auth[_-]?token|token)"
            r"(\\?[\"']?\s*[=:]\s*\\?[\"']?)[^\s\"'&,;}\\]{4,}"
        ),
        r"\1\2" + _HIDDEN,
    ),
)
_HINTS = (
    *("sk-", "whsec_", "hf_", "ghp", "gho", "ghs", "github_pat", "xox", "akia", "eyj"),
    *("bearer", "basic", "://", "password", "passwd", "secret", "api", "token"),
)
"""In lower case: without one of them in it no ASCII text matches a pattern above. 20 times as fast to look for."""
_encode = json.JSONEncoder(default=str).encode
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a line belongs to."""

    request_id: str
    trace_id: str
    """Of W3C's traceparent, ours where nobody gave one."""
    span_id: str
    """Of our part of it."""
    flags: str


_work: ContextVar[Work | None] = ContextVar("work", default=None)


@contextmanager
def of_request(request_id: str, traceparent: str | None) -> Iterator[None]:
    """Lines within this belong to this request, and to the trace that its caller began."""
    given = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    drawn = secrets.token_hex(24)
    trace_id, flags = (given[1], given[3]) if given else (drawn[16:], "00")
    token = _work.set(Work(request_id=request_id, trace_id=trace_id, span_id=drawn[:16], flags=flags))
    try:
        yield
    finally:
        _work.reset(token)


def traceparent() -> dict[str, str]:
    """The header that lets whoever we call now belong to the same trace; empty outside of a request."""
    work = _work.get()
    return {} if work is None else {"traceparent": f"00-{work.trace_id}-{work.span_id}-{work.flags}"}


class Redactor:
    """Takes secrets out of texts: those of known form, and this process's own."""

    def __init__(self, *known: str | None) -> None:
        """`known`: secrets that have no form of their own."""
        self._known = [secret for secret in known if secret and len(secret) >= 4]

    def __call__(self, text: str) -> str:
        """The text without them."""
        for secret in self._known:
            text = text.replace(secret, _HIDDEN)
        if text.isascii():  # beyond ASCII there are more letters that count as these in any case
            lower = text.lower()
            if not any(map(lower.__contains__, _HINTS)):
                return text
        text = _SECRETS.sub(_HIDDEN, text)
        for pattern, instead in _NAMED:
            text = pattern.sub(instead, text)
        return text

    def each(self, texts: Sequence[str]) -> Sequence[str]:
        """Of several; one look at all of them together where there is nothing to hide, as nearly always."""
        joined = "\x00".join(texts)
        return texts if self(joined) == joined else [self(text) for text in texts]


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": rfc3339(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        work = _work.get()
        if work is not None:
            line |= {"request_id": work.request_id, "trace_id": work.trace_id, "span_id": work.span_id}
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        texts = [name for name, value in line.items() if isinstance(value, str)]
        line |= zip(texts, self._redact.each([line[name] for name in texts]), strict=True)
        return _encode(line)


class TextLines(logging.Formatter):
    """For people: a line each, and of an exception its traceback, indented."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).astimezone().isoformat(sep=" ", timespec="milliseconds")
        facts = {name: value for name, value in getattr(record, FIELDS, {}).items() if value is not None}
        work = _work.get()
        if work is not None:
            facts["request_id"] = work.request_id
        words = [record.getMessage(), *(f"{name}={value}" for name, value in facts.items())]
        lines = [f"{moment} {record.levelname} {record.name}: {' '.join(words)}"]
        if record.exc_info:
            lines += [f"  | {line}" for line in self.formatException(record.exc_info).splitlines()]
        return "\n".join(_CONTROL.sub(_escaped, self._redact(line)) for line in lines)


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Send all lines of this process to `stream` (stderr), in the form of the settings. For the process that serves."""
    stream = stream or sys.stderr
    urls = (settings.ray_jobs_url, settings.ray_serve_url, settings.serve_url)
    passwords = (urlsplit(url).password for url in urls if url)
    redact = Redactor(settings.ray_token, make_url(settings.database_url).password, *passwords)
    text = settings.log_format == "text" or (settings.log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextLines(redact) if text else JsonLines(redact))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # uvicorn has set up its own, in a form of its own
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # `service.observe` writes its lines, without queries
    for name in ("httpx", "httpcore", "alembic"):  # a line for every look at Ray is no news
        logging.getLogger(name).setLevel(logging.WARNING)
    sys.excepthook = _uncaught
    threading.excepthook = lambda died: _uncaught(died.exc_type, died.exc_value, died.exc_traceback)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """What would otherwise go to stderr as it is."""
    if error is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
        logging.getLogger("service").critical("uncaught", exc_info=(kind, error, trace))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
