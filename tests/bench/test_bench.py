"""The benchmark's own arithmetic: the floor, and what counts as a missed bar."""

import pytest

from tests.bench.__main__ import CASES, GPU_CASES, Case, _missed_by, floor_share, step_table
from tests.bench.lengths import LONG, SAMPLES, SHAPES, SHORT, floor_flops, random_pairs
from tests.bench.readme import in_readme, recorded

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(("pairs", "gflop"), [(SHORT[:12], 25.4), (SHORT, 33.7), (LONG[:8], 193.1), (LONG, 185.9)])
def test_the_floor_of_the_30m_model(pairs: list[tuple[int, int, int]], gflop: float) -> None:
    assert floor_flops(SHAPES["30M"], pairs) / len(pairs) / 1e9 == pytest.approx(gflop, abs=0.05)
    assert floor_flops(SHAPES["30M"], pairs, frozen=True) == pytest.approx(floor_flops(SHAPES["30M"], pairs) * 2 / 3)


def test_random_pairs_have_the_lengths_and_the_same_ids_again() -> None:
    pairs = random_pairs(SHORT[:3], 100)
    assert [tuple(map(len, pair)) for pair in pairs] == list(SHORT[:3])
    assert pairs == random_pairs(SHORT[:3], 100)


def test_every_case_names_a_sample_and_a_shape() -> None:
    for case in (*CASES, *GPU_CASES):
        assert case.sample in SAMPLES
        assert case.shape in SHAPES
        assert case.arms


def test_a_missed_bar_is_named() -> None:
    def row(seconds: float, memory: int) -> dict[str, float]:
        return {
            "seconds_per_step": seconds,
            "bytes_above_model": memory,
            "peak_flops": 10.0,
            "floor_flops_per_step": 5.0,
        }

    case = Case(name="short", arms=("trl",), faster=6.0, floor=0.6, memory=1 / 3)
    assert floor_share(row(1.0, 1)) == 0.5
    assert _missed_by(case, {"ours": row(0.5, 1), "trl": row(3.1, 4)}) == []
    missed = _missed_by(case, {"ours": row(1.0, 2), "trl": row(5.0, 4)})
    assert missed == [
        "short: 5.00x trl, bar 6.0x",
        "short: 50% of the floor, bar 60%",
        "short: 0.50 of trl's memory, bar 0.33",
    ]


def test_readme_shows_the_recorded_step() -> None:
    assert in_readme("step") == step_table(recorded("step")), "run python -m tests.bench --write"
