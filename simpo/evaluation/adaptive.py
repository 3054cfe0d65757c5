"""Who is best, with as few judgements as that takes: successive elimination on paired differences.

All contenders answer the same prompts, so what counts is the difference of two preferences over the baseline on one
prompt: what makes a prompt easy or hard drops out. After each round of prompts a contender leaves once others are
shown to be better, at a level that holds for all rounds and all pairs together (`sequences`); what it would have cost
is left for those that are still close. Even-Dar, Mannor and Mansour 2006 (J. Mach. Learn. Res. 7:1079), with betting
in the place of Hoeffding's bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from simpo.errors import DataError
from simpo.evaluation.intervals import Estimate
from simpo.evaluation.sequences import BETS_L, Floats, anytime_interval, log_capital, log_gains

Ask = Callable[[Sequence[int], range], Sequence[Sequence[float | None]]]
"""(contenders, prompts) -> one row a contender: its preference over the baseline on each prompt, None where missing."""

LEVEL = 0.05
"""Probability, over the whole comparison, that the best contender is eliminated."""
ROUND = 20
"""Prompts judged for each contender between two looks."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One contender at the end."""

    name: str
    estimate: Estimate
    """Mean preference over the baseline; the interval holds at every moment, so also at the one when it ended."""
    tied_with: tuple[str, ...]
    """Contenders with the same fate, of which neither is shown to be better than the other."""
    eliminated: bool
    """Another one was shown to be better."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `judged` is how many judgements this contender got."""
        return {
            "name": self.name,
            **self.estimate.as_dict(),
            "judged": self.estimate.n,
            "tied_with": list(self.tied_with),
            "eliminated": self.eliminated,
        }


@dataclass(frozen=True, kw_only=True)
class Standings:
    """The outcome, best first."""

    rows: tuple[Standing, ...]
    best: int
    """Index of the contender with the highest mean among those left; of equals the first."""
    ended: Literal["separated", "budget", "prompts"]
    """separated: one is left. budget, prompts: that ran out while several were."""
    judgements: int
    """Preferences asked for over all contenders."""
    of_uniform: int
    """What the same rounds cost without elimination."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "ended": self.ended,
            "judgements": self.judgements,
            "of_uniform": self.of_uniform,
            "rows": [row.as_dict() for row in self.rows],
        }


class Elimination:
    """The books of one comparison: K contenders, who is left, how sure that is."""

    def __init__(self, contenders: int, *, level: float = LEVEL) -> None:
        if contenders < 1:
            raise DataError("there is nobody to compare: give at least one contender")
        self._bar = np.log(max(1, contenders - 1) / level)
        self._gains_KKL = np.zeros((contenders, contenders, len(BETS_L)))
        self.active = np.ones(contenders, dtype=bool)

    @property
    def better_KK(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """[j, k]: j alone is shown to be better than k."""
        return np.asarray(log_capital(self._gains_KKL) >= self._bar)

    def add(self, values_KB: Floats) -> None:
        """Preferences of a round of prompts; NaN for what is missing or was not asked."""
        differences = values_KB[:, None, :] - values_KB[None, :, :]
        self._gains_KKL += log_gains(differences).sum(axis=2)
        # If k is the best, each capital that bets on another one against it is a supermartingale, and so is their mean:
        # it reaches 1/level with probability `level` at most. The mean is never weaker than the best of them at K - 1
        # times that bar, which is what a division of the level would ask for.
        capital_KK = log_capital(self._gains_KKL)
        np.fill_diagonal(capital_KK, -np.inf)
        self.active &= np.logaddexp.reduce(capital_KK, axis=0) < self._bar


def compare_adaptively(
    names: Sequence[str],
    ask: Ask,
    *,
    prompts: int,
    budget: int | None = None,
    round_size: int = ROUND,
    level: float = LEVEL,
) -> Standings:
    """Judge round by round until one contender is left, or `prompts` or `budget` (judgements) end.

    The prompts 0 .. prompts-1 must stand in random order: their order is the order of judging. A round without any
    judgement ends it too: the judge's own budget is spent, or it is down.
    Raises DataError: no contender, or a preference outside [0, 1].
    """
    books = Elimination(len(names), level=level)
    values_KN = np.full((len(names), prompts), np.nan)
    asked, done = 0, 0
    ended: Literal["separated", "budget", "prompts"] = "prompts"
    while done < prompts:
        left = [int(k) for k in np.flatnonzero(books.active)]
        if len(left) == 1 and len(names) > 1:
            ended = "separated"
            break
        size = min(round_size, prompts - done)
        if budget is not None:
            size = min(size, (budget - asked) // len(left))
        if size < 1:
            ended = "budget"
            break
        which = range(done, done + size)
        values_KN[left, done : done + size] = np.array(ask(left, which), dtype=np.float64)
        asked, done = asked + len(left) * size, done + size
        values_KB = values_KN[:, which.start : which.stop]
        if np.isnan(values_KB).all():
            ended = "budget"
            break
        books.add(values_KB)
    else:
        ended = "separated" if books.active.sum() == 1 and len(names) > 1 else "prompts"
    return _standings(names, values_KN[:, :done], books, ended=ended, asked=asked, level=level)


def _standings(
    names: Sequence[str],
    values_KN: Floats,
    books: Elimination,
    *,
    ended: Literal["separated", "budget", "prompts"],
    asked: int,
    level: float,
) -> Standings:
    better = books.better_KK
    rows = []
    for k, name in enumerate(names):
        judged = values_KN[k] if books.active[k] else _until_left(values_KN[k])
        undecided = ~(better[:, k] | better[k]) & (books.active == books.active[k])
        ties = tuple(other for j, other in enumerate(names) if j != k and undecided[j])
        rows.append(
            Standing(
                name=name,
                estimate=anytime_interval(judged, level=level),
                tied_with=ties,
                eliminated=not bool(books.active[k]),
            )
        )
    order = sorted(range(len(names)), key=lambda k: (rows[k].eliminated, -rows[k].estimate.estimate, k))
    return Standings(
        rows=tuple(rows[k] for k in order),
        best=order[0],
        ended=ended,
        judgements=asked,
        of_uniform=len(names) * values_KN.shape[1],
    )


def _until_left(values_N: Floats) -> Floats:
    """The prompts up to the last that was judged: later ones were never asked, so they are not missing."""
    had = np.flatnonzero(~np.isnan(values_N))
    return values_N[: had[-1] + 1] if len(had) else values_N[:0]
