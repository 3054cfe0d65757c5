"""The search finds the best hundredth of a space in at most half of random search's trials, and stays clear of cliffs.

Six seeds here; `python -m tests.bench.search` has twenty, and the table.
"""

from statistics import median

from tests.bench.search import CHANCE, SURFACES, TRIALS_BAR, WARMED_UP, compare, top_percent


def test_the_search_needs_at_most_half_the_trials() -> None:
    rows = compare(range(6), trials=70)
    needed = [arm.arrived for row in rows for arm in row.search]
    assert median(needed) <= TRIALS_BAR * CHANCE, needed
    for row in rows:
        ours, chance = ([arm.infeasible for arm in arms] for arms in (row.search, row.chance))
        assert all(a <= b for a, b in zip(ours, chance, strict=True)), f"{row.surface}, from trial {WARMED_UP} on"
        assert sum(ours) <= 0.6 * sum(chance)


def test_the_surfaces_are_what_they_say() -> None:
    point = {"learning_rate": 1e-4, "beta": 3.0, "gamma_beta_ratio": 0.5}
    for surface in SURFACES:
        best = {
            "learning_rate": 10**surface.rate,
            "beta": 10**surface.beta,
            "gamma_beta_ratio": surface.ratio,
        }
        assert surface.value(best) == 0.72 > top_percent(surface, 4000) > surface.value(point)
        assert surface.violation(best) < 0 < surface.violation(best | {"learning_rate": 3e-3})
