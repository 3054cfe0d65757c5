"""What is measured of a model on held-out data: ranking, generated text, judgement. Base, rungs and finals alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simpo.evaluation.evidence import Behaviour
from simpo.evaluation.intervals import Estimate
from simpo.evaluation.judge import Judge, judge_answers
from simpo.evaluation.preference import PairScores, PreferenceReport, preference_accuracy
from simpo.evaluation.probes import probes
from simpo.evaluation.win_rate import win_rate
from simpo.generate import Generation, generate
from simpo.practice_task import right_answer
from simpo.scores import score_pairs
from sweeps.prepared import HeldOut
from sweeps.spec import PRACTICE, Evaluation, SweepSpec


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One model on one held-out set."""

    preference: PreferenceReport
    """Length-normalised accuracy and margin."""
    win_rate: Estimate | None
    """Against the base model's answers to the same prompts; None without judge or base scores."""
    probes: dict[str, float]
    """Facts of the generated text; empty when nothing was generated."""
    scores: list[float | None] | None
    """The judge's scores, by prompt; None without a judge that scores."""
    generations: tuple[Generation, ...] = ()
    """What the model said, by prompt."""
    pair_scores: PairScores | None = None
    """Its log-probabilities of the held-out pairs."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The texts of what it said."""
        return tuple(each.text for each in self.generations)

    def behaviour(self, right: Sequence[bool] | None) -> Behaviour:
        """What evidence is made of. `right`: by item of the capability set."""
        return Behaviour(generations=self.generations, scores=self.pair_scores, right=right)

    def metrics(self) -> dict[str, float]:
        """Plain numbers by name; `win_rate`, `accuracy` and `margin` are what an objective may name."""
        named = {"accuracy": self.preference.accuracy.estimate, "margin": self.preference.margin.estimate}
        if self.win_rate is not None:
            named["win_rate"] = self.win_rate.estimate
        return {**named, **self.probes}

    def interval(self, metric: str) -> tuple[float, float]:
        """The 95 % interval of a metric that an objective may name."""
        estimates = {"accuracy": self.preference.accuracy, "margin": self.preference.margin, "win_rate": self.win_rate}
        estimate = estimates[metric]
        assert estimate is not None  # a spec with win_rate has a judge
        return estimate.low, estimate.high


def measure(
    model: Any,
    tokenizer: Any,
    held_out: HeldOut,
    *,
    evaluation: Evaluation,
    stop_ids: Sequence[int],
    token_budget: int,
    seed: int,
    judge: Judge | None,
) -> Measurement:
    """Score the pairs, answer the prompts, judge the answers. Same model, seed and data give the same numbers.

    Raises DataError when the model's log-probabilities are not finite, or no judgement succeeded.
    """
    pair_scores = score_pairs(model, held_out.pairs.evaluation_batches(token_budget))
    preference = preference_accuracy(pair_scores)
    if not held_out.prompts:
        return Measurement(preference=preference, win_rate=None, probes={}, scores=None, pair_scores=pair_scores)
    answers = generate(
        model,
        tokenizer,
        held_out.prompts,
        max_new_tokens=evaluation.max_new_tokens,
        stop_ids=stop_ids,
        temperature=evaluation.temperature,
        seed=seed,
    )
    scores = None
    if judge is not None:
        scores = judge_answers(judge, held_out.instructions, [answer.text for answer in answers])
    against = held_out.base_scores
    return Measurement(
        preference=preference,
        win_rate=None if scores is None or against is None else win_rate(scores, against),
        probes=probes(answers, held_out.reference_lengths),
        scores=scores,
        generations=tuple(answers),
        pair_scores=pair_scores,
    )


def right_answers(spec: SweepSpec, instructions: Sequence[str], answers: Sequence[str]) -> list[bool] | None:
    """Which answers are exactly right, where the task itself can tell: the practice task's capability set."""
    if spec.dataset.train != PRACTICE:
        return None
    return [right_answer(asked) == said for asked, said in zip(instructions, answers, strict=True)]
