"""The finalists meet on rung prompts with fresh sampling; the winner and the base meet on data that chose nobody."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from simpo.errors import SimPOError
from simpo.evaluation.evidence import evidence_of, figures_of
from simpo.evaluation.intervals import Estimate
from simpo.evaluation.preference import averages
from simpo.evaluation.verdicts import PairwiseJudge
from simpo.evaluation.win_rate import preferences
from simpo.generate import generate
from simpo.model import load_model, load_tokenizer
from sweeps.constraints import violations
from sweeps.contest import Contest, Seen, hold_contest
from sweeps.judged_finals import SELF_PROMPTS, AnswerSet, Choice, Judgement, choose, report, shares_of
from sweeps.judges import JudgeAccess, pairwise_judge
from sweeps.judges_spec import Endpoint, JudgeEndpoint
from sweeps.ledger import Ended
from sweeps.measure import Measurement, right_answers
from sweeps.mixtures import Mixtures
from sweeps.prepare import REPORT_SEED, measure_on
from sweeps.prepared import Facts, HeldOut
from sweeps.retrainings import Retrained
from sweeps.run_dir import RunDir
from sweeps.spec import SweepSpec

FINAL_SEEDS = (11, 12)
"""Sampling seeds of the choice among finalists: the search has fitted the rung's own seed a little."""

Known = TypeVar("Known")

Note = Callable[[str, dict[str, Any]], None]
"""(message, data) of one evaluation."""


class Bases:
    """What is known of base models on the report's data: the sweeps of a comparison ask one base the same questions."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def once(self, what: str, spec: SweepSpec, facts: Facts, find_out: Callable[[], Known]) -> Known:
        """The answer of the first time that this was asked of this base with the same settings and data."""
        asked = spec.model_dump_json(include={"dataset", "judge", "tokens", "evaluation", "train", "seed"})
        key = f"{what} {facts.base} {facts.pairs['report']} {spec.finals.prompts} {facts.stop_ids} {asked}"
        if key not in self._known:
            self._known[key] = find_out()
        known: Known = self._known[key]
        return known


class NoWinner(SimPOError):
    """No trial reached full budget within the constraints."""


def no_winner(trials: Iterable[Ended]) -> NoWinner:
    """The error for a search without a finalist: how its trials ended, one example, what to change."""
    ended = list(trials)
    counts = Counter(trial.outcome.state for trial in ended)
    how = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none was started"
    reasons = [f"; e.g. trial {trial.ask.number}: {trial.outcome.reason}" for trial in ended if trial.outcome.reason]
    return NoWinner(
        f"no trial reached full budget within the constraints ({how}{reasons[0] if reasons else ''}). "
        "Lower the learning rates of the space, loosen the constraints, or give more trials or time"
    )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of the finals."""

    winner: Ended
    """Chosen on the rungs' data alone."""
    base: Measurement
    """The base model on the report's data."""
    tuned: Measurement
    """The winner on the report's data; its win rate is over the base model's answers there."""
    judgement: Judgement | None
    """What the judge said of those answers, and whether to believe it; None without a judge."""
    evidence: dict[str, Any]
    """What a gate may decide on, where the winner would replace the base (`simpo.evaluation.evidence`)."""
    contest: Contest | None = None
    """How the winner was chosen over training seeds and mixtures; None where the finalists alone met."""

    @property
    def win_rate(self) -> Estimate | None:
        """Over the base model; None without a judge, or under one that failed its controls."""
        if self.judgement is None or self.judgement.state == "INVALID":
            return None
        # A judge that scores has given the same preferences in `measure`.
        return self.tuned.win_rate or self.judgement.report.win_rate

    @property
    def judged(self) -> dict[str, dict[str, Any]]:
        """How the finalists stand to each other under the judge, by trial id; empty where it did not choose."""
        choice = None if self.judgement is None else self.judgement.choice
        return {} if choice is None else {row.name: row.as_dict() for row in choice.standings.rows}

    def accuracy(self) -> dict[str, dict[str, Any]]:
        """Length-normalised accuracy of both, with intervals."""
        both = {"base": self.base, "winner": self.tuned}
        return {name: measured.preference.accuracy.as_dict() for name, measured in both.items()}


def hold_finals(
    spec: SweepSpec,
    facts: Facts,
    prepared: Path,
    run: RunDir,
    finalists: Sequence[Ended],
    note: Note,
    access: JudgeAccess | None = None,
    *,
    retrained: Mapping[int, Sequence[Retrained]] | None = None,
    mixtures: Path | None = None,
    bases: Bases | None = None,
) -> Verdict:
    """Choose the winner and measure it. There is at least one finalist (see `no_winner`).

    access: the keys of judges behind a network. retrained: the finalists under further training seeds, by number.
    mixtures: where candidates without training are made; in the run directory. bases: what is known of base models, for
    sweeps that share one.
    """
    rungs, untouched = HeldOut.load(prepared / "rungs"), HeldOut.load(prepared / "report")
    judging: contextlib.AbstractContextManager[PairwiseJudge | None] = contextlib.nullcontext()
    if spec.judge is not None:
        judging = pairwise_judge(spec.judge, run.root, access or JudgeAccess())
    with judging as judge:
        choice, contest = None, None
        if spec.finals.contested:
            mixed = Mixtures(spec, facts, mixtures or run.root / "mixtures")
            contest = hold_contest(
                spec, run.root, finalists, retrained or {}, lambda place: _seen(spec, facts, rungs, place), mixed, note
            )
            winner = contest.winner
        elif judge is not None and isinstance(spec.judge, Endpoint) and len(finalists) > 1:
            winner, choice = _choose_by_judge(spec, facts, rungs, run, finalists, note, judge)
        else:
            winner = _choose(spec, facts, rungs, run, finalists, note)
        seed, known = spec.seed + REPORT_SEED, bases or Bases()
        base = known.once("measured", spec, facts, lambda: _measure(spec, facts, untouched, facts.base, seed))
        note("the base model on untouched data", {"what": "base", "metrics": base.metrics()})
        assert winner.checkpoint is not None  # finalists have one
        judged = replace(untouched, base_scores=base.scores)
        tuned = _measure(spec, facts, judged, str(run.root / winner.checkpoint), seed)
        judgement = None
        if judge is not None:
            answered = known.once("answers", spec, facts, lambda: _answer_set(spec, facts, untouched, base, seed))
            judgement = _report(spec, answered, tuned, judge, run, choice, access, finalists=len(finalists))
    evidence = _evidence(spec, untouched, base, tuned, judgement)
    verdict = Verdict(winner=winner, base=base, tuned=tuned, judgement=judgement, evidence=evidence, contest=contest)
    rate = "" if verdict.win_rate is None else f": beats the base on {verdict.win_rate}"
    data = {"what": "winner", "trial_id": winner.ask.trial_id, "metrics": tuned.metrics()}
    if judgement is not None:
        data["judge"] = {"state": judgement.state, "reasons": list(judgement.report.reasons)}
        rate = rate or f": the evaluation is INVALID ({judgement.report.reasons[0]})"
    note(f"the winner, trial {winner.ask.number}, on untouched data{rate}", data)
    return verdict


def _choose(
    spec: SweepSpec, facts: Facts, rungs: HeldOut, run: RunDir, finalists: Sequence[Ended], note: Note
) -> Ended:
    """The finalist with the best objective, measured anew where sampling is part of it; of equals the first."""
    if len(finalists) == 1 or spec.objective.metric != "win_rate":
        return finalists[0]  # accuracy and margin have no sampling noise: measured again they would be the same
    sign = 1.0 if spec.objective.goal == "maximize" else -1.0
    standing: list[tuple[bool, float, int]] = []
    for place, finalist in enumerate(finalists):
        source = str(run.root / str(finalist.checkpoint))
        each = [_measure(spec, facts, rungs, source, spec.seed + seed).metrics() for seed in FINAL_SEEDS]
        mean = {key: fmean(metrics[key] for metrics in each) for key in each[0]}
        broken = _broken(spec, mean)
        value = fmean([*(metrics[spec.objective.metric] for metrics in each), _found(finalist)])
        standing.append((broken, -sign * value, place))
        data = {"what": "finalist", "trial_id": finalist.ask.trial_id, "metrics": mean, "value": value}
        note(f"finalist trial {finalist.ask.number}: {spec.objective.metric} {value:.4f}", data)
    return finalists[min(standing)[2]]


def _seen(spec: SweepSpec, facts: Facts, rungs: HeldOut, place: str) -> Seen:
    """A contender's model on the rungs: answers are sampled with fresh seeds where they matter, and only there."""
    metric = spec.objective.metric
    seeds = FINAL_SEEDS if metric == "win_rate" else FINAL_SEEDS[:1]
    asked = rungs if metric == "win_rate" or spec.constraints else replace(rungs, prompts=[])
    each = [_measure(spec, facts, asked, place, spec.seed + seed) for seed in seeds]
    mean = {key: fmean(measured.metrics()[key] for measured in each) for key in each[0].metrics()}
    if metric == "win_rate":
        by_sample = [preferences(measured.scores or (), rungs.base_scores or ()) for measured in each]
        return Seen(items=[_both(column) for column in zip(*by_sample, strict=True)], metrics=mean)
    scores = each[0].pair_scores
    assert scores is not None  # of `measure`
    chosen, rejected = averages(scores)
    margins = [w - r for w, r in zip(chosen, rejected, strict=True)]
    return Seen(items=margins if metric == "margin" else [float(margin > 0) for margin in margins], metrics=mean)


def _both(samples: Sequence[float | None]) -> float | None:
    """The mean over samplings; a failed judgement of one leaves the prompt out."""
    known = [sample for sample in samples if sample is not None]
    return fmean(known) if len(known) == len(samples) else None


def _found(finalist: Ended) -> float:
    assert finalist.outcome.value is not None  # it is complete
    return finalist.outcome.value


def _measure(spec: SweepSpec, facts: Facts, held_out: HeldOut, source: str, seed: int) -> Measurement:
    model = load_model(source, dtype=spec.train.dtype)
    return measure_on(spec, facts, held_out, model, load_tokenizer(source), seed=seed)


def _choose_by_judge(
    spec: SweepSpec,
    facts: Facts,
    rungs: HeldOut,
    run: RunDir,
    finalists: Sequence[Ended],
    note: Note,
    judge: PairwiseJudge,
) -> tuple[Ended, Choice | None]:
    """The finalist that the judge prefers, of those that keep the constraints under fresh sampling, if any do."""
    seed = spec.seed + FINAL_SEEDS[0]
    measured = [_measure(spec, facts, rungs, str(run.root / str(each.checkpoint)), seed) for each in finalists]
    sound = [k for k, each in enumerate(measured) if not _broken(spec, each.metrics())] or list(range(len(finalists)))
    if len(sound) == 1:
        return finalists[sound[0]], None
    assert isinstance(spec.judge, JudgeEndpoint)
    budget, _ = shares_of(spec.judge.max_requests, prompts=spec.finals.prompts, finalists=len(finalists))
    answered = _answer_set(spec, facts, rungs, _measure(spec, facts, rungs, facts.base, seed), seed)
    choice = choose(
        judge,
        answered,
        [measured[k].answers for k in sound],
        [finalists[k].ask.trial_id for k in sound],
        budget=budget,
        seed=seed,
        tell=lambda message: note(message, {"what": "judging"}),
    )
    for row in choice.standings.rows:
        (k,) = (k for k in sound if finalists[k].ask.trial_id == row.name)
        data = {"what": "finalist", "trial_id": row.name, "metrics": measured[k].metrics(), "standing": row.as_dict()}
        note(f"finalist trial {finalists[k].ask.number}: preferred over the base {row.estimate}", data)
    best = sound[0] if choice.state == "INVALID" else sound[choice.standings.best]
    return finalists[best], choice


def _report(
    spec: SweepSpec,
    answered: AnswerSet,
    tuned: Measurement,
    judge: PairwiseJudge,
    run: RunDir,
    choice: Choice | None,
    access: JudgeAccess | None,
    *,
    finalists: int,
) -> Judgement:
    endpoint = spec.judge if isinstance(spec.judge, JudgeEndpoint) else None
    pairs, second = len(answered.prompts), None if endpoint is None else endpoint.second
    if endpoint is not None:
        _, pairs = shares_of(endpoint.max_requests, prompts=pairs, finalists=finalists)
    with (
        contextlib.nullcontext()
        if second is None
        else pairwise_judge(second, run.root, access or JudgeAccess()) as other
    ):
        return report(
            judge,
            answered,
            tuned.answers,
            pairs=pairs,
            seed=spec.seed,
            choice=choice,
            second=other,
            second_pairs=0 if endpoint is None else endpoint.second_pairs,
        )


def _evidence(
    spec: SweepSpec, held_out: HeldOut, base: Measurement, tuned: Measurement, judgement: Judgement | None
) -> dict[str, Any]:
    candidate, reference = (
        measured.behaviour(right_answers(spec, held_out.instructions, measured.answers)) for measured in (tuned, base)
    )
    judged = None if judgement is None else judgement.report
    figures = figures_of(candidate, reference, reference, reference_lengths=held_out.reference_lengths, judged=judged)
    return evidence_of(figures, judged, source="finals", reference="base", prompts=len(held_out.prompts))


def _answer_set(spec: SweepSpec, facts: Facts, held_out: HeldOut, base: Measurement, seed: int) -> AnswerSet:
    """The base's answers, and two further samples of it for the control of it against itself."""
    model, tokenizer = load_model(facts.base, dtype=spec.train.dtype), load_tokenizer(facts.base)
    samples = [
        generate(
            model,
            tokenizer,
            held_out.prompts[:SELF_PROMPTS],
            max_new_tokens=spec.evaluation.max_new_tokens,
            stop_ids=facts.stop_ids,
            temperature=spec.evaluation.temperature,
            seed=seed + further,
        )
        for further in (101, 102)
    ]
    return AnswerSet(
        prompts=held_out.instructions,
        chosen=held_out.chosen,
        base=base.answers,
        resampled=[(a.text, b.text) for a, b in zip(*samples, strict=True)],
    )


def _broken(spec: SweepSpec, metrics: dict[str, float]) -> bool:
    return any(violation > 0 for violation in violations(spec.constraints, metrics).values())
