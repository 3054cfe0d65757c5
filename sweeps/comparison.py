"""The life of a comparison: prepare once, one sweep a method in the same warm processes, comparison.json last.

    <out>/spec.json             the comparison's spec, written once
    <out>/shared/               data, base and held-out sets (`sweeps.comparison_prepare`)
    <out>/sweeps/<method>/      an ordinary sweep each: `show` and `resume` understand it
    <out>/references/           reference log-probabilities of all of them
    <out>/comparison.json       written last; the table (.md) and the page (.html) beside it

Killed anywhere and started again it goes on: what is sealed is used, a sweep with a result is not run again, one
without is resumed from its journal.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from simpo.memory import keep_freed_pages
from sweeps.budget import WallClock
from sweeps.comparison_prepare import prepare_shared, references, seal_for
from sweeps.comparison_result import MethodStory, comparison_result, read_method
from sweeps.comparison_spec import parse_comparison
from sweeps.driver import run_attempt
from sweeps.engine import WarmEngine
from sweeps.finals import Bases, NoWinner
from sweeps.judges import JudgeAccess
from sweeps.ray_session import ray_session, room_for
from sweeps.run_dir import Record, RunDir, last_result
from sweeps.spec import SweepSpec
from sweeps.stopping import Stop, stoppable
from sweeps.trial import quiet_transformers

Listener = Callable[[str, Record], None]
"""(name of the method, a record of its sweep's journal)."""


def run_comparison(
    root: Path,
    *,
    ray_address: str | None = None,
    listener: Listener = lambda name, record: None,
    preparing: Callable[[float, str], None] = lambda share, message: None,
    build_threads: int = 1,
    access: JudgeAccess | None = None,
) -> dict[str, Any]:
    """Run, or go on with, the comparison whose spec lies in `root`; returns comparison.json.

    A method of which no trial is fit to win loses; its random trials count all the same. Raises SimPOError for what the
    user must mend, Stopped for a signal or a second driver.
    """
    root = root.absolute()
    spec = parse_comparison(RunDir(root).read_spec(), source=str(root / "spec.json"))
    sweeps = spec.sweeps()
    runs = {name: RunDir(root / "sweeps" / name) for name in sweeps}
    for name, run in runs.items():
        run.write_spec(sweeps[name].model_dump(mode="json"))
    open_ones = {name: sweep for name, sweep in sweeps.items() if not _finished(runs[name])}
    failures: dict[str, str] = {}
    clock = WallClock(None)
    if open_ones:
        driver = _Comparison(root, sweeps, runs, clock, listener, preparing, access or JudgeAccess())
        failures = driver.run(open_ones, ray_address, build_threads)
    stories = {name: read_method(run, sweeps[name], failures.get(name)) for name, run in runs.items()}
    result = comparison_result(spec, stories, {**clock.seconds, **_of_sweeps(stories)})
    _publish(root / "comparison.json", result)
    return result


class _Comparison:
    """The sweeps that are still to run."""

    def __init__(
        self,
        root: Path,
        sweeps: Mapping[str, SweepSpec],
        runs: Mapping[str, RunDir],
        clock: WallClock,
        listener: Listener,
        preparing: Callable[[float, str], None],
        access: JudgeAccess,
    ) -> None:
        self.root = root
        self.sweeps = sweeps
        self.runs = runs
        self.clock = clock
        self.listener = listener
        self.preparing = preparing
        self.access = access
        self.bases = Bases()

    def run(self, names: Mapping[str, SweepSpec], ray_address: str | None, build_threads: int) -> dict[str, str]:
        """Run these; returns why some have no winner."""
        keep_freed_pages()
        torch.set_num_threads(1)  # as in the trials
        quiet_transformers()
        parallel = next(iter(names.values())).parallel
        failures = dict[str, str]()
        with stoppable() as stop, ray_session(ray_address, parallel):
            stop.install()  # ray.init has put its own handlers in place
            engine = WarmEngine(self.root / "engine", room_for(parallel))
            with engine.running():  # its processes come up while we prepare
                with self.clock.enter("preparing"):
                    self._prepare(names, stop, build_threads)
                for name in names:
                    stop.check()
                    try:
                        self._sweep(name, engine)
                    except NoWinner as error:
                        failures[name] = str(error)
        return failures

    def _sweep(self, name: str, engine: WarmEngine) -> None:
        def told(record: Record) -> None:
            self.listener(name, record)

        shared: dict[str, Any] = {"access": self.access, "references": references(self.root), "bases": self.bases}
        run_attempt(self.runs[name], listeners=[told], engine=engine, **shared)

    def _prepare(self, names: Mapping[str, SweepSpec], stop: Stop, threads: int) -> None:
        def told(share: float, message: str) -> None:
            stop.check()
            self.preparing(share, message)

        facts = prepare_shared(self.root, self.sweeps, told, threads=threads)
        for name, sweep in names.items():
            stop.check()
            seal_for(self.runs[name], sweep, self.root, facts)


def _finished(run: RunDir) -> bool:
    return last_result(run) is not None


def _of_sweeps(stories: Mapping[str, MethodStory]) -> dict[str, float]:
    """Seconds of searching and finals over all sweeps, however many drivers it took."""
    spent = [(story.result or {}).get("seconds") or {} for story in stories.values()]
    return {phase: sum(seconds.get(phase, 0.0) for seconds in spent) for phase in ("searching", "finals")}


def _publish(path: Path, result: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(result, indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
