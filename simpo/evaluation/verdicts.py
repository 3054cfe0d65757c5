"""Which of two answers is better: the one way to ask for it, and what two orders of the same pair say together.

A judge prefers what it reads first, or last, more often than it should (Zheng et al. 2023, arXiv 2306.05685). So
every pair is judged in both orders, and only the two verdicts together say something about the answers.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from simpo.errors import DataError
from simpo.evaluation.judge import Judge, judge_answers

MissingReason = Literal["unparsable", "refused", "error", "budget"]
"""unparsable: no verdict in the required form. refused: the judge would not answer. error: the judge could not be
asked, or its answer was no answer. budget: not asked, the spend cap was reached."""


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt, in the order in which a judge sees them."""

    prompt: str
    answer_a: str
    answer_b: str

    def swapped(self) -> "Comparison":
        """The same pair in the other order."""
        return Comparison(self.prompt, self.answer_b, self.answer_a)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a judge said of one comparison."""

    preference: float | None = None
    """In [0, 1]: 1 for answer_a, 0 for answer_b. None: missing, which is neither a win nor a tie."""
    reason: MissingReason | None = None
    """Why it is missing."""
    cached: bool = False
    """Read from a record of an earlier answer: nothing was sent."""
    requests: int = 0
    """Requests sent for it, retries included."""
    cost: float = 0.0
    """Paid for it, in the currency of the judge's prices."""

    def __post_init__(self) -> None:
        if (self.preference is None) == (self.reason is None):
            raise DataError("a verdict is a preference, or missing with a reason")
        if self.preference is not None and not 0.0 <= self.preference <= 1.0:
            raise DataError(f"a preference lies in [0, 1], not {self.preference!r}")


@dataclass(frozen=True, kw_only=True)
class JudgeIdentity:
    """Who judges, and how it is asked: verdicts of equal identities may be compared, others may not."""

    type: str
    """openai, reward_model or practice."""
    model: str
    """What the judge calls itself: model name, directory, or the task."""
    url: str | None = None
    """Endpoint, without credentials."""
    mode: str = "score"
    """text: a written verdict. logprobs: probabilities of two labels. score: each answer scored alone."""
    template_hash: str | None = None
    """sha256 of everything the judge reads around the answers."""
    decoding: dict[str, Any] = field(default_factory=dict)
    """Settings of its generation."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "decoding": dict(self.decoding)}


class PairwiseJudge(Protocol):
    """Says which of two answers is better, given one order."""

    @property
    def identity(self) -> JudgeIdentity:
        """Who this is."""
        ...

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """One verdict a comparison, in order. A failure is a missing verdict, never an exception and never a tie."""
        ...


class ScoringJudge:
    """A judge that scores answers one at a time, as a pairwise judge: the higher score wins, equal scores tie."""

    def __init__(self, judge: Judge, identity: JudgeIdentity) -> None:
        self._judge = judge
        self.identity = identity

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Each distinct answer is scored once."""
        asked = list(dict.fromkeys((c.prompt, a) for c in comparisons for a in (c.answer_a, c.answer_b)))
        scores = dict(zip(asked, judge_answers(self._judge, [p for p, _ in asked], [a for _, a in asked]), strict=True))
        return [self._verdict(scores[c.prompt, c.answer_a], scores[c.prompt, c.answer_b]) for c in comparisons]

    def _verdict(self, a: float | None, b: float | None) -> Verdict:
        if a is None or b is None:
            return Verdict(reason="error")
        return Verdict(preference=1.0 if a > b else 0.0 if a < b else 0.5)


@dataclass(frozen=True, kw_only=True)
class Both:
    """One pair, judged in both orders."""

    preference: float | None
    """Mean of the two orders' preferences for answer_a: two verdicts that contradict each other give 0.5, and nothing
    else is turned into a tie. None when either order is missing: one order alone would carry its position in it."""
    first: Verdict
    """With answer_a first."""
    second: Verdict
    """With answer_b first; its preference is for answer_b."""
    identical: bool = False
    """The two answers are the same text: 0.5 without asking."""

    @property
    def flipped(self) -> bool:
        """Both orders have a verdict, and each names the other answer: the position decided."""
        a, b = self.first.preference, self.second.preference
        return not self.identical and a is not None and b is not None and (a - 0.5) * ((1.0 - b) - 0.5) < 0

    @property
    def lean(self) -> float | None:
        """How much the place mattered, in [-1, 1]: above 0, whatever stood first was preferred."""
        a, b = self.first.preference, self.second.preference
        return None if self.identical or a is None or b is None else a + b - 1.0


def judge_both_orders(judge: PairwiseJudge, comparisons: Sequence[Comparison]) -> list[Both]:
    """Ask for every pair in both orders, in one batch; identical answers are a tie and cost nothing.

    Raises DataError: the judge returned another number of verdicts than it was asked for.
    """
    asked = [c for pair in comparisons if pair.answer_a != pair.answer_b for c in (pair, pair.swapped())]
    verdicts = judge.compare(asked) if asked else []
    if len(verdicts) != len(asked):
        raise DataError(f"judge {judge.identity.model} returned {len(verdicts)} verdicts for {len(asked)} comparisons")
    following = iter(verdicts)
    return [
        merge_orders(next(following), next(following)) if pair.answer_a != pair.answer_b else _TIE
        for pair in comparisons
    ]


def merge_orders(first: Verdict, second: Verdict) -> Both:
    """What the two orders of a pair say together: see `Both.preference`."""
    if first.preference is None or second.preference is None:
        return Both(preference=None, first=first, second=second)
    return Both(preference=(first.preference + 1.0 - second.preference) / 2, first=first, second=second)


_TIE = Both(preference=0.5, first=Verdict(preference=0.5), second=Verdict(preference=0.5), identical=True)


@dataclass(frozen=True, kw_only=True)
class JudgeCounts:
    """What a judgement took and what became of it."""

    pairs: int
    """Pairs to be judged."""
    judged: int
    """Pairs with a verdict in both orders, identical answers included."""
    identical: int
    """Pairs whose answers were the same text: a tie, never sent."""
    requests: int
    """Requests sent, retries included."""
    cached: int
    """Verdicts read from the record of an earlier answer."""
    missing: dict[str, int]
    """Verdicts (of single orders) that could not be had, by reason."""
    flips: int
    """Pairs whose two orders contradict each other."""
    flip_rate: float | None
    """flips / pairs that were asked and judged in both orders."""
    position_lean: float | None
    """Mean of `Both.lean` over those: above 0 the judge prefers what it reads first."""
    cost: float
    """Paid, in the currency of the judge's prices; 0 without prices."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "missing": dict(self.missing)}


def counts_of(judged: Sequence[Both]) -> JudgeCounts:
    """Count what a batch of pairs took."""
    verdicts = [verdict for both in judged if not both.identical for verdict in (both.first, both.second)]
    leans = [both.lean for both in judged if both.lean is not None]
    flips = sum(both.flipped for both in judged)
    return JudgeCounts(
        pairs=len(judged),
        judged=sum(both.preference is not None for both in judged),
        identical=sum(both.identical for both in judged),
        requests=sum(verdict.requests for verdict in verdicts),
        cached=sum(verdict.cached for verdict in verdicts),
        missing=dict(sorted(Counter(verdict.reason for verdict in verdicts if verdict.reason).items())),
        flips=flips,
        flip_rate=flips / len(leans) if leans else None,
        position_lean=sum(leans) / len(leans) if leans else None,
        cost=sum(verdict.cost for verdict in verdicts),
    )
