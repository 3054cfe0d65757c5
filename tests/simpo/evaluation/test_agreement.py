"""Agreement of two judges, against figures from the literature and by hand."""

import pytest

from simpo.errors import DataError
from simpo.evaluation.agreement import agreement

pytestmark = pytest.mark.quick


def _table(cells: list[list[int]]) -> tuple[list[float | None], list[float | None]]:
    sides = (0.0, 0.5, 1.0)
    pairs = [(sides[i], sides[j]) for i in range(3) for j in range(3) for _ in range(cells[i][j])]
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_kappa_by_hand() -> None:
    # 20 both b, 5 b/a, 10 a/b, 15 both a of 50: observed 0.7, chance 0.5*0.6 + 0.5*0.4 = 0.5, kappa 0.4.
    found = agreement(*_table([[20, 0, 5], [0, 0, 0], [10, 0, 15]]))
    assert found.raw.estimate == 0.7 and found.kappa is not None
    assert found.kappa.estimate == pytest.approx(0.4)
    # Fleiss, Cohen, Everitt: on = .4 (1 - 1.1*.6)^2 + .3 (1 - .9*.6)^2 = .10972; off = .36 (.1*1.21... ) by cells:
    # (b, a): (p_.b + p_a.)^2 = 1.1^2, (a, b): (p_.a + p_b.)^2 = .9^2; minus (.4 - .5*.6)^2 = .01.
    off = 0.1 * 1.1**2 + 0.2 * 0.9**2
    variance = 0.4 * (1 - 1.1 * 0.6) ** 2 + 0.3 * (1 - 0.9 * 0.6) ** 2 + 0.36 * off - 0.01
    half = 1.959964 * (variance / 50) ** 0.5 / 0.5
    assert found.kappa.low == pytest.approx(0.4 - half, abs=1e-6)
    assert found.kappa.high == pytest.approx(0.4 + half, abs=1e-6)


def test_perfect_chance_and_opposed() -> None:
    perfect = agreement([1.0, 0.0, 0.5, 0.9], [0.8, 0.1, 0.5, 1.0])
    assert perfect.raw.estimate == 1.0 and perfect.kappa is not None and perfect.kappa.estimate == pytest.approx(1.0)
    chance = agreement(*_table([[25, 0, 25], [0, 0, 0], [25, 0, 25]])).kappa
    opposed = agreement(*_table([[0, 0, 25], [0, 0, 0], [25, 0, 0]])).kappa
    assert chance is not None and abs(chance.estimate) < 1e-12 and chance.low < 0 < chance.high
    assert opposed is not None and opposed.estimate == pytest.approx(-1.0)


def test_what_one_judge_missed_is_counted() -> None:
    found = agreement([1.0, None, 0.0], [1.0, 1.0, None])
    assert (found.raw.n, found.raw.missing, found.kappa) == (1, 2, None)
    assert found.as_dict()["kappa"] is None
    with pytest.raises(DataError, match="no pair was judged by both"):
        agreement([None], [1.0])
    with pytest.raises(DataError, match="the same pairs"):
        agreement([1.0], [])
