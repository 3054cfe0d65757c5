"""How well a model's own log-probabilities rank held-out pairs. Free of beta and gamma, so trials can be compared."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from simpo.errors import DataError
from simpo.evaluation.intervals import Estimate, mean_interval, share_interval


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


def preference_accuracy(scores: PairScores) -> PreferenceReport:
    """Length-normalised accuracy and margin over at least two pairs.

    Raises DataError: lengths disagree, fewer than two pairs, an empty response, a log-probability that is not finite.
    """
    chosen = _means(scores.chosen_sum_B, scores.chosen_len_B, "chosen")
    rejected = _means(scores.rejected_sum_B, scores.rejected_len_B, "rejected")
    if len(chosen) != len(rejected):
        raise DataError(f"{len(chosen)} chosen scores against {len(rejected)} rejected: score the same pairs")
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
