"""Token by token, the text comes out whole: no half characters, nothing of a stop text, nothing lost."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.serving.engines.text import TextStream

pytestmark = pytest.mark.quick


def decode_bytes(ids: Sequence[int]) -> str:
    """A byte-level vocabulary: one token per byte."""
    return bytes(ids).decode("utf-8", errors="replace")


def decode_words(ids: Sequence[int]) -> str:
    """A vocabulary of words with the space inside; the first word of a list loses it, as in SentencePiece."""
    return "".join(f" w{i}" for i in ids).removeprefix(" ")


def run(ids: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    stream = TextStream(decode_bytes, stop)
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.finish()], stream.stopped


@given(st.text(max_size=40))
def test_text_is_given_out_whole(text: str) -> None:
    pieces, _ = run(text.encode())
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


@given(st.binary(max_size=40))
def test_broken_bytes_are_given_out_as_the_decoder_shows_them(raw: bytes) -> None:
    assert "".join(run(raw)[0]) == decode_bytes(raw)


@given(st.text("ab\u20ac", max_size=30), st.lists(st.text("ab\u20ac", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop(text: str, stop: list[str]) -> None:
    pieces, stopped = run(text.encode(), stop)
    # The first stop text to be complete ends the answer; of those that end there, the one that begins first is cut.
    ends = [text.find(s) + len(s) for s in stop if s in text]
    complete = text[: min(ends)] if ends else text
    cut = min((complete.find(s) for s in stop if s in complete), default=len(text))
    assert "".join(pieces) == text[:cut]
    assert stopped == bool(ends)


def test_a_beginning_of_a_stop_is_held_back_and_given_out_when_it_is_none() -> None:
    stream = TextStream(decode_bytes, ["END"])
    assert [stream.push(byte) for byte in b"xEN"] == ["x", "", ""]
    assert stream.push(ord("!")) == "EN!"
    assert stream.push(ord("E")) == ""
    assert stream.finish() == "E"


def test_borders_of_words_survive() -> None:
    stream = TextStream(decode_words)
    pieces = [stream.push(i) for i in (1, 2, 3)]
    assert pieces == ["w1", " w2", " w3"]
