"""How well a model's own log-probabilities rank held-out pairs. Free of beta and gamma, so trials can be compared."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from simpo.errors import DataError
from simpo.evaluation.intervals import Estimate, Z, mean_interval, share_interval


class PairScores(Protocol):
    """Summed response log-probabilities and counted tokens of B pairs: tensors, arrays or lists (`simpo.scores`)."""

    @property
    def chosen_sum_B(self) -> Any: ...
    @property
    def rejected_sum_B(self) -> Any: ...
    @property
    def chosen_len_B(self) -> Any: ...
    @property
    def rejected_len_B(self) -> Any: ...


@dataclass(frozen=True)
class PreferenceReport:
    """Ranking of held-out pairs by a = (summed log-probability) / (tokens), SimPO's reward without beta (Eq. 4)."""

    accuracy: Estimate
    """Share of pairs with a_w > a_l, strict: a tie is wrong. Wilson's interval."""
    margin: Estimate
    """Mean of a_w - a_l, nats per token. Student's interval."""
    chosen_mean: float
    """Mean of a_w. Far below the base model's: the model is leaving the data."""
    rejected_mean: float
    """Mean of a_l."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "accuracy": self.accuracy.as_dict(),
            "margin": self.margin.as_dict(),
            "chosen_mean": self.chosen_mean,
            "rejected_mean": self.rejected_mean,
        }


@dataclass(frozen=True, kw_only=True)
class LengthReport:
    """Whether length explains the ranking. A model that learned "longer is better" splits these groups wide apart."""

    chosen_longer: PreferenceReport | None
    """Pairs whose chosen response has more tokens. None: fewer than two such pairs (likewise below)."""
    chosen_shorter: PreferenceReport | None
    equal_length: PreferenceReport | None
    correlation: Estimate | None
    """Spearman's rho of a_w with the chosen response's tokens: near 0 where likelihood is free of length (SimPO 4.2).
    None: fewer than four pairs, or one of the two does not vary."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = (self.chosen_longer, self.chosen_shorter, self.equal_length, self.correlation)
        names = ("chosen_longer", "chosen_shorter", "equal_length", "correlation")
        return {name: value and value.as_dict() for name, value in zip(names, values, strict=True)}


def preference_accuracy(scores: PairScores) -> PreferenceReport:
    """Length-normalised accuracy and margin over at least two pairs.

    Raises DataError: lengths disagree, fewer than two pairs, an empty response, a log-probability that is not finite.
    """
    return _report(*averages(scores))


def preference_by_length(scores: PairScores) -> LengthReport:
    """The same by which response is the longer, in counted tokens, and how likelihood goes with length.

    Raises DataError: as `preference_accuracy`, but for the number of pairs.
    """
    chosen, rejected = averages(scores)
    longer = [w - r for w, r in zip(_floats(scores.chosen_len_B), _floats(scores.rejected_len_B), strict=True)]

    def group(sign: int) -> PreferenceReport | None:
        rows = [i for i, difference in enumerate(longer) if (difference > 0) - (difference < 0) == sign]
        return _report([chosen[i] for i in rows], [rejected[i] for i in rows]) if len(rows) > 1 else None

    return LengthReport(
        chosen_longer=group(1),
        chosen_shorter=group(-1),
        equal_length=group(0),
        correlation=spearman(chosen, _floats(scores.chosen_len_B)),
    )


def averages(scores: PairScores) -> tuple[list[float], list[float]]:
    """(a_w, a_l) of every pair, nats a token. Raises DataError as `preference_by_length`."""
    chosen = _means(scores.chosen_sum_B, scores.chosen_len_B, "chosen")
    rejected = _means(scores.rejected_sum_B, scores.rejected_len_B, "rejected")
    if len(chosen) != len(rejected):
        raise DataError(f"{len(chosen)} chosen scores against {len(rejected)} rejected: score the same pairs")
    return chosen, rejected


def spearman(x: Sequence[float], y: Sequence[float]) -> Estimate | None:
    """Spearman's rank correlation; ties share their mean rank. None where it is not defined: n < 4, or no variation.

    Interval: Fisher's z with the standard error of Bonett and Wright (2000), sqrt((1 + rho^2 / 2) / (n - 3)).
    Raises DataError: unequal lengths.
    """
    if len(x) != len(y):
        raise DataError(f"{len(x)} values against {len(y)}: correlate pairs")
    n = len(x)
    if n < 4 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    rho = min(1.0, max(-1.0, float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])))
    z, half = math.atanh(min(abs(rho), 1 - 1e-15)), Z * math.sqrt((1 + rho * rho / 2) / (n - 3))
    ends = sorted(math.copysign(1.0, rho) * math.tanh(z + sign * half) for sign in (-1, 1))
    return Estimate(rho, min(rho, ends[0]), max(rho, ends[1]), n)


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, place_N, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[place_N]
    return ranks


def _report(chosen: Sequence[float], rejected: Sequence[float]) -> PreferenceReport:
    margins = [w - r for w, r in zip(chosen, rejected, strict=True)]
    return PreferenceReport(
        accuracy=share_interval(sum(margin > 0 for margin in margins), len(margins)),
        margin=mean_interval(margins),
        chosen_mean=sum(chosen) / len(chosen),
        rejected_mean=sum(rejected) / len(rejected),
    )


def _means(sums: Any, lengths: Any, side: str) -> list[float]:
    """Average log-probability a token, in float64."""
    sums_B, lengths_B = _floats(sums), _floats(lengths)
    if len(sums_B) != len(lengths_B):
        raise DataError(f"{len(sums_B)} {side} sums but {len(lengths_B)} lengths: give one of each a pair")
    for row, (total, length) in enumerate(zip(sums_B, lengths_B, strict=True)):
        if length < 1:
            raise DataError(f"the {side} response of pair {row} is empty: its average is not a number. Drop the pair")
        if not -float("inf") < total < float("inf"):
            raise DataError(f"the {side} log-probability of pair {row} is {total}: the model is broken")
    return [total / length for total, length in zip(sums_B, lengths_B, strict=True)]


def _floats(values: Iterable[Any]) -> list[float]:
    return [float(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]
