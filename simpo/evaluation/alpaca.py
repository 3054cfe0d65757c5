"""AlpacaEval 2: a judge's log-probabilities -> preferences -> the win rate against one baseline.

Source: tatsu-lab/alpaca_eval, `completion_parsers.logprob_parser` and `metrics/winrate.py`. A preference lies in 1..2,
1 = the baseline's answer is certainly better, 2 = the model's. Figures are in percent, as published. The
length-controlled win rate is in `length_control.py`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simpo.errors import DataError

TIE = 1.5


@dataclass(frozen=True, kw_only=True)
class AlpacaScore:
    """The plain win rate of one model."""

    win_rate: float
    """Mean preference for the model, percent."""
    standard_error: float | None
    """Of that mean, percent points; None for a single judgement."""
    n: int
    """Judgements that count."""
    missing: int
    """Judgements that failed: in no other figure."""
    wins: int
    """Preferences above 1.5."""
    draws: int
    """Preferences of exactly 1.5."""
    losses: int
    """Preferences below 1.5."""


def preference_from_logprobs(
    top_logprobs: Mapping[str, float] | Iterable[Any], *, model_token: str = "M", baseline_token: str = "m"
) -> float | None:
    """The judge's first answer token -> a preference in 1..2, or None where it named neither answer.

    preference = 1 + p(model) / (p(model) + p(baseline)); a token outside the list that came back has p = 0.

    top_logprobs: {token: log-probability}, or a list of (token, log-probability) pairs or of OpenAI's objects
    {"token": ..., "logprob": ...}.
    model_token, baseline_token: the identifiers under which the judge saw the two answers. Where the order was
    switched, these are the other way round.
    """
    logprobs = _logprobs(top_logprobs)
    model, baseline = (logprobs.get(token, -math.inf) for token in (model_token, baseline_token))
    highest = max(model, baseline)
    if not math.isfinite(highest) or math.isnan(model) or math.isnan(baseline):
        return None
    model, baseline = math.exp(model - highest), math.exp(baseline - highest)
    return 1 + model / (model + baseline)


def checked_preference(value: float | None) -> float | None:
    """A preference as the official code reads it: 0 is a draw, None, NaN and -1 are failed judgements.

    Raises DataError: any other value outside 1..2, for it is on another scale.
    """
    if value is None or math.isnan(value) or value == -1:
        return None
    if value == 0:
        return TIE
    if not 1 <= value <= 2:
        raise DataError(
            f"a preference of {value:g} is not in 1..2 (1: the baseline wins, 2: the model wins, 0 or 1.5: a draw, "
            "blank: the judgement failed); add 1 to probabilities"
        )
    return value


def alpaca_score(preferences: Sequence[float | None]) -> AlpacaScore:
    """Win rate and its standard error over preferences in 1..2; None is a failed judgement and counts for nobody.

    Raises DataError: no judgement is left, or a preference is out of range.
    """
    checked = [checked_preference(preference) for preference in preferences]
    valid_N = np.array([preference for preference in checked if preference is not None])
    n = len(valid_N)
    if not n:
        raise DataError(f"there is no win rate: all of {len(checked)} judgements are missing. Look at the judge")
    return AlpacaScore(
        win_rate=100 * float(valid_N.mean() - 1),
        standard_error=100 * float(valid_N.std(ddof=1)) / math.sqrt(n) if n > 1 else None,
        n=n,
        missing=len(checked) - n,
        wins=int((valid_N > TIE).sum()),
        draws=int((valid_N == TIE).sum()),
        losses=int((valid_N < TIE).sum()),
    )


def _logprobs(given: Mapping[str, float] | Iterable[Any]) -> dict[str, float]:
    if isinstance(given, Mapping):
        return {token: float(logprob) for token, logprob in given.items()}
    pairs = ((each["token"], each["logprob"]) if isinstance(each, Mapping) else tuple(each) for each in given)
    # The most probable entry of a token comes first; a repeated one must not overwrite it.
    logprobs: dict[str, float] = {}
    for token, logprob in pairs:
        logprobs.setdefault(token, float(logprob))
    return logprobs
