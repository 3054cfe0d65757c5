"""May a candidate go on? A pure decision from how both versions answered; who acts on it is `service.canary_watch`.

A figure speaks against the candidate only where its whole interval does: shares by Wilson's interval and, for a
difference of two, Newcombe's (1998, method 10); percentiles by their order statistics. The intervals are three standard
errors wide, because the question is asked again every second: a chance of 5 % would come up within a minute.
"""

import math
from dataclasses import dataclass
from typing import Any

from service.serving.counts import Counts, Histogram, ranked

_Z = 3.0
_P95 = 0.95


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What a candidate may not do. None: that is not looked at."""

    window_s: int = 600
    """Seconds of answers that are compared, the latest."""
    min_answers: int = 30
    """With fewer answers of the candidate, or of the champion where both are compared, a figure decides nothing."""
    max_error_increase: float | None = 0.02
    """More failed answers than the champion has, as a share of all."""
    max_error_rate: float | None = 0.2
    """Share of failed answers where the champion answers too few to compare with."""
    max_latency_ratio: float | None = 1.5
    """p95 of the time to an answer (streams: to its first event), as a multiple of the champion's."""
    max_repetition_increase: float | None = 0.1
    """More answers that repeat themselves than the champion gives, as a share."""
    max_truncation_increase: float | None = 0.1
    """More answers cut off by their length, likewise."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the figures say."""

    roll_back: bool
    reasons: tuple[str, ...]
    """One sentence for each figure that speaks against the candidate."""
    figures: dict[str, dict[str, Any]]
    """champion, candidate -> what was counted and measured."""


def judge(champion: Counts, candidate: Counts, guard: Guard) -> Verdict:
    """Whether the candidate is to be taken back."""
    reasons = [*_errors(champion, candidate, guard)]
    for words, name in (("first event of a stream", "first"), ("whole answer", "whole")):
        reasons += _latency(words, getattr(champion, name), getattr(candidate, name), guard)
    for words, name, most in (
        ("repeat themselves", "repeated", guard.max_repetition_increase),
        ("are cut off", "truncated", guard.max_truncation_increase),
    ):
        if most is not None and min(champion.probed, candidate.probed) >= guard.min_answers:
            theirs, ours = (getattr(champion, name), champion.probed), (getattr(candidate, name), candidate.probed)
            reasons += _increase(f"answers that {words}", theirs, ours, most)
    both = {"champion": figures(champion), "candidate": figures(candidate)}
    return Verdict(roll_back=bool(reasons), reasons=tuple(reasons), figures=both)


def figures(counts: Counts) -> dict[str, Any]:
    """What people are shown of one version. A rate or time that nothing is known of is None."""

    def rate(part: int, whole: int) -> float | None:
        return round(part / whole, 4) if whole else None

    return {
        "answers": counts.answers,
        "errors": counts.errors,
        "error_rate": rate(counts.errors, counts.answers),
        "p95_first_event_s": _p95(counts.first),
        "p95_answer_s": _p95(counts.whole),
        "probed": counts.probed,
        "repetition_rate": rate(counts.repeated, counts.probed),
        "truncation_rate": rate(counts.truncated, counts.probed),
    }


def wilson(part: int, whole: int) -> tuple[float, float]:
    """Interval of a share, `_Z` standard errors to each side. (0, 1) of nothing."""
    if whole == 0:
        return 0.0, 1.0
    p, z2 = part / whole, _Z * _Z
    middle = (p + z2 / (2 * whole)) / (1 + z2 / whole)
    half = _Z * math.sqrt(p * (1 - p) / whole + z2 / (4 * whole * whole)) / (1 + z2 / whole)
    return max(0.0, middle - half), min(1.0, middle + half)


def least_difference(ours: tuple[int, int], theirs: tuple[int, int]) -> float:
    """Lower end of the interval of share(ours) - share(theirs); each (part, whole), none of nothing."""
    p, q = ours[0] / ours[1], theirs[0] / theirs[1]
    low, high = wilson(*ours)[0], wilson(*theirs)[1]
    return p - q - math.sqrt((p - low) ** 2 + (high - q) ** 2)


def p95_interval(histogram: Histogram) -> tuple[float, float]:
    """Interval of a 95th percentile, in seconds; the upper end is that of the longest where few are known."""
    n = sum(histogram.values())
    half = _Z * math.sqrt(n * _P95 * (1 - _P95))
    low, high = math.floor(n * _P95 - half), math.ceil(n * _P95 + half) + 1
    return ranked(histogram, max(1, low)), ranked(histogram, min(n, high))


def _errors(champion: Counts, candidate: Counts, guard: Guard) -> list[str]:
    if candidate.answers < guard.min_answers:
        return []
    ours, theirs = (candidate.errors, candidate.answers), (champion.errors, champion.answers)
    if champion.answers >= guard.min_answers:
        most = guard.max_error_increase
        return [] if most is None else _increase("answers that fail", theirs, ours, most)
    low = wilson(*ours)[0]
    if guard.max_error_rate is None or low <= guard.max_error_rate:
        return []
    most_allowed = f"at least {low:.1%}; {guard.max_error_rate:.1%} are allowed"
    return [f"answers that fail: {_share(ours)} of the candidate's, {most_allowed}"]


def _increase(what: str, theirs: tuple[int, int], ours: tuple[int, int], most: float) -> list[str]:
    least = least_difference(ours, theirs)
    if least <= most:
        return []
    more = f"at least {100 * least:.1f} points more, {100 * most:.1f} are allowed"
    return [f"{what}: {_share(ours)} of the candidate's, {_share(theirs)} of the champion's: {more}"]


def _latency(what: str, theirs: Histogram, ours: Histogram, guard: Guard) -> list[str]:
    ratio = guard.max_latency_ratio
    if ratio is None or min(sum(theirs.values()), sum(ours.values())) < guard.min_answers:
        return []
    least, most = p95_interval(ours)[0], p95_interval(theirs)[1]
    if least <= ratio * most:
        return []
    times = f"at least {least:.3g} s of the candidate, at most {most:.3g} s of the champion"
    return [f"p95 of the time to the {what}: {times}: more than {ratio:g} times"]


def _share(pair: tuple[int, int]) -> str:
    return f"{pair[0]} of {pair[1]} ({pair[0] / pair[1]:.1%})"


def _p95(histogram: Histogram) -> float | None:
    n = sum(histogram.values())
    return round(ranked(histogram, max(1, math.ceil(_P95 * n))), 4) if n else None
