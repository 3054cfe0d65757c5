"""Cheap checks on generated text. Ranking accuracy cannot see a model ramble, repeat itself or fall silent; these can.

The values are plain means, to be used as constraints of a search (`sweeps`), not as its goal.
"""

from collections.abc import Sequence
from typing import Protocol

from simpo.errors import DataError

NGRAM = 4
"""Tokens in the n-grams of `repetition`."""


class Generated(Protocol):
    """An answer as `simpo.generate` gives it."""

    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> Sequence[int]:
        """With the end token, if it has one: the way reference lengths are counted too."""
        ...

    @property
    def finish_reason(self) -> str:
        """stop: the model ended its answer. length: it was cut off."""
        ...


def probes(generations: Sequence[Generated], reference_lengths: Sequence[int]) -> dict[str, float]:
    """Means over the generations.

    length_ratio   mean generated tokens / mean reference tokens (those of the chosen responses, end token included)
    repetition     mean share of repeated 4-grams, see `repetition`
    eos_rate       share that ended by themselves
    empty_rate     share with no visible text
    mean_tokens    mean generated tokens, end token included

    Raises DataError: nothing generated, or reference lengths that do not sum to at least one token.
    """
    n = len(generations)
    if not n:
        raise DataError("there is nothing to probe: generate at least one answer")
    if sum(reference_lengths) < 1 or min(reference_lengths) < 0:
        raise DataError("reference lengths must be token counts with a sum above 0: give those of the chosen responses")
    mean_tokens = sum(len(each.token_ids) for each in generations) / n
    return {
        "length_ratio": mean_tokens / (sum(reference_lengths) / len(reference_lengths)),
        "repetition": sum(repetition(each.token_ids) for each in generations) / n,
        "eos_rate": sum(each.finish_reason == "stop" for each in generations) / n,
        "empty_rate": sum(not each.text.strip() for each in generations) / n,
        "mean_tokens": mean_tokens,
    }


def repetition(tokens: Sequence[object]) -> float:
    """Share of an answer's 4-grams that repeat an earlier one: 1 - distinct / all (seq-rep-4, Welleck et al. 2020).

    `tokens`: ids, or words. 0 below 8 of them: no 4-gram fits twice side by side, and short answers that share
    letters are not repetition.
    """
    if len(tokens) < 2 * NGRAM:
        return 0.0
    grams = [tuple(tokens[i : i + NGRAM]) for i in range(len(tokens) - NGRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams)
