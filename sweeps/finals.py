"""The finalists meet on rung prompts with fresh sampling; the winner and the base meet on data that chose nobody."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from simpo.errors import SimPOError
from simpo.model import load_model, load_tokenizer
from sweeps.constraints import violations
from sweeps.ledger import Ended
from sweeps.measure import Measurement
from sweeps.prepare import REPORT_SEED, measure_on
from sweeps.prepared import Facts, HeldOut
from sweeps.run_dir import RunDir
from sweeps.spec import SweepSpec

FINAL_SEEDS = (11, 12)
"""Sampling seeds of the choice among finalists: the search has fitted the rung's own seed a little."""

Note = Callable[[str, dict[str, Any]], None]
"""(message, data) of one evaluation."""


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

    def accuracy(self) -> dict[str, dict[str, Any]]:
        """Length-normalised accuracy of both, with intervals."""
        both = {"base": self.base, "winner": self.tuned}
        return {name: measured.preference.accuracy.as_dict() for name, measured in both.items()}


def hold_finals(
    spec: SweepSpec, facts: Facts, prepared: Path, run: RunDir, finalists: Sequence[Ended], note: Note
) -> Verdict:
    """Choose the winner and measure it. There is at least one finalist (see `no_winner`)."""
    winner = _choose(spec, facts, HeldOut.load(prepared / "rungs"), run, finalists, note)
    report = HeldOut.load(prepared / "report")
    seed = spec.seed + REPORT_SEED
    base = _measure(spec, facts, report, facts.base, seed)
    note("the base model on untouched data", {"what": "base", "metrics": base.metrics()})
    assert winner.checkpoint is not None  # finalists have one
    judged = replace(report, base_scores=base.scores)
    tuned = _measure(spec, facts, judged, str(run.root / winner.checkpoint), seed)
    rate = "" if tuned.win_rate is None else f": beats the base on {tuned.win_rate}"
    data = {"what": "winner", "trial_id": winner.ask.trial_id, "metrics": tuned.metrics()}
    note(f"the winner, trial {winner.ask.number}, on untouched data{rate}", data)
    return Verdict(winner=winner, base=base, tuned=tuned)


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
        broken = any(violation > 0 for violation in violations(spec.constraints, mean).values())
        value = fmean([*(metrics[spec.objective.metric] for metrics in each), _found(finalist)])
        standing.append((broken, -sign * value, place))
        data = {"what": "finalist", "trial_id": finalist.ask.trial_id, "metrics": mean, "value": value}
        note(f"finalist trial {finalist.ask.number}: {spec.objective.metric} {value:.4f}", data)
    return finalists[min(standing)[2]]


def _found(finalist: Ended) -> float:
    assert finalist.outcome.value is not None  # it is complete
    return finalist.outcome.value


def _measure(spec: SweepSpec, facts: Facts, held_out: HeldOut, source: str, seed: int) -> Measurement:
    model = load_model(source, dtype=spec.train.dtype)
    return measure_on(spec, facts, held_out, model, load_tokenizer(source), seed=seed)
