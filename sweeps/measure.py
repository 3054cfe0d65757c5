"""What is measured of a model on held-out data: ranking, generated text, judgement. Base, rungs and finals alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simpo.evaluation.intervals import Estimate
from simpo.evaluation.judge import Judge, judge_answers
from simpo.evaluation.preference import PreferenceReport, preference_accuracy
from simpo.evaluation.probes import probes
from simpo.evaluation.win_rate import win_rate
from simpo.generate import generate
from simpo.scores import score_pairs
from sweeps.prepared import HeldOut
from sweeps.spec import Evaluation


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
    answers: tuple[str, ...] = ()
    """What the model said, by prompt."""

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
    preference = preference_accuracy(score_pairs(model, held_out.pairs.evaluation_batches(token_budget)))
    if not held_out.prompts:
        return Measurement(preference=preference, win_rate=None, probes={}, scores=None)
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
        answers=tuple(answer.text for answer in answers),
    )
