"""Adaptive comparison: what it saves and what its intervals cover, both simulated with fixed seeds."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import beta, norm

from simpo.errors import DataError
from simpo.evaluation.adaptive import LEVEL, ROUND, Elimination, compare_adaptively
from simpo.evaluation.intervals import paired_share_interval, preference_interval, share_interval
from simpo.evaluation.sequences import Floats, anytime_interval

SPREAD = (0.62, 0.55, 0.53, 0.51, 0.48, 0.45, 0.42, 0.38)
EQUAL = (0.60, 0.50, 0.50, 0.50, 0.50, 0.50, 0.50, 0.50)


def judgements(rng: np.random.Generator, means: Sequence[float], prompts: int) -> Floats:
    """Preferences (K, N) over a baseline: prompts differ in difficulty for all, two orders that may contradict."""
    hard_N = rng.normal(0.0, 0.25, prompts)
    wins_KN = np.clip(np.array(means)[:, None] + hard_N, 0.02, 0.98)
    first, second = (rng.random((len(means), prompts)) < wins_KN for _ in range(2))
    agree = rng.random((len(means), prompts)) < 0.6
    return np.where(agree, first, (first + second) / 2).astype(float)


def spent(
    rng: np.random.Generator, means: Sequence[float], *, eliminate: bool, prompts: int = 6000
) -> tuple[int, bool]:
    """(judgements until the top was separated, whether the best was left)."""
    places = rng.permutation(len(means))
    values = judgements(rng, np.array(means)[places], prompts)
    books, cost = Elimination(len(means)), 0
    for start in range(0, prompts, ROUND):
        batch = values[:, start : start + ROUND].copy()
        if eliminate:
            batch[~books.active] = np.nan
        cost += int(books.active.sum() if eliminate else len(means)) * ROUND
        books.add(batch)
        if books.active.sum() == 1:
            break
    return cost, bool(books.active[np.argmin(places)])


def uniform_plan(rng: np.random.Generator, means: Sequence[float], *, success: float) -> int:
    """Judgements of a plan fixed beforehand: prompts for all, so many that the best is separated in `success` of the
    plans by paired one-sided tests at LEVEL / (K - 1) each: the same error."""
    bar = norm.ppf(1 - LEVEL / (len(means) - 1))
    draws = np.stack([judgements(rng, means, 2400) for _ in range(300)])
    differences = draws[:, :1] - draws[:, 1:]
    for n in range(100, 2401, 20):
        part = differences[:, :, :n]
        separated = (part.mean(axis=2) > bar * part.std(axis=2, ddof=1) / np.sqrt(n)).all(axis=1)
        if separated.mean() >= success:
            return n * len(means)
    raise AssertionError("give the plan more prompts")


def test_the_best_of_eight_costs_at_most_60_percent_of_uniform_allocation(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {}
    for name, means in (("spread", SPREAD), ("equal", EQUAL)):
        adaptive = [spent(np.random.default_rng([1, seed]), means, eliminate=True) for seed in range(100)]
        mean = float(np.mean([cost for cost, _ in adaptive]))
        errors = sum(not best for _, best in adaptive)
        assert errors <= 100 * LEVEL
        # The adaptive runs miss the best in none of a hundred, so the plan may miss it in one.
        planned = uniform_plan(np.random.default_rng(2), means, success=0.99)
        figures[name] = (mean, planned, mean / planned, errors)
        assert mean <= 0.6 * planned, figures
    # Against the same stopping rule without elimination: one contender far off stops costing early.
    sequential = np.mean([spent(np.random.default_rng([1, seed]), SPREAD, eliminate=False)[0] for seed in range(50)])
    figures["sequential"] = (figures["spread"][0], float(sequential), figures["spread"][0] / float(sequential), 0)
    with capsys.disabled():
        print(f"\nadaptive, uniform, ratio, errors of 100: {figures}")
    assert figures["sequential"][2] <= 0.6


def test_the_best_is_rarely_eliminated_where_all_are_equal() -> None:
    """The worst case for errors: nobody is better, and looking a hundred times must not find somebody."""
    wrong = 0
    for seed in range(100):
        books = Elimination(8)
        values = judgements(np.random.default_rng([3, seed]), [0.5] * 8, 2000)
        for start in range(0, 2000, ROUND):
            books.add(values[:, start : start + ROUND])
        wrong += not books.active[0]  # any fixed one of them is a best one
    assert wrong <= 5


@pytest.mark.parametrize("mean", [0.5, 0.6, 0.9])
def test_the_anytime_interval_covers_the_truth_at_all_looks(mean: float) -> None:
    missed = 0
    for seed in range(150):
        values = np.random.default_rng([4, seed]).beta(2 * mean, 2 * (1 - mean), size=600).round(1)
        truth = _mean_of_rounded(mean)
        looks = (anytime_interval(values[:n]) for n in (10, 20, 40, 80, 160, 320, 600))
        missed += any(not look.low <= truth <= look.high for look in looks)
    assert missed <= 0.07 * 150


def _mean_of_rounded(mean: float) -> float:
    edges = np.concatenate([[0.0], np.arange(0.05, 1.0, 0.1), [1.0]])
    return float(np.diff(beta(2 * mean, 2 * (1 - mean)).cdf(edges)) @ np.linspace(0, 1, 11))


def test_the_intervals_cover_the_truth_where_the_comparison_stopped() -> None:
    """Stopping when somebody looks better would fool an interval for a fixed number of judgements."""
    means = (0.62, 0.55, 0.5, 0.42)
    truth = judgements(np.random.default_rng(6), means, 400_000).mean(axis=1)
    covered, stopped = [], set()
    for seed in range(150):
        table = _Table(judgements(np.random.default_rng([7, seed]), means, 400))
        standings = compare_adaptively([str(k) for k in range(4)], table, prompts=400)
        stopped.add(standings.ended)
        covered += [row.estimate.low <= truth[int(row.name)] <= row.estimate.high for row in standings.rows]
    assert stopped == {"separated", "prompts"}
    assert np.mean(covered) >= 0.93


@pytest.mark.parametrize("n", [50, 200, 500])
def test_the_fixed_intervals_cover_the_truth(n: int) -> None:
    """At least 93 % at nominal 95 %, for shades of preference and for shares, over easy and lopsided truths."""
    rng = np.random.default_rng([5, n])
    for mean in (0.5, 0.6, 0.8, 0.93):
        shades = rng.beta(1.5 * mean, 1.5 * (1 - mean), size=(1500, n))
        inside = [found.low <= mean <= found.high for found in map(preference_interval, shades.tolist())]
        assert np.mean(inside) >= 0.93, (mean, n)
        shares = [share_interval(int(k), n) for k in rng.binomial(n, mean, size=1500)]
        assert np.mean([found.low <= mean <= found.high for found in shares]) >= 0.93, (mean, n)


@pytest.mark.quick
def test_preferences_of_wins_and_ties_have_the_interval_of_paired_shares() -> None:
    for wins, ties, losses in ((6, 2, 2), (500, 0, 0), (0, 7, 0), (1, 0, 3)):
        ours, theirs = (
            preference_interval([1.0] * wins + [0.5] * ties + [0.0] * losses),
            paired_share_interval(wins, ties, losses),
        )
        assert (ours.estimate, ours.low, ours.high) == pytest.approx((theirs.estimate, theirs.low, theirs.high))
    for wrong in ([], [1.2], [float("nan")]):
        with pytest.raises(DataError):
            preference_interval(wrong)


class _Table:
    """Answers from a table, and remembers what was asked."""

    def __init__(self, values_KN: Floats) -> None:
        self.values = values_KN
        self.asked: list[tuple[list[int], range]] = []

    def __call__(self, contenders: Sequence[int], prompts: range) -> list[list[float | None]]:
        self.asked.append((list(contenders), prompts))
        rows = self.values[list(contenders), prompts.start : prompts.stop].tolist()
        return [[None if np.isnan(value) else value for value in row] for row in rows]


@pytest.mark.quick
def test_a_plain_case_is_separated_and_its_rows_say_so() -> None:
    values = np.repeat([[0.5], [1.0], [0.0]], 200, axis=1)
    table = _Table(values)
    standings = compare_adaptively(["a", "b", "c"], table, prompts=200)
    assert (standings.ended, standings.best, standings.rows[0].name) == ("separated", 1, "b")
    assert [row.eliminated for row in standings.rows] == [False, True, True]
    assert standings.judgements < 200 and standings.judgements <= standings.of_uniform
    told = standings.as_dict()["rows"][0]
    assert told["name"] == "b" and told["tied_with"] == [] and told["judged"] == told["n"]


@pytest.mark.quick
def test_equals_stay_tied_until_prompts_or_budget_end() -> None:
    table = _Table(np.full((2, 100), 0.5))
    standings = compare_adaptively(["a", "b"], table, prompts=100)
    assert (standings.ended, standings.best, standings.judgements) == ("prompts", 0, 200)
    assert standings.rows[0].tied_with == ("b",) and standings.rows[1].tied_with == ("a",)
    short = compare_adaptively(["a", "b"], table, prompts=100, budget=91)
    assert (short.ended, short.judgements) == ("budget", 90)


@pytest.mark.quick
def test_missing_judgements_move_nothing() -> None:
    values = np.repeat([[0.4], [0.9]], 40, axis=1)
    values[1, ::2] = np.nan
    standings = compare_adaptively(["a", "b"], _Table(values), prompts=40)
    row = next(row for row in standings.rows if row.name == "b")
    assert (row.estimate.n, row.estimate.missing) == (20, 20)
    dead = _Table(np.full((2, 100), np.nan))
    assert compare_adaptively(["a", "b"], dead, prompts=100).ended == "budget"
    assert len(dead.asked) == 1, "a judge that says nothing is not asked again"


@pytest.mark.quick
def test_one_contender_is_the_best_and_none_is_refused() -> None:
    alone = compare_adaptively(["a"], _Table(np.full((1, 30), 0.7)), prompts=30)
    assert (alone.ended, alone.best, alone.judgements) == ("prompts", 0, 30)
    with pytest.raises(DataError, match="nobody to compare"):
        compare_adaptively([], _Table(np.full((0, 30), 0.7)), prompts=30)


@pytest.mark.quick
def test_an_interval_of_nothing_is_everything() -> None:
    assert anytime_interval(np.array([])).as_dict() == {"estimate": 0.5, "low": 0.0, "high": 1.0, "n": 0, "missing": 0}
    with pytest.raises(DataError):
        anytime_interval(np.array([1.5]))
