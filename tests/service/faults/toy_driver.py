"""A sweep's driver that takes a second: what the real one leaves in a run directory, with sums in the place of models.

`python -m tests.service.faults.toy_driver [-m sweeps] run SPEC --out DIR --attempt N`: the words the service gives to
Ray, so a script that calls this can stand where the service expects its Python. Claim, pulse, fence and the answer to
SIGTERM are those of `sweeps`; a trial is a chain of hashes, carried from rung to rung by checkpoints: who resumes from
the wrong one, or twice, ends with other values than an undisturbed run.

`TOY_HOME` names the directory of the test. While a file `hold` lies in it no step is made from the trial and rung on
that stand in it; `step_s` holds the seconds of a step, `clock` an offset of the driver's wall clock; `deaf`: a driver
that has no pulse, looks for no successor and heeds no SIGTERM. Each start adds a line to `starts`.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sweeps import run_dir
from sweeps.pulse import Pulse
from sweeps.recorded import RESUMED, accepted_records, trials_in
from sweeps.run_dir import Attempt, AttemptClaimed, RunDir
from sweeps.spec import SweepSpec, parse_spec, spec_hash
from sweeps.stopping import Stop, Stopped, ending_told, stoppable

RUNGS = (4, 8, 12)
TRIALS = 4
HOME = "TOY_HOME"


def body(name: str) -> dict[str, Any]:
    """What a client POSTs for a sweep that this driver can run."""
    budget = {"trials": TRIALS, "steps": RUNGS[-1]}
    return {"name": name, "budget": budget, "objective": "accuracy", "finals": {"candidates": 1}}


def main() -> int:
    """Run one attempt."""
    words = argparse.ArgumentParser()
    words.add_argument("-m", dest="module")
    words.add_argument("verb")
    words.add_argument("spec", type=Path)
    words.add_argument("--out", type=Path, required=True)
    words.add_argument("--attempt", type=int, required=True)
    words.add_argument("--public-judge", action="store_true")
    given = words.parse_args()
    home = Path(os.environ[HOME])
    _set_clock(home)
    run = RunDir(given.out)
    with (home / "starts").open("a") as starts:
        starts.write(json.dumps({"run": run.root.name, "attempt": given.attempt, "pid": os.getpid()}) + "\n")
    try:
        attempt = run.claim(given.attempt)
    except AttemptClaimed as claimed:
        sys.stderr.write(f"{claimed}\n")
        return 2
    spec = parse_spec(run.read_spec())
    return _Toy(home, attempt, spec).run()


class _Toy:
    def __init__(self, home: Path, attempt: Attempt, spec: SweepSpec) -> None:
        self.home = home
        self.attempt = attempt
        self.spec = spec
        self.deaf = (home / "deaf").exists()

    def run(self) -> int:
        """0 with a result, 130 when it was told to end."""
        self.attempt.append("job.started", "starts", {"spec_hash": spec_hash(self.spec), "name": self.spec.name})
        try:
            with ExitStack() as stack:
                stop = stack.enter_context(stoppable())
                if self.deaf:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                else:
                    stack.enter_context(Pulse(self.attempt, stop.superseded))
                    stack.enter_context(ending_told(self.attempt, stop))
                self._search(stop)
        except Stopped:
            return 130
        return 0

    def _search(self, stop: Stop) -> None:
        before = accepted_records(self.attempt.run, below=self.attempt.number)
        known = trials_in(before)
        if before:
            read = {str(other.number): len(records) for other, records in before}
            self.attempt.append(RESUMED, "resumes", {"read": read})
        self.attempt.append("job.phase", "searching", {"phase": "searching", "progress": 0.0})
        rows = []
        for number in range(TRIALS):
            past = known.get(number)
            if past is not None and past.outcome is not None:
                rows.append(_row(number, past.outcome.value, past.facts["checkpoint"]))
                continue
            rows.append(self._trial(number, past.directories if past else [], stop))
            best = max(rows, key=lambda row: row["value"])
            self.attempt.append("best.updated", "best", {"trial_id": best["trial_id"], "value": best["value"]})
        rows.sort(key=lambda row: -row["value"])
        result = {"attempt": self.attempt.number, "spec_hash": spec_hash(self.spec), "state": "SUCCEEDED"}
        measured = {"accuracy": {}, "win_rate": {}, "probes": {}, "trials": {"COMPLETE": TRIALS}}
        self.attempt.publish_result({**result, "best": rows[0], "leaderboard": rows, **measured})
        self.attempt.append("job.finished", "finished")

    def _trial(self, number: int, earlier: list[Path], stop: Stop) -> dict[str, Any]:
        trial_id, params = f"trl_{number:04d}", {"learning_rate": 1e-4 * (number + 1)}
        where = {"trial_id": trial_id, "number": number}
        self.attempt.append("trial.created", "starts", {**where, "params": params, "cutoffs": {}})
        step, state, source = _newest(earlier)
        origin = None if source is None else self.attempt.relative(source)
        self.attempt.append("trial.started", "runs", {**where, "step": step, "from": origin, "pid": os.getpid()})
        rungs = {}
        for rung in RUNGS:
            # One that did this rung before says the same again: the first word counts.
            if rung <= step:
                continue
            self._step(number, rung, stop)
            state = hashlib.sha256(f"{state}:{number}:{rung}".encode()).hexdigest()
            path = _checkpoint(self.attempt.trial_path(trial_id) / f"rung-{rung:06d}", trial_id, rung, state)
            value = rungs[str(rung)] = _value(state)
            self.attempt.append("trial.rung", "rung", {**where, "step": rung, "value": value, "metrics": {"v": value}})
        value = _value(state)
        path = _checkpoint(self.attempt.trial_path(trial_id) / "final", trial_id, RUNGS[-1], state)
        outcome = {"state": "COMPLETE", "value": value, "rungs": {}, "constraints": {}, "reason": "", "step": RUNGS[-1]}
        facts = {"params": params, "checkpoint": self.attempt.relative(path), "metrics": {}, "interval": None}
        self.attempt.append("trial.completed", "ends", {**where, **facts, **outcome, "seconds": 1.0})
        return _row(number, value, self.attempt.relative(path))

    def _step(self, number: int, rung: int, stop: Stop) -> None:
        time.sleep(float((self.home / "step_s").read_text()))
        while self._held(number, rung):
            stop.check()
            time.sleep(0.05)

    def _held(self, number: int, rung: int) -> bool:
        try:
            words = (self.home / "hold").read_text().split()
        except FileNotFoundError:
            return False
        return (number, rung) >= tuple(map(int, words))


def _row(number: int, value: float | None, checkpoint: str | None) -> dict[str, Any]:
    return {"trial_id": f"trl_{number:04d}", "value": value or 0.0, "checkpoint": checkpoint}


def _value(state: str) -> float:
    return int(state[:12], 16) / 16**12


def _newest(directories: list[Path]) -> tuple[int, str, Path | None]:
    """(step, state, directory) of the newest whole checkpoint; step 0 where there is none."""
    found = [(0, "", None)]
    for path in (path for directory in directories for path in directory.glob("rung-*")):
        if (path / "manifest.json").exists():
            found.append((int(path.name[5:]), (path / "weights").read_text(), path))  # type: ignore[arg-type]
    return max(found, key=lambda checkpoint: checkpoint[0])


def _checkpoint(path: Path, trial_id: str, step: int, state: str) -> Path:
    """As `simpo.checkpoint` writes them: beside its place, the manifest last, then renamed."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    (partial / "weights").write_text(state)
    (partial / "config.json").write_text("{}")
    files = {name: hashlib.sha256((partial / name).read_bytes()).hexdigest() for name in ("weights", "config.json")}
    manifest = {"format": "simpo-checkpoint/1", "step": step, "trial_id": trial_id, "files": files}
    (partial / "manifest.json").write_text(json.dumps(manifest))
    if path.exists():
        shutil.rmtree(path)
    return partial.rename(path)


def _set_clock(home: Path) -> None:
    """This machine's wall clock is wrong: all moments that this process writes are off by so much."""
    if (home / "clock").exists():
        offset = timedelta(seconds=float((home / "clock").read_text()))
        run_dir._now = lambda: (datetime.now(UTC) + offset).isoformat()


if __name__ == "__main__":
    sys.exit(main())
