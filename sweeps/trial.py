"""One trial after another in one warm process: the model, data and imports are paid once, a further trial costs a copy.

`train_trial` is a generator that knows nothing of Ray; `run_trial` is the function that Tune calls. A trial ends
itself at a rung, at a broken constraint or at the deadline: nothing is ever killed (a killed worker group can
keep its resources for ever).
"""

import gc
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from simpo.checkpoint import restore, save_checkpoint
from simpo.config import OptimConfig
from simpo.errors import CheckpointError, NonFiniteStep, SimPOError, StorageError
from simpo.fit import TrainState, fit
from simpo.memory import apply_checkpointing, keep_freed_pages
from simpo.methods import method_from_dict, method_to_dict
from simpo.policy_hash import policy_record
from simpo.sharding import gathered
from sweeps.budget import plan_budget
from sweeps.constraints import violations
from sweeps.outcome import Outcome, State
from sweeps.prepare import RUNG_SEED, measure_on
from sweeps.signals import Signals, Word
from sweeps.spec import SweepSpec
from sweeps.way_back import RUNG, WayBack, way_back
from sweeps.workbench import Workbench as Workbench
from sweeps.workbench import quiet_transformers as quiet_transformers

PROGRESS_REPORTS = 12
"""About so many progress reports a trial: a curve for people, a trickle for the journal."""


UpdateKind = Literal["started", "progress", "rung", "end"]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a trial is told. Travels as plain JSON values in Tune's config."""

    trial_id: str
    params: dict[str, Any]
    """learning_rate and hyperparameters."""
    cutoffs: dict[int, float]
    """Step of a rung -> objective value to reach."""
    run_dir: str
    prepared: str
    """Directory sealed by sweeps.prepare."""
    directory: str
    """Where this trial keeps its checkpoints."""
    resume: list[str]
    """Predecessors' directories of this trial, to go on from the newest valid checkpoint."""
    deadline: float | None
    """Unix seconds after which the trial stops itself."""
    workers: int = 1
    start: int = 0
    """Step at which its parent's checkpoint must let it begin, or a later one of its own."""
    until: int | None = None
    """Step at which it ends, measured and with a checkpoint for its heirs; None: it goes to full budget."""
    peers: int | None = None
    """Trials that run with it at most, itself included; None: as many as there are slots."""
    bar: float | None = None
    """Objective at `until` that it must beat if anybody is to go on from it, which alone is worth a checkpoint."""
    restart: bool = False
    """Whether it may train from the start where its parent's checkpoint is gone: it is the parent, for longer."""
    signals: str | None = None
    """File of `sweeps.signals` that it heeds before each step."""
    replicate: int = 0
    """Training seed: 0 is the search's own, another one is a finalist's retraining (`sweeps.replicate`)."""
    store: str | None = None
    """The object store that `run_dir` is a working copy of, on each node its own; None: all nodes see one directory."""

    def as_config(self) -> dict[str, Any]:
        """JSON form."""
        return {"assignment": json.dumps(asdict(self))}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "Assignment":
        """The inverse of `as_config`."""
        values = json.loads(config["assignment"])
        return Assignment(**{**values, "cutoffs": {int(step): value for step, value in values["cutoffs"].items()}})


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a trial tells its driver."""

    kind: UpdateKind
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    """progress: the newest step report. rung and end: measured on held-out data."""
    interval: tuple[float, float] | None = None
    """95 % interval of the objective, where it was measured."""
    outcome: Outcome | None = None
    """Set at the end."""
    checkpoint: str | None = None
    """Absolute path of the full-budget checkpoint; of a start, of the one that it goes on from."""
    damaged: list[tuple[str, str]] = field(default_factory=list)
    """Of a start: path and reason of the newer checkpoints that could not be read."""
    fault: str = ""
    """Set at an end that is not the trial's: what stops the whole attempt, a full disk."""
    seconds: float = 0.0
    """Since the trial began."""
    pid: int = 0
    """Of the reporting process, for the memory count."""
    node: str = ""
    """Ray's id of the node that it runs on; empty without Ray."""

    def as_result(self) -> dict[str, Any]:
        """One text value: Tune flattens nested results."""
        # done: Tune then ends the trial with this result, instead of asking twice more whether there is another.
        return {"update": json.dumps(asdict(self)), "step": self.step, "done": self.kind == "end"}

    @staticmethod
    def from_result(result: Mapping[str, Any]) -> "Update | None":
        """The inverse of `as_result`; None for a result that holds no update."""
        if "update" not in result:
            return None
        values = json.loads(result["update"])
        outcome = values.pop("outcome")
        interval = values.pop("interval")
        return Update(
            **values,
            interval=None if interval is None else (interval[0], interval[1]),
            outcome=None if outcome is None else Outcome.from_dict(outcome),
        )


def train_trial(
    bench: Workbench, assignment: Assignment, *, clock: Callable[[], float] = time.time
) -> Iterator[Update]:
    """Train one trial, yielding updates; the last one has the outcome. Inside a process group every rank runs this.

    Raises what is a bug or a lost machine; a setting that trains to NaN is an outcome.
    """
    began = time.monotonic()
    step = 0
    rungs: dict[int, float] = {}

    def update(kind: UpdateKind, metrics: Mapping[str, float], **more: Any) -> Update:
        seconds = round(time.monotonic() - began, 3)
        return Update(kind=kind, step=step, metrics=dict(metrics), seconds=seconds, pid=os.getpid(), **more)

    try:
        state, found = _begin(bench, assignment)
        step, rungs = state.step, found.rungs
        yield update("started", {}, checkpoint=found.source, damaged=found.damaged)
        total, metric = state.total_steps, bench.spec.objective.metric
        rung_steps = (*plan_budget(bench.spec).rung_steps, total)
        every = max(1, total // PROGRESS_REPORTS)
        method = method_from_dict({"name": bench.spec.method, **_hyperparameters(assignment.params)})
        signals = Signals(assignment.signals, assignment.trial_id, assignment.deadline, clock, _agreed)
        if assignment.signals is not None:
            signals.fetch = bench.place.looking(Path(assignment.signals))
        if step == assignment.until:  # its process died between the checkpoint and the last word
            measured, interval = _measured(bench)
            outcome = _verdict(bench.spec, assignment, step, total, rungs, measured)
            yield update("end", measured, interval=interval, outcome=outcome)
            return
        for report in fit(state, bench.orders.plan, method, reference=bench.orders.reference, stop=signals.ended):
            step = report.step
            if step % every == 0 or step in rung_steps:
                yield update("progress", report.metrics())
            if step not in rung_steps:
                continue
            measured, interval = _measured(bench)
            rungs[step] = measured[metric]
            outcome = _verdict(bench.spec, assignment, step, total, rungs, measured)
            if step < total:
                yield update("rung", measured, interval=interval)
            if outcome is not None:
                kept = _keep(bench, assignment, state, rungs, "final") if outcome.state == "COMPLETE" else None
                if step == assignment.until and outcome.state == "PRUNED" and _hopeful(bench.spec, assignment, outcome):
                    _keep(bench, assignment, state, rungs, f"rung-{step:06d}")  # its heirs go on from here
                yield update("end", measured, interval=interval, outcome=outcome, checkpoint=kept)
                return
            _keep(bench, assignment, state, rungs, f"rung-{step:06d}")
        ended_early = Outcome(
            state="PRUNED",
            step=step,
            value=rungs[max(rungs)] if rungs else None,
            rungs=rungs,
            reason=signals.reason,
        )
        yield update("end", {}, outcome=ended_early)
    except StorageError:
        raise  # not this trial's failure: no trial could be kept now
    except (NonFiniteStep, SimPOError) as error:
        failed = Outcome(state="FAILED", step=step, rungs=rungs, reason=str(error))
        yield update("end", {}, outcome=failed)


def run_trial(config: dict[str, Any]) -> None:
    """The function that Tune calls, in a process that has run trials before or has not."""
    import ray  # noqa: PLC0415  # lazy: train_trial and its tests work without Ray
    from ray import tune  # noqa: PLC0415  # lazy: the same

    def tell(update: Update) -> None:
        tune.report(replace(update, node=ray.get_runtime_context().get_node_id()).as_result())

    assignment = Assignment.from_config(config)
    keep_freed_pages()
    torch.set_num_threads(min(config["threads"], len(os.sched_getaffinity(0))))
    try:
        for update in train_trial(workbench(assignment), assignment):
            tell(update)
    except StorageError as error:
        tell(Update(kind="end", step=0, fault=str(error), pid=os.getpid()))
    except Exception as error:  # a bug here must end one trial with its reason, not the sweep
        _BENCHES.clear()
        failed = Outcome(state="FAILED", reason=f"{type(error).__name__}: {error}")
        tell(Update(kind="end", step=0, outcome=failed, pid=os.getpid()))
    finally:
        gc.collect()


_BENCHES: dict[str, Workbench] = {}


def workbench(assignment: Assignment) -> Workbench:
    """This process's workbench for a prepared directory, made on first use. One is kept."""
    if assignment.prepared not in _BENCHES:
        _BENCHES.clear()
        _BENCHES[assignment.prepared] = Workbench(assignment.run_dir, assignment.prepared, assignment.store)
    return _BENCHES[assignment.prepared]


def _begin(bench: Workbench, assignment: Assignment) -> tuple[TrainState, WayBack]:
    """A fresh state, or one from the newest valid checkpoint of this attempt or a predecessor."""
    spec = bench.spec
    torch.manual_seed(spec.seed)
    optim = OptimConfig(learning_rate=float(assignment.params["learning_rate"]), **spec.optim.model_dump())
    model = bench.fresh_model()
    bench.orders.enter(assignment.replicate, model)
    apply_checkpointing(model, bench.orders.plan, spec.train.checkpointing)

    def restored(rung: Path) -> TrainState:
        return restore(rung, model, optim, spec.budget.steps)

    places = (assignment.directory, *assignment.resume)
    lost = bench.place.pull_newest(places, RUNG)
    found = way_back(places, restored, at_least=assignment.start)
    found.damaged += lost
    if found.state is not None:
        return found.state, found
    if assignment.start and not assignment.restart:
        raise CheckpointError(f"no valid checkpoint of step {assignment.start} is left of the trial it goes on from")
    if found.damaged:
        bench.orders.enter(assignment.replicate, bench.fresh_model())  # a rung may have been read halfway
    return TrainState.fresh(model, optim, spec.budget.steps), found


def _verdict(
    spec: SweepSpec,
    assignment: Assignment,
    step: int,
    total: int,
    rungs: Mapping[int, float],
    measured: Mapping[str, float],
) -> Outcome | None:
    """How the trial ends at this rung, or None when it goes on."""
    value = rungs[step]
    broken = violations(spec.constraints, measured)

    def ended(state: State, reason: str = "") -> Outcome:
        others = {str(objective.metric): measured[objective.metric] for objective in spec.other_objectives}
        return Outcome(
            state=state, step=step, value=value, rungs=dict(rungs), constraints=broken, others=others, reason=reason
        )

    if any(violation > 0 for violation in broken.values()):
        named = [
            f"{probe} is {measured.get(probe, math.nan):.3g}, wanted {spec.constraints[probe]}"
            for probe, violation in broken.items()
            if violation > 0
        ]
        return ended("INFEASIBLE", ", ".join(named))
    if step == total:
        return ended("COMPLETE")
    if step == assignment.until:
        return ended("PRUNED", "its generation is over")
    cutoff = assignment.cutoffs.get(step)
    sign = 1 if spec.objective.goal == "maximize" else -1
    if cutoff is not None and sign * value < sign * cutoff:
        return ended("PRUNED", f"{spec.objective.metric} {value:.4g} at step {step} misses the cut-off {cutoff:.4g}")
    return None


def _hopeful(spec: SweepSpec, assignment: Assignment, outcome: Outcome) -> bool:
    """Whether anybody may go on from a trial that has come to the end of its generation."""
    value, bar, sign = outcome.value, assignment.bar, spec.objective.sign
    return bar is None or value is None or sign * value > sign * bar


def _measured(bench: Workbench) -> tuple[dict[str, float], tuple[float, float]]:
    """Held-out metrics and the objective's interval, measured by rank 0 and known to all, as are its errors."""
    if not dist.is_initialized():
        return _measure(bench)
    told: list[Any] = [None]
    with gathered(bench.model):
        if dist.get_rank() == 0:
            try:
                told = [_measure(bench)]
            except SimPOError as error:
                told = [error]
        dist.broadcast_object_list(told, src=0)
    if isinstance(told[0], SimPOError):
        raise told[0]
    metrics, interval = told[0]
    return metrics, interval


def _measure(bench: Workbench) -> tuple[dict[str, float], tuple[float, float]]:
    seed = bench.spec.seed + RUNG_SEED
    measured = measure_on(bench.spec, bench.facts, bench.rungs, bench.model, bench.tokenizer, seed=seed)
    return measured.metrics(), measured.interval(bench.spec.objective.metric)


def _agreed(word: Word) -> Word:
    """What rank 0 says, by its clock and its view of the signals: all ranks must end, or hold, together."""
    told: list[Any] = [word]
    if dist.is_initialized():
        dist.broadcast_object_list(told, src=0)
    agreed: Word = told[0]
    return agreed


def _keep(bench: Workbench, assignment: Assignment, state: TrainState, rungs: Mapping[int, float], name: str) -> str:
    """Save a checkpoint (every rank calls, rank 0 writes). Rung checkpoints can be resumed, the final one is served."""
    params = dict(assignment.params)
    rate = params.pop("learning_rate")
    saved = save_checkpoint(
        Path(assignment.directory) / name,
        model=state.model,
        tokenizer=bench.tokenizer,
        state=state if name != "final" else None,
        servable=name == "final",
        manifest={
            "step": state.step,
            "trial_id": assignment.trial_id,
            "method": method_to_dict(method_from_dict({"name": bench.spec.method, **_hyperparameters(params)})),
            "learning_rate": rate,
            "seed": bench.spec.seed,
            **({"replicate": assignment.replicate} if assignment.replicate else {}),
            "rungs": dict(rungs),
            **policy_record(bench.tokenizer, bench.spec.tokens),
            "spec_hash": bench.facts.spec_hash,
        },
    )
    bench.place.push(saved)
    return str(saved)


def _hyperparameters(params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key != "learning_rate"}
