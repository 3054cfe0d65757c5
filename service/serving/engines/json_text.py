"""`response_format: json_object`: the answer is one JSON object (RFC 8259), token by token.

A token is taken only where the bytes so far, and its own, are a beginning of a JSON object; an end token only where
the object is whole. The bytes that may come next are few, so most of the vocabulary falls away by first bytes alone,
and the rest is tried in the order in which the sampler draws.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from service.serving.engines.base import EngineError
from service.serving.engines.vocabulary import Vocabulary

_SPACE = b" \t\n\r"
_MOST_SPACE = 32  # white space in a row: a model may fall into writing nothing else
_DIGITS = b"0123456789"
_LITERALS = {b"t"[0]: b"rue", b"f"[0]: b"alse", b"n"[0]: b"ull"}
_NUMBER_ENDS = ("zero", "int", "fraction", "exponent")
_IN_NUMBER = {
    "minus": {**dict.fromkeys(b"123456789", "int"), b"0"[0]: "zero"},
    "zero": {b"."[0]: "dot", **dict.fromkeys(b"eE", "e")},
    "int": {**dict.fromkeys(_DIGITS, "int"), b"."[0]: "dot", **dict.fromkeys(b"eE", "e")},
    "dot": dict.fromkeys(_DIGITS, "fraction"),
    "fraction": {**dict.fromkeys(_DIGITS, "fraction"), **dict.fromkeys(b"eE", "e")},
    "e": {**dict.fromkeys(_DIGITS, "exponent"), **dict.fromkeys(b"+-", "sign")},
    "sign": dict.fromkeys(_DIGITS, "exponent"),
    "exponent": dict.fromkeys(_DIGITS, "exponent"),
}


class Place(NamedTuple):
    """Where in a JSON text the next byte stands."""

    mode: str = "start"
    """What is expected."""
    inside: bytes = b""
    """The brackets that are open, outermost first."""
    rest: bytes = b""
    """literal: what must follow. string: the ranges (low, high) of the UTF-8 bytes that must follow. key or value: see
    `_string`."""
    spaces: int = 0
    """White space before this, in a row."""

    @property
    def whole(self) -> bool:
        """Whether the text may end here."""
        return self.mode == "end"


def step(at: Place, byte: int) -> Place | None:
    """The place after one more byte; None: no JSON object goes on so."""
    if at.mode.startswith("string"):
        return _string(at, byte)
    if at.mode == "literal":
        if byte != at.rest[0]:
            return None
        return at._replace(rest=at.rest[1:]) if len(at.rest) > 1 else Place("after", at.inside)
    if at.mode in _IN_NUMBER:
        if (then := _IN_NUMBER[at.mode].get(byte)) is not None:
            return at._replace(mode=then)
        return step(Place("after", at.inside), byte) if at.mode in _NUMBER_ENDS else None
    if byte in _SPACE:
        return at._replace(spaces=at.spaces + 1) if at.spaces < _MOST_SPACE else None
    return _structure(at, byte)


def walk(at: Place, data: bytes) -> Place | None:
    """The place after several bytes."""
    for byte in data:
        following = step(at, byte)
        if following is None:
            return None
        at = following
    return at


class JsonObject:
    """The constraint on one answer."""

    def __init__(self, vocabulary: Vocabulary, stop_ids: frozenset[int]) -> None:
        self._vocabulary = vocabulary
        self._stop_ids = stop_ids
        self._at = Place()

    def choose(self, logits_V: Tensor, draw: Callable[[Tensor], int]) -> int:
        """A token that goes on with the object, as `draw` would take it from the others' absence.

        Raises EngineError: this vocabulary cannot write what must come.
        """
        logits_V = logits_V.cpu()
        first_V = self._vocabulary.first_bytes(len(logits_V))
        stops = torch.tensor(sorted(self._stop_ids))
        possible_V = torch.tensor([*_possible(self._at), False])[first_V]
        possible_V[stops] = self._at.whole
        logits_V = torch.where(possible_V, logits_V, -torch.inf)
        while bool(torch.isfinite(logits_V).any()):
            token_id = draw(logits_V)
            if token_id in self._stop_ids:
                return token_id
            following = walk(self._at, self._vocabulary.bytes_of(token_id) or b"")
            if following is not None:
                self._at = following
                return token_id
            logits_V[token_id] = -torch.inf
        raise EngineError("no token of this model's vocabulary goes on with a JSON object")


def _structure(at: Place, byte: int) -> Place | None:
    char = chr(byte)
    if at.mode == "start":
        return Place("first key", b"{") if char == "{" else None
    if at.mode in ("first key", "key"):
        if char == '"':
            return Place("string of a key", at.inside)
        return _closed(at) if char == "}" and at.mode == "first key" else None
    if at.mode == "colon":
        return Place("value", at.inside) if char == ":" else None
    if at.mode in ("value", "first item"):
        return _closed(at) if char == "]" and at.mode == "first item" else _value(at, byte)
    if at.mode == "after":
        if char == ",":
            return Place("key" if at.inside.endswith(b"{") else "value", at.inside)
        return _closed(at) if char == ("}" if at.inside.endswith(b"{") else "]") else None
    return None  # after the end there is white space alone


def _value(at: Place, byte: int) -> Place | None:
    if byte in _LITERALS:
        return Place("literal", at.inside, _LITERALS[byte])
    modes = {'"': "string", "-": "minus", "0": "zero", **dict.fromkeys("123456789", "int")}
    if (mode := modes.get(chr(byte))) is not None:
        return Place(mode, at.inside)
    opened = {"{": ("first key", b"{"), "[": ("first item", b"[")}.get(chr(byte))
    return None if opened is None else Place(opened[0], at.inside + opened[1])


def _closed(at: Place) -> Place:
    inside = at.inside[:-1]
    return Place("after" if inside else "end", inside)


def _string(at: Place, byte: int) -> Place | None:
    """`rest`: empty, or what must come first: pairs (low, high), one for each byte."""
    if at.rest:
        low, high = at.rest[:2]
        if low == high == b"\\"[0]:  # the byte after a backslash
            if byte == b"u"[0]:
                return at._replace(rest=b"xx" * 4)
            return at._replace(rest=b"") if byte in b'"\\/bfnrt' else None
        fits = chr(byte) in "0123456789abcdefABCDEF" if at.rest[:2] == b"xx" else low <= byte <= high
        return at._replace(rest=at.rest[2:]) if fits else None
    if byte == b'"'[0]:
        return Place("colon" if at.mode.endswith("key") else "after", at.inside)
    if byte == b"\\"[0]:
        return at._replace(rest=b"\\\\")
    if byte < 0x20:
        return None
    following = _continuation(byte)
    return None if following is None else at._replace(rest=following)


def _continuation(byte: int) -> bytes | None:
    """Ranges of the bytes after a character's first one; None: none begins so (UTF-8: Unicode, table 3-7)."""
    any_ = b"\x80\xbf"
    if byte < 0x80:
        return b""
    if 0xC2 <= byte <= 0xDF:
        return any_
    if 0xE0 <= byte <= 0xEF:
        return {0xE0: b"\xa0\xbf", 0xED: b"\x80\x9f"}.get(byte, any_) + any_
    if 0xF0 <= byte <= 0xF4:
        return {0xF0: b"\x90\xbf", 0xF4: b"\x80\x8f"}.get(byte, any_) + 2 * any_
    return None


@lru_cache(maxsize=4096)
def _possible(at: Place) -> tuple[bool, ...]:
    return tuple(step(at, byte) is not None for byte in range(256))
