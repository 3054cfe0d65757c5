"""Log lines: one a record, with its request and trace, without secrets."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from service import logs
from service.logs import FIELDS, Redactor, configure, of_request, traceparent
from service.settings import Settings

pytestmark = pytest.mark.quick

SECRETS = (
    *("sk-simpo-abcdefghijklmnop", "sk-proj-abcdefghijklmnop", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw="),
    *("hf_abcdefghijklmnop", "ghp_abcdefghijklmnopqrst", "AKIAABCDEFGHIJKLMNOP", "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0"),
)

PARTS = (
    *("Bearer ", "BASIC ", "ba\u017fic ", "abcdefgh", "://", "user", ":", "@host", "password", "PassWd", "secret", "="),
    *("api_key", "API-key", "access_token", "auth-token", "token", "to\u212aen", '": "', "xoxa-abcdefgh", ".", " "),
    *("gho_abcdefgh", "github_pat_abcdefgh", "sk_abcdefgh", "eyJ"),
)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Where lines go. What `configure` changes in this process is put back."""
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    level, named = root.level, {name: logging.getLogger(name).level for name in ("httpx", "httpcore", "alembic")}
    monkeypatch.setattr("sys.excepthook", lambda *_: None)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    root.handlers = []
    yield io.StringIO()
    root.handlers = before
    root.setLevel(level)
    for name, old in named.items():
        logging.getLogger(name).setLevel(old)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_a_line_of_json_with_its_request(stream: io.StringIO) -> None:
    configure(Settings(), stream)
    log = logging.getLogger("service.test")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with of_request("req_1", trace):
        log.info("a\r\nforged: line\u2028", extra={FIELDS: {"status": 200, "path": "/a\nb", "key": None}})
        onward = traceparent()["traceparent"]
    log.warning("outside")
    first, second = lines(stream)
    assert first["message"] == "a\r\nforged: line\u2028" and (first["status"], first["path"]) == (200, "/a\nb")
    assert (first["level"], first["logger"], first["request_id"]) == ("INFO", "service.test", "req_1")
    assert first["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert onward == f"00-{first['trace_id']}-{first['span_id']}-01" and first["span_id"] != "b7ad6b7169203331"
    assert "request_id" not in second and traceparent() == {}


@pytest.mark.parametrize("given", [None, "", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "ff-a-b-c", "00-x\r\n"])
def test_a_trace_begins_here_where_nobody_gave_a_good_one(given: str | None) -> None:
    with of_request("req_1", given):
        version, trace_id, span_id, flags = traceparent()["traceparent"].split("-")
    assert (version, len(trace_id), len(span_id), flags) == ("00", 32, 16, "00") and set(trace_id) != {"0"}


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_secret_is_written_wherever_it_stands(form: str, stream: io.StringIO) -> None:
    database = "postgresql+psycopg://simpo:p4ss-of-the-db@db/simpo"
    configure(Settings(log_format=form, ray_token="raytoken-0123456789", database_url=database), stream)
    log = logging.getLogger("service.test")
    own = ("raytoken-0123456789", "p4ss-of-the-db")
    for secret in (*SECRETS, *own):
        log.error("got %s", secret, extra={FIELDS: {"path": f"/v1/{secret}"}})
        log.error('{"key": "%s"}', secret)
        try:
            raise ValueError(f"what is {secret}?")
        except ValueError:
            log.exception("it broke: %s", [secret])
    log.error("Authorization: Bearer abcdefghijk; basic dXNlcjpwYXNz; https://user:pa:ss@w0rd@host/a?b=c")
    log.error("password=hunter22 token: 'abcdefgh' \"api_key\": \"zyxwvuts\" max_tokens=1234 tokens: 5678")
    text = stream.getvalue()
    gone = (*SECRETS, *own, "abcdefghijk", "dXNlcjpwYXNz", "pa:ss", "w0rd", "hunter22", "abcdefgh", "zyxwvuts")
    assert [secret for secret in gone if secret in text] == []
    assert "https://user:***@host/a?b=c" in text and "max_tokens=1234 tokens: 5678" in text and "it broke" in text


def test_the_text_form_is_one_line_a_record_and_an_indented_traceback(stream: io.StringIO) -> None:
    configure(Settings(log_format="text"), stream)
    log = logging.getLogger("service.test")
    with of_request("req_1", None):
        log.info("a\r\n2026-01-01 CRITICAL forged\x1b[2J", extra={FIELDS: {"status": 200, "key": None}})
    try:
        raise ValueError("b\nCRITICAL forged")
    except ValueError:
        log.exception("c")
    written = stream.getvalue().split("\n")
    assert written[0].endswith(r"INFO service.test: a\r\n2026-01-01 CRITICAL forged\x1b[2J status=200 request_id=req_1")
    assert " ERROR service.test: c" in written[1] and all(line.startswith("  | ") for line in written[2:-1])


def test_the_form_follows_the_setting_or_the_terminal(stream: io.StringIO) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for form, where, is_json in (("auto", stream, True), ("auto", Terminal(), False), ("json", Terminal(), True)):
        configure(Settings(log_format=form, log_level="WARNING"), where)
        logging.getLogger("service.test").info("not this")
        logging.getLogger("uvicorn.error").warning("this")
        assert where.getvalue().startswith("{") is is_json and "not this" not in where.getvalue()


@profile(max_examples=300)
@given(st.lists(st.sampled_from([*PARTS, *SECRETS]) | st.text(max_size=4), max_size=8).map("".join))
def test_looking_for_hints_first_hides_no_less(text: str) -> None:
    """ASCII texts in which a word of a pattern is missing are not matched against it; all others are."""
    slow = logs._SECRETS.sub(logs._HIDDEN, text)
    for pattern, instead in logs._NAMED:
        slow = pattern.sub(instead, slow)
    assert Redactor()(text) == slow


def test_uvicorn_writes_no_line_of_its_own_for_a_request(stream: io.StringIO) -> None:
    access = logging.getLogger("uvicorn.access")
    access.addHandler(logging.StreamHandler(stream))
    configure(Settings(), stream)
    assert not access.hasHandlers(), "which is what uvicorn asks of it"
    access.error("GET /v1/me?q=mine")
    assert stream.getvalue() == ""


def test_what_is_short_is_no_secret_of_ours() -> None:
    assert Redactor("", None, "ab")("about") == "about"
