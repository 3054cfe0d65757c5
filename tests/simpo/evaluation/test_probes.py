"""Probes on texts whose figures can be counted by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo.errors import DataError
from simpo.evaluation.probes import probes, repetition
from simpo.generate import Generation

pytestmark = pytest.mark.quick


def test_the_five_probes_by_hand() -> None:
    answers = [
        Generation("abc", (1, 2, 3, 0), "stop"),
        Generation(" ", (9, 0), "stop"),
        Generation("", (0,), "stop"),
        Generation("ababababab", (1, 2) * 5, "length"),  # 7 4-grams, 2 of them distinct
    ]
    assert probes(answers, [4, 6, 5]) == {
        "length_ratio": pytest.approx((4 + 2 + 1 + 10) / 4 / 5),
        "repetition": pytest.approx((1 - 2 / 7) / 4),
        "eos_rate": 0.75,
        "empty_rate": 0.5,
        "mean_tokens": 17 / 4,
    }


def test_short_answers_do_not_repeat() -> None:
    assert repetition([7] * 7) == 0.0
    assert repetition([7] * 8) == pytest.approx(1 - 1 / 5)


@given(ids=st.lists(st.integers(0, 3), max_size=40))
def test_repetition_is_a_share_and_a_copy_raises_it(ids: list[int]) -> None:
    assert 0 <= repetition(ids) < 1
    if len(ids) >= 8:
        assert repetition(ids + ids) > repetition(ids)


def test_distinct_tokens_never_repeat() -> None:
    assert repetition(range(100)) == 0.0


def test_nothing_to_probe_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to probe"):
        probes([], [1])
    for lengths in ([], [0, 0], [-1, 3]):
        with pytest.raises(DataError, match="reference lengths"):
            probes([Generation("a", (1,), "stop")], lengths)
