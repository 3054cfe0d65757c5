"""Pairwise judges made of a function of two answers."""

from collections.abc import Callable, Sequence

from simpo.evaluation.verdicts import Comparison, JudgeIdentity, Verdict


class RuleJudge:
    """Prefers by a rule: (prompt, first answer, second answer) -> preference for the first, None where it fails."""

    def __init__(self, rule: Callable[[str, str, str], float | None]) -> None:
        self._rule = rule
        self.identity = JudgeIdentity(type="rule", model="rule")
        self.seen: list[Comparison] = []

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """One verdict a comparison."""
        self.seen += comparisons
        preferences = [self._rule(c.prompt, c.answer_a, c.answer_b) for c in comparisons]
        return [Verdict(reason="unparsable") if p is None else Verdict(preference=p) for p in preferences]


def by_score(score: Callable[[str, str], float]) -> RuleJudge:
    """The higher score of (prompt, answer) wins."""

    def rule(prompt: str, first: str, second: str) -> float:
        a, b = score(prompt, first), score(prompt, second)
        return 1.0 if a > b else 0.0 if a < b else 0.5

    return RuleJudge(rule)
