"""How answers of one version went: a few sums that can be added, whoever counted them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from simpo.evaluation.probes import repetition

_SHORTEST_S = 0.001
_STEP = 1.1  # ratio of neighbouring buckets: a percentile is known to 10 %
_LAST = 150  # ends at 27 minutes
REPEATS_FROM = 0.5
"""Share of repeated 4-grams from which an answer counts as one that repeats itself."""
# CJK is written without spaces: there a character counts as a word.
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")

Histogram = dict[int, int]
"""Bucket -> answers; bucket i ends at 1 ms * 1.1^i."""


@dataclass(kw_only=True)
class Counts:
    """Of one version over some time. An answer whose client went away is not among them."""

    answers: int = 0
    """Requests that were answered, or failed."""
    errors: int = 0
    """Those that failed for a reason of ours: status 500 and above, no answer, a stream that broke off."""
    first: Histogram = field(default_factory=dict)
    """Streams: time to the first event."""
    whole: Histogram = field(default_factory=dict)
    """Answers without `stream`: time to the answer."""
    probed: int = 0
    """Whole good answers whose text was looked at."""
    repeated: int = 0
    """Of these, with a choice that repeats itself."""
    truncated: int = 0
    """Of these, with a choice that was cut off by its length."""

    def add(self, other: "Counts") -> None:
        """Take what somebody else counted."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _HISTOGRAMS:
            mine = getattr(self, name)
            for bucket, number in getattr(other, name).items():
                mine[bucket] = mine.get(bucket, 0) + number

    def to_json(self) -> dict[str, Any]:
        """For the table."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in _SUMS}
        return plain | {name: {str(k): v for k, v in getattr(self, name).items()} for name in _HISTOGRAMS}

    @classmethod
    def of_json(cls, body: Mapping[str, Any]) -> Self:
        """The inverse; what is missing is 0, as an older gateway did not count it."""
        sums = {name: int(body.get(name, 0)) for name in _SUMS}
        histograms = {name: {int(k): int(v) for k, v in body.get(name, {}).items()} for name in _HISTOGRAMS}
        return cls(**sums, **histograms)  # type: ignore[arg-type]


_SUMS = ("answers", "errors", "probed", "repeated", "truncated")
_HISTOGRAMS = ("first", "whole")


def bucket_of(seconds: float) -> int:
    """The bucket of a time."""
    if seconds <= _SHORTEST_S:
        return 0
    return min(_LAST, math.ceil(math.log(seconds / _SHORTEST_S) / math.log(_STEP)))


def seconds_of(bucket: int) -> float:
    """The end of a bucket: no time in it is longer, but for the last one's."""
    return float(_SHORTEST_S * _STEP**bucket)


def ranked(histogram: Histogram, rank: int) -> float:
    """Seconds of the rank-th shortest, 1 being the shortest. Raises IndexError where there are not so many."""
    for bucket in sorted(histogram):
        rank -= histogram[bucket]
        if rank <= 0:
            return seconds_of(bucket)
    raise IndexError(rank)


def repeats(text: str) -> bool:
    """Whether at least half of an answer's 4-grams of words repeat an earlier one: the probe of training, on words,
    because the gateway has no tokens."""
    return repetition(_WORDS.findall(text)) >= REPEATS_FROM
