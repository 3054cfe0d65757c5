"""The bytes of a JSON object, and nothing but these."""

import json
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.serving.engines.json_text import Place, _possible, walk

pytestmark = pytest.mark.quick

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=4), _VALUES, max_size=3), st.booleans(), st.sampled_from([None, 1]))
@example({"a": [1.5e-300, -0.0, '\u00e4\u20ac\U0001f600\\"\n\x7f']}, False, None)
def test_every_object_is_one_and_each_beginning_a_beginning(value: Any, ascii: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii, indent=indent).encode()
    at = Place()
    for byte in text:
        assert not at.whole
        following = walk(at, bytes([byte]))
        assert following is not None
        at = following
    assert at.whole
    assert walk(at, b"\n") is not None and walk(at, b"{") is None


def test_whatever_the_bytes_lead_to_is_an_object() -> None:
    draw, ended = random.Random(4), 0
    for _ in range(150):
        at, text = Place(), bytearray()
        while not at.whole and len(text) < 300:
            allowed = [byte for byte, may in enumerate(_possible(at)) if may]
            likely = [byte for byte in allowed if byte in b'{}[]":,1e.-\\u0' or byte >= 0x80] or allowed
            text.append(draw.choice(likely))
            following = walk(at, text[-1:])
            assert following is not None
            at = following
        if at.whole:
            ended += 1
            assert isinstance(json.loads(bytes(text)), dict)
    assert ended > 20


@pytest.mark.parametrize(
    "text",
    [
        *(
            b"[]",
            b"1",
            b'"a"',
            b"{]",
            b"{,",
            b'{"a"}',
            b'{"a":,',
            b'{"a":1,}',
            b'{"a":01',
            b'{"a":1.}',
            b'{"a":-}',
            b'{"a":tru}',
        ),
        *(
            b'{"a":"\n',
            b'{"a":"\\x',
            b'{"a":"\\u12g',
            b'{"\xc0',
            b'{"\xed\xa0',
            b'{"\xf4\x90',
            b'{"\xff',
            b"{} {",
            b"{" + b" " * 99,
        ),
        *(b'{"a":[1,]', b'{"a":1e}', b'{"a":+1', b"{'", b'{"a":NaN'),
    ],
)
def test_what_is_no_json_object_ends_in_nothing(text: bytes) -> None:
    assert walk(Place(), text) is None
