"""The life of one attempt, from spec.json to result.json: claim, prepare, search, finals, publish."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from simpo.memory import keep_freed_pages
from sweeps.board import reference_line
from sweeps.budget import WallClock, plan_budget
from sweeps.desk import Desk
from sweeps.engine import WarmEngine
from sweeps.finals import Bases, Verdict, hold_finals, no_winner
from sweeps.hours import Hours
from sweeps.judges import JudgeAccess, check_judges
from sweeps.leaderboard import leaderboard
from sweeps.ledger import Ended, Ledger
from sweeps.limits import Watch, budget_facts, ended_by
from sweeps.prepare import Splits, prepare, read_inputs
from sweeps.prepared import Facts, load_facts, sealed_for
from sweeps.pulse import Pulse
from sweeps.ray_session import Room, ray_session, room_for
from sweeps.retrainings import Retrained, Retrainings, weights_of
from sweeps.run_dir import Attempt, Record, RunDir
from sweeps.samplers import check_installed
from sweeps.search_facts import search_facts
from sweeps.spec import SweepSpec, parse_spec, spec_hash
from sweeps.stopping import Stop, ending_told, stoppable
from sweeps.trial import quiet_transformers
from sweeps.warm_start import check_sources
from sweeps.working_copy import check_supported


def run_attempt(
    run: RunDir,
    *,
    number: int | None = None,
    ray_address: str | None = None,
    listeners: Sequence[Callable[[Record], None]] = (),
    build_threads: int = 1,
    access: JudgeAccess | None = None,
    references: Path | None = None,
    engine: WarmEngine | None = None,
    bases: Bases | None = None,
) -> dict[str, Any]:
    """Run one attempt of the sweep in `run` and return its result. `number` None: the next free one.

    `build_threads` make the base model, where one is made; more than 1 only where OpenMP waits passively (see
    `sweeps.__main__`): with its usual spinning, two threads on a busy machine take ten times as long as one.
    `access`: keys of judges behind a network, which no spec holds. `references`: where reference log-probabilities are
    kept, if not in the place of the run's store (`RunDir.references`). `engine`: runs the trials, in processes that an
    earlier sweep has warmed; None starts some for this sweep. `bases`: what sweeps that share a base know of it.
    Raises AttemptClaimed, SimPOError (the user's to mend), Stopped (a signal, or a higher claim).
    """
    spec = parse_spec(run.read_spec(), source=str(run.spec_path))
    check_supported(spec, run.place)
    attempt = run.claim_next() if number is None else run.claim(number)
    attempt.listeners.extend(listeners)
    clock = WallClock(spec.budget.wall_clock_s)
    keep_freed_pages()
    torch.set_num_threads(1)  # as in the trials, so that the base is measured as they are
    quiet_transformers()
    started = {
        "spec_hash": spec_hash(spec),
        "name": spec.name,
        "method": spec.method,
        "plan": plan_budget(spec).as_dict(),
    }
    attempt.append("job.started", f"attempt {attempt.number} of {spec.name} starts", started)
    with stoppable(at_once=False) as stop, Pulse(attempt, stop.superseded) as pulse, ending_told(attempt, stop):
        return _Attempt(
            spec, attempt, clock, pulse, stop, ray_address, build_threads, access or JudgeAccess(), references
        ).run(engine, bases)


class _Attempt:
    """The phases, and what they hand on."""

    def __init__(
        self,
        spec: SweepSpec,
        attempt: Attempt,
        clock: WallClock,
        pulse: Pulse,
        stop: Stop,
        ray_address: str | None,
        build_threads: int,
        access: JudgeAccess,
        references: Path | None,
    ) -> None:
        self.spec = spec
        self.attempt = attempt
        self.clock = clock
        self.pulse = pulse
        self.stop = stop
        self.ray_address = ray_address
        self.build_threads = min(build_threads, spec.parallel.trials)
        self.access = access
        self.references = references or attempt.run.references
        self.desk = Desk(attempt, clock, stop.cancelled)
        workers = spec.parallel.workers_per_trial
        self.watch = Watch(attempt, clock, Hours.of(attempt, workers), spec.budget.accelerator_hours)
        pulse.heed = self._heed
        self._told = -1.0

    def run(self, engine: WarmEngine | None, bases: Bases | None = None) -> dict[str, Any]:
        with self.clock.enter("preparing"):
            sealed, splits = self._inputs()
        # Ray comes before the slow part of preparing, so that a Ray that cannot start says so at once.
        with self._ray() as room, self._warm(engine, room) as warm:
            with self.clock.enter("preparing"):
                prepared, facts = self._prepare(sealed, splits)
                self.attempt.run.refresh()  # the last words of a predecessor that was dying
                for warning in facts.warnings:
                    self.attempt.append("reference.warning", warning, level="warn")
                self.attempt.append("reference.ready", reference_line(facts.reference), facts.reference)
            ledger = Ledger(self.attempt, self.spec, prepared, self.clock)
            self.pulse.counts, self.pulse.pids = ledger.counts, lambda: set(ledger.pids)
            self._heed()  # hours that earlier attempts have spent, before a trial starts
            with self.clock.enter("searching"):
                self._phase("searching", 0.0, f"searching: {ledger.study.plan.trials} trials")
                try:
                    with self.desk.searching(ledger):
                        warm.search(ledger, self.stop)
                finally:
                    ledger.close()
            ended = ended_by(ledger, self.clock)
            finalists = ledger.finalists()
            retrained = self._retrain(ledger, finalists, warm)
            self._gather(finalists, retrained)
        with self.clock.enter("finals"):
            self._phase("finals", 0.0, f"finals: {len(finalists)} finalists")
            if not finalists:
                raise no_winner(ledger.ended.values())
            run, mixtures = self.attempt.run, self.attempt.path / "mixtures"
            what = (self.spec, facts, prepared, run, finalists, self._evaluated, self.access)
            verdict = hold_finals(*what, retrained=retrained, mixtures=mixtures, bases=bases)
        judged = None if verdict.judgement is None else verdict.judgement.spent
        requests = None if judged is None else judged.requests
        spent = budget_facts(self.spec, ledger, self.watch.hours.spent, ended, requests)
        result = self._result(facts, ledger, verdict) | {"budget": spent}
        if verdict.contest is not None and not run.place.holds(run.root / result["best"]["checkpoint"]):
            run.place.push(run.root / result["best"]["checkpoint"])  # a mixture was made here
        self.attempt.publish_result(result)
        for folder in weights_of(run, finalists):  # the winner's weights are of the search's own seed
            run.place.drop(folder)
        self._phase("done", 1.0, "done")
        best = result["best"]
        self.attempt.append("job.finished", f"the winner is trial {best['trial_id']}", {"best": best})
        return result

    def _inputs(self) -> tuple[Path | None, Splits | None]:
        """(what a predecessor sealed, None), or (None, the rows to prepare); before either, a look at the judges."""
        check_judges(self.spec.judge, self.attempt.run.root, self.access)
        check_installed(self.spec)
        check_sources(self.spec, self.attempt.run)
        earlier = [other.prepared for other in self.attempt.run.attempts() if other.number < self.attempt.number]
        earlier.insert(0, self.attempt.run.prepared)
        for directory in earlier[1:]:
            self.attempt.run.place.pull_prepared(directory)
        sealed = sealed_for(spec_hash(self.spec), earlier)
        if sealed is not None:
            return sealed, None
        self._phase("preparing", 0.0, "reading the preferences")
        return None, read_inputs(self.spec, self.attempt.prepared)

    def _prepare(self, sealed: Path | None, splits: Splits | None) -> tuple[Path, Facts]:
        if splits is not None:
            directory = self.attempt.prepared
            told, store = self._preparing, self.references
            made = prepare(self.spec, splits, directory, told, threads=self.build_threads, references=store)
            self.attempt.run.place.push(directory)
            return directory, made
        assert sealed is not None
        facts = load_facts(sealed)
        assert facts is not None  # sealed_for has just read it
        whole = sealed == self.attempt.run.prepared
        self._phase(
            "preparing", 1.0, f"as prepared by {'the comparison' if whole else f'attempt {sealed.parent.name}'}"
        )
        return sealed, facts

    @contextmanager
    def _ray(self) -> Iterator[Room]:
        """Ray for the length of the context."""
        with ray_session(self.ray_address, self.spec.parallel):
            self.stop.install()  # ray.init has put its own handlers in place
            yield room_for(self.spec.parallel)

    @contextmanager
    def _warm(self, engine: WarmEngine | None, room: Room) -> Iterator[WarmEngine]:
        """The engine that runs the trials: its processes start while the data is prepared."""
        if engine is not None:
            yield engine
            return
        with WarmEngine(self.attempt.path / "engine", room, self.attempt.run).running() as own:
            yield own

    def _retrain(self, ledger: Ledger, finalists: Sequence[Ended], engine: WarmEngine) -> dict[int, list[Retrained]]:
        """The finalists under further training seeds, by number."""
        books = Retrainings(ledger, finalists)
        if books.wanted and finalists:
            with self.clock.enter("retraining"):
                self._phase("retraining", 0.0, f"{len(finalists)} finalists, {books.wanted} further training seeds")
                engine.search(books, self.stop)
        return {finalist.ask.number: books.of(finalist) for finalist in finalists}

    def _gather(self, finalists: Sequence[Ended], retrained: Mapping[int, Sequence[Retrained]]) -> None:
        """See that all contenders' checkpoints are here: they may have been trained on other nodes."""
        kept = [each.checkpoint for each in finalists]
        kept += [each.checkpoint for several in retrained.values() for each in several]
        for checkpoint in filter(None, kept):
            self.attempt.run.place.pull(self.attempt.run.root / checkpoint)

    def _result(self, facts: Facts, ledger: Ledger, verdict: Verdict) -> dict[str, Any]:
        run, winner, contest = self.attempt.run, verdict.winner, verdict.contest
        counts = ledger.counts()
        counts.pop("RUNNING")
        base = Path(facts.base)
        made_here = base.is_absolute() and base.is_relative_to(run.root)
        return {
            "attempt": self.attempt.number,
            "spec_hash": spec_hash(self.spec),
            "state": "SUCCEEDED",
            "method": self.spec.method,
            "objective": self.spec.objective.model_dump(),
            "best": {
                "trial_id": winner.ask.trial_id,
                "method": self.spec.method,
                "params": winner.ask.params,
                "value": winner.outcome.value,
                "checkpoint": winner.checkpoint,
                "step": winner.outcome.step,
                **({} if contest is None else contest.made()),
            },
            **({} if contest is None else {"finals": contest.as_dict()}),
            "leaderboard": leaderboard(
                list(ledger.ended.values()),
                self.spec.objective,
                verdict.judged,
                self.spec.other_objectives,
                None if contest is None else contest.by_trial(),
            ),
            **search_facts(ledger),
            "trials": counts,
            "win_rate": None if verdict.win_rate is None else verdict.win_rate.as_dict(),
            "judge": None if verdict.judgement is None else verdict.judgement.as_dict(),
            "evidence": verdict.evidence,
            "accuracy": verdict.accuracy(),
            "base": {"checkpoint": self.attempt.relative(base) if made_here else facts.base},
            "probes": {"base": verdict.base.probes, "winner": verdict.tuned.probes},
            "pairs": facts.pairs,
            "dropped_rows": facts.dropped,
            "truncated_rows": facts.truncated,
            "reference": facts.reference,
            "seconds": {phase: round(seconds, 3) for phase, seconds in self.clock.seconds.items()},
            "peak_memory_bytes": self.pulse.peak_memory_bytes,
        }

    def _preparing(self, share: float, message: str) -> None:
        """Every twentieth of the way, and at the end."""
        self.stop.check()
        if share == 1.0 or share - self._told >= 0.05:
            self._told = share
            self._phase("preparing", share, message)

    def _phase(self, phase: str, progress: float, message: str) -> None:
        self.attempt.append("job.phase", message, {"phase": phase, "progress": round(progress, 3)})

    def _heed(self) -> None:
        """People's edits, and the hours. From the pulse's thread, each second."""
        self.desk.heed()
        self.watch.look(self.desk.tell)

    def _evaluated(self, message: str, data: dict[str, Any]) -> None:
        self.stop.check()
        self.attempt.append("eval.completed", message, data)
