"""The serving bench's own part: its bars, its questions, and that README shows what was recorded."""

from typing import Any

import pytest

from tests.bench.readme import in_readme, recorded
from tests.bench.serving import CASES, TABLES, missed_bars
from tests.bench.serving_gateway import CONNECTIONS, WAYS
from tests.bench.serving_model import TINY, questions

pytestmark = pytest.mark.quick


def ways(**changes: tuple[float, float, float]) -> dict[str, Any]:
    """A table in which all is well but for the ways that are named: (requests a second, p50, p95)."""
    rates = {way: changes.get(way, (3000.0, 0.5, 9.0)) for way in WAYS}
    each = {
        way: {"requests_per_s": [rate] * 3, "p50_ms": p50, "p95_ms": p95, "failed": 0}
        for way, (rate, p50, p95) in rates.items()
    }
    return {"ways": {way: {str(c): row for c in CONNECTIONS} for way, row in each.items()}}


def test_a_missed_bar_is_named() -> None:
    def engine(ratio: float, vllm: float = 199.0) -> dict[str, Any]:
        batching = {"ours_cpu": [ratio, 1.0, 9.0], "tokens_per_s": 100.0}
        return {"clients": {"8": {"batching": batching, "vllm": {"tokens_per_s": vllm}}}}

    def adapters(ratio: float) -> dict[str, Any]:
        ratios = {"transformers": ratio, "vllm": 5.0, "stock": 4.0}
        return {"engines": {name: {"ratio": [median, 1.0, 9.0]} for name, median in ratios.items()}}

    for measured in (engine(2.0), engine(1.5, vllm=200.0)):
        assert missed_bars({"engine": measured, "gateway": ways(), "adapters": adapters(2.0)}) == []
    bad = {
        "engine": engine(1.99),
        "gateway": ways(haproxy=(2399, 1.6, 9.0), gateway=(300, 4.0, 15.0)),
        "adapters": adapters(1.99),
    }
    assert [line.partition(":")[0] for line in missed_bars(bad)] == ["engine", *["gateway"] * 5, "adapters"]


def test_questions_have_the_lengths_and_are_the_same_again() -> None:
    asked = questions(TINY, 30, longest_answer=32)
    assert [len(one.prompt_ids) for one in asked[:3]] == [56, 56, 26]
    assert {one.num_tokens for one in asked} == {23, 32}
    assert asked == questions(TINY, 30, longest_answer=32) != questions(TINY, 30, longest_answer=32, seed=1)
    assert max(map(max, (one.prompt_ids for one in asked))) < TINY.vocabulary - 2


@pytest.mark.parametrize("case", CASES)
def test_readme_shows_the_recorded_serving(case: str) -> None:
    figures = recorded("serving").get(case)  # None: it was never run on a machine that is good enough
    table = "" if figures is None else TABLES[case](figures)
    assert in_readme(f"serving-{case}") == table, "run python -m tests.bench.serving --write"
