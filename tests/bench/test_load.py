"""The load bench's own part: its targets, its words, and that README shows what was recorded."""

import pytest

from tests.bench.load import TARGETS, load_table, rate, verdict
from tests.bench.load_cases import CASES, QUICK, Size
from tests.bench.load_wire import quantile
from tests.bench.readme import in_readme, recorded

pytestmark = pytest.mark.quick


def test_every_target_names_a_case() -> None:
    assert {target.case for target in TARGETS} == set(CASES)
    assert QUICK.sweeps < Size().sweeps


def test_answers_that_were_not_wished_are_no_rate() -> None:
    loop = {"statuses": {"200": 4000, "503": 1}, "seconds": 10.0, "requests": 4001, "p50_ms": 5.0, "p99_ms": 50.0}
    figures = {"get": {**loop, "api_cpu_s": 8.0}}
    target = next(each for each in TARGETS if each.title.startswith("`GET`"))
    assert rate(loop) == 400
    assert verdict(target, figures) == "MISSED"
    figures["get"]["statuses"] = {"200": 4000}
    assert verdict(target, figures) == "gate"
    assert target.shown(figures).startswith("400 req/s, p50 5 ms, p99 50 ms")


def test_quantiles() -> None:
    values = [float(number) for number in range(100)]
    assert (quantile(values, 0.5), quantile(values, 0.99)) == (50.0, 99.0)


def test_readme_shows_the_recorded_load() -> None:
    assert in_readme("load") == load_table(recorded("load")), "run python -m tests.bench.load --write"
