"""Earlier sweeps that teach the sampler of this one (`warm_start` of a spec).

Only values that mean the same may be compared: the earlier sweep must have had the same method, base, data, seed and
way of training and measuring, down to the same held-out rows. Its space and budget of trials may differ; trials that
lie outside this space are left out.
"""

import hashlib
from pathlib import Path

from simpo.errors import ConfigError, SimPOError
from sweeps.outcome import Lesson, Outcome
from sweeps.recorded import recorded_trials
from sweeps.run_dir import Attempt, RunDir, read_journal
from sweeps.spec import SweepSpec, parse_spec

_SAME = (
    *("method", "base_model", "dataset", "seed", "tokens", "train", "optim", "evaluation", "judge"),
    *("objective", "other_objectives", "constraints"),
)
"""Fields of a spec that decide what a trial's value means."""

RECORD = "search.warmed"
"""The journal's record of what was learnt: a resumed attempt reads it, whatever became of the earlier sweeps."""


def check_sources(spec: SweepSpec, run: RunDir) -> None:
    """Look at the specs of the earlier sweeps. Raises ConfigError: not found, or not comparable, with the field."""
    for index in range(len(spec.warm_start)):
        _source(spec, run, index)


def lessons_of(attempt: Attempt, spec: SweepSpec, prepared: Path) -> list[Lesson]:
    """Finished trials of the earlier sweeps, in order; noted in the attempt's journal. Raises ConfigError."""
    if not spec.warm_start:
        return []
    recorded = _recorded(attempt)
    lessons = _read(spec, attempt.run, prepared) if recorded is None else recorded
    told = [{"params": lesson.params, **lesson.outcome.as_dict()} for lesson in lessons]
    message = f"the sampler learns from {len(lessons)} trials of {', '.join(spec.warm_start)}"
    attempt.append(RECORD, message, {"sources": list(spec.warm_start), "trials": told})
    return lessons


def _recorded(attempt: Attempt) -> list[Lesson] | None:
    for other in attempt.run.attempts():
        for record in read_journal(other) if other.number < attempt.number else ():
            if record["type"] == RECORD:
                return [
                    Lesson(params=each["params"], outcome=Outcome.from_dict(each)) for each in record["data"]["trials"]
                ]
    return None


def _read(spec: SweepSpec, run: RunDir, prepared: Path) -> list[Lesson]:
    lessons = []
    for index, name in enumerate(spec.warm_start):
        source = _source(spec, run, index)
        seals = [other.prepared for other in source.attempts()] + [source.prepared]
        if _held_out(prepared) not in [_held_out(place) for place in seals]:
            raise _refused(
                index, f"{name} was measured on other held-out rows: its data have changed, so start without it"
            )
        for _, trial in sorted(recorded_trials(source, below=1 + source.highest()).items()):
            if trial.outcome is not None and trial.outcome.value is not None and trial.outcome.state != "FAILED":
                lessons.append(Lesson(params=trial.params, outcome=trial.outcome))
    return lessons


def _source(spec: SweepSpec, run: RunDir, index: int) -> RunDir:
    name = spec.warm_start[index]
    place = Path(name).expanduser() if "/" in name else run.root.absolute().parent / name
    if place.absolute() == run.root.absolute():
        raise _refused(index, "is this very sweep: a sweep goes on by itself where it ended")
    source = RunDir(place)
    try:
        earlier = parse_spec(source.read_spec(), source=str(source.spec_path))
    except SimPOError as error:
        raise _refused(index, f"no sweep can be read at {place}: {error}") from error
    for field in _SAME:
        if getattr(earlier, field) != getattr(spec, field):
            raise _refused(index, f"{name} had another {field}, so its values cannot be compared: start without it")
    if earlier.budget.steps != spec.budget.steps:
        raise _refused(
            index, f"{name} trained for {earlier.budget.steps} steps: set budget.steps to it, or leave it out"
        )
    return source


def _held_out(prepared: Path) -> str | None:
    """What the rungs measure on; None where nothing was prepared."""
    try:
        return hashlib.sha256((prepared / "rungs.safetensors").read_bytes()).hexdigest()
    except OSError:
        return None


def _refused(index: int, why: str) -> ConfigError:
    return ConfigError(why, f"warm_start.{index}")
