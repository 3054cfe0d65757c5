"""Hand-written stand-ins for what surrounds the control plane: time, Ray Jobs, Ray Serve, and a sweep's driver."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from service.cluster import JobInfo, JobsError
from service.serving.declared import DesiredDeployment
from service.serving.deployer import DeployerError, ObservedDeployment, Rest, State
from simpo.errors import ConfigError
from sweeps.comparison_hash import comparison_hash
from sweeps.comparison_spec import parse_comparison
from sweeps.evaluation_spec import evaluation_hash, parse_evaluation
from sweeps.gates import decide
from sweeps.run_dir import Attempt, RunDir, read_journal
from sweeps.spec import SweepSpec, spec_hash


class FakeClock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self._now = datetime(2026, 9, 1, 9, 30, tzinfo=UTC)
        self._seconds = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._seconds

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self._now += timedelta(seconds=seconds)
        self._seconds += seconds

    def jump(self, seconds: float) -> None:
        """Somebody sets the wall clock; durations are not touched."""
        self._now += timedelta(seconds=seconds)


class FakeJobs:
    """Ray Jobs in memory: jobs do nothing until a test says what became of them.

    `silent`: Ray does not answer. `lose_answers`: so many submits work although their caller sees an error.
    `lose_submits`: so many submits are lost on the way. `refusal`: every submit is refused with these words.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, JobInfo] = {}
        self.entrypoints: dict[str, str] = {}
        self.env: dict[str, Mapping[str, str]] = {}
        self.calls: list[str] = []
        self.log = ""
        self.silent = False
        self.lose_answers = 0
        self.lose_submits = 0
        self.refusal = ""
        self.stops_at_once = True

    def submit(self, submission_id: str, entrypoint: str, env: Mapping[str, str]) -> None:
        self._called("submit")
        if self.refusal:
            raise JobsError(self.refusal, unreachable=False)
        if submission_id in self.jobs:
            raise JobsError(f"Job with submission_id {submission_id} already exists", unreachable=False)
        if self.lose_submits:
            self.lose_submits -= 1
            raise JobsError("the answer did not come in time", unreachable=True)
        self.jobs[submission_id] = JobInfo(submission_id=submission_id, status="RUNNING")
        self.entrypoints[submission_id] = entrypoint
        self.env[submission_id] = dict(env)
        if self.lose_answers:
            self.lose_answers -= 1
            raise JobsError("the answer did not come in time", unreachable=True)

    def get(self, submission_id: str) -> JobInfo | None:
        self._called("get")
        return self.jobs.get(submission_id)

    def list(self) -> dict[str, JobInfo]:
        self._called("list")
        return dict(self.jobs)

    def stop(self, submission_id: str) -> None:
        self._called("stop")
        job = self.jobs.get(submission_id)
        if job is not None and not job.terminal and self.stops_at_once:
            self.become(submission_id, "STOPPED")

    def logs(self, submission_id: str) -> str:
        self._called("logs")
        return self.log

    def become(self, submission_id: str, status: str, message: str = "") -> None:
        """What Ray says of the job from now on."""
        self.jobs[submission_id] = JobInfo(submission_id=submission_id, status=status, message=message)

    def count(self, call: str) -> int:
        """How often a call was made."""
        return self.calls.count(call)

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if self.silent:
            raise JobsError("Ray does not answer", unreachable=True)


class FakeDeployer:
    """Ray Serve in memory. `ready`: what is declared is READY at once. `bad`: model paths that fail to load."""

    def __init__(self) -> None:
        self.declared: dict[str, DesiredDeployment] = {}
        self.states: dict[str, ObservedDeployment] = {}
        self.calls: list[str] = []
        self.ready = True
        self.silent = False
        self.bad: set[str] = set()

    def apply(self, desired: Sequence[DesiredDeployment]) -> None:
        self._called("apply")
        for field, of in (("id", "id"), ("name", "route_prefix")):
            values = [getattr(d, of).removeprefix("/d/") for d in desired if field == "id" or d.base is None]
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ConfigError(f"{', '.join(twice)} is used by more than one deployment; each needs its own", field)
        kept = {d.id: self.states[d.id] for d in desired if self.declared.get(d.id) == d and d.id in self.states}
        self.declared = {d.id: d for d in desired}
        self.states = {d.id: kept.get(d.id) or self._state(d) for d in desired}

    def observe(self) -> dict[str, ObservedDeployment]:
        self._called("observe")
        return dict(self.states)

    def become(self, deployment_id: str, state: State, message: str = "") -> None:
        """What Serve shows of it from now on."""
        revision, idle_s = self.declared[deployment_id].revision, self.declared[deployment_id].idle_s
        self.states[deployment_id] = ObservedDeployment(state=state, message=message, revision=revision, idle_s=idle_s)

    def rests(self, deployment_id: str, rest: Rest) -> None:
        """Whether it is there, of one that may sleep."""
        self.states[deployment_id] = replace(self.states[deployment_id], rest=rest)

    def _state(self, desired: DesiredDeployment) -> ObservedDeployment:
        if desired.model_path in self.bad:
            message = f"no model in {desired.model_path}"
            return ObservedDeployment(
                state="FAILED", message=message, revision=desired.revision, idle_s=desired.idle_s
            )
        state: State = "READY" if self.ready else "PENDING"
        return ObservedDeployment(state=state, revision=desired.revision, idle_s=desired.idle_s)

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if self.silent:
            raise DeployerError("Ray Serve does not answer")


class FakeDriver:
    """What a driver leaves in the run directory, step by step. Making it claims the attempt."""

    def __init__(self, run_dir: Path | RunDir, attempt: int = 1) -> None:
        self.run = run_dir if isinstance(run_dir, RunDir) else RunDir(run_dir)
        self.spec = SweepSpec.model_validate(self.run.read_spec())
        self.attempt: Attempt = self.run.claim(attempt)

    def start(self) -> "FakeDriver":
        """First signs of life."""
        self.attempt.append("job.started", "started", {"attempt": self.attempt.number})
        if before := [other for other in self.run.attempts() if other.number < self.attempt.number]:
            read = {str(other.number): len(read_journal(other)) for other in before}
            self.attempt.append("job.resumed", "resumes", {"read": read})
        self.attempt.append("job.phase", "searching", {"phase": "searching", "progress": 0.0})
        self.beat()
        return self

    def beat(self) -> None:
        """Still alive."""
        self.attempt.beat({})

    def create(self, number: int) -> None:
        """A trial begins."""
        data = {"trial_id": f"trl_{number:04d}", "number": number, "params": {"learning_rate": 1e-4 * (number + 1)}}
        self.attempt.append("trial.created", f"trial {number} starts", data)

    def rung(self, number: int, step: int, value: float) -> None:
        """A trial reaches a rung."""
        where = {"trial_id": f"trl_{number:04d}", "number": number, "step": step}
        metrics = {"win_rate": value, "accuracy": value}
        self.attempt.append("trial.rung", f"trial {number} at step {step}", {**where, "metrics": metrics})

    def end(self, number: int, kind: str = "trial.completed", value: float | None = None, step: int = 120) -> None:
        """A trial ends."""
        trial_id = f"trl_{number:04d}"
        checkpoint = self.attempt.trial_path(trial_id) / "checkpoint"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "config.json").write_text("{}")
        data: dict[str, Any] = {"trial_id": trial_id, "number": number, "step": step, "value": value, "reason": ""}
        data |= {"checkpoint": self.attempt.relative(checkpoint), "seconds": 1.5, "metrics": {}}
        self.attempt.append(kind, f"trial {number} ended", data)

    def search(self, values: Sequence[float]) -> "FakeDriver":
        """Whole trials with these values."""
        for number, value in enumerate(values):
            self.create(number)
            self.rung(number, 30, value / 2)
            self.end(number, value=value)
        best = max(range(len(values)), key=values.__getitem__)
        self.attempt.append(
            "best.updated", "best", {"trial_id": f"trl_{best:04d}", "value": values[best], "params": {}}
        )
        return self

    def finish(self, winner: int = 0, *, last_word: bool = True, evidence: Mapping[str, Any] | None = None) -> None:
        """Publish the result, and say so. `evidence`: what the finals showed."""
        trial_id = f"trl_{winner:04d}"
        checkpoint = self.attempt.relative(self.attempt.trial_path(trial_id) / "checkpoint")
        base = self.run.root / "base"
        base.mkdir(exist_ok=True)
        (base / "config.json").write_text("{}")
        self.attempt.publish_result(
            {
                "attempt": self.attempt.number,
                "spec_hash": spec_hash(self.spec),
                "state": "SUCCEEDED",
                "method": self.spec.method,
                "best": {"trial_id": trial_id, "method": self.spec.method, "value": 0.7, "checkpoint": checkpoint},
                "base": {"checkpoint": str(base)},
                "trained_tokens": 4321,
                "evidence": evidence,
                "leaderboard": [{"rank": 1, "trial_id": trial_id, "value": 0.7, "checkpoint": checkpoint}],
            }
        )
        if last_word:
            self.attempt.append("job.finished", "finished", {})

    def fail(self, message: str, kind: str = "USER_ERROR") -> None:
        """The driver gives up, and says why."""
        self.attempt.append("job.failed", message, {"class": kind, "message": message}, level="error")


class FakeComparer:
    """What the job of a comparison leaves in its directory. Making it claims the attempt."""

    def __init__(self, run_dir: Path, attempt: int = 1) -> None:
        self.run = RunDir(run_dir)
        self.methods = [contender.name for contender in parse_comparison(self.run.read_spec()).methods]
        self.attempt: Attempt = self.run.claim(attempt)
        self.turn(len(self.methods) - 1)

    def turn(self, place: int) -> None:
        """One method's sweep is at work."""
        data = {"phase": "comparing", "progress": place / len(self.methods), "method": self.methods[place]}
        text = f"{self.methods[place]}: method {place + 1} of {len(self.methods)}"
        self.attempt.append("job.phase", text, data)
        self.attempt.beat({})

    def finish(self, *, losers: Sequence[str] = ()) -> None:
        """Publish the result: the last method leads. `losers`: those without a winner."""
        rows = [self._row(rank, name, name in losers) for rank, name in enumerate(reversed(self.methods), 1)]
        result = {
            "attempt": self.attempt.number,
            "spec_hash": comparison_hash(self.run.read_spec()),
            "state": "SUCCEEDED",
            "comparison": {"leaderboard": rows, "verdicts": []},
        }
        self.attempt.publish_result(result)
        self.attempt.append("job.finished", f"{len(self.methods)} methods compared", {})

    def _row(self, rank: int, name: str, lost: bool) -> dict[str, Any]:
        if lost:
            return {"rank": rank, "name": name, "best": None, "failure": "no trial was fit to win"}
        checkpoint = Path("attempts/1/trials/trl_0000/checkpoint")
        directory = self.run.root / "sweeps" / name / checkpoint
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text("{}")
        best = {"trial_id": "trl_0000", "value": 0.7, "checkpoint": str(checkpoint)}
        return {"rank": rank, "name": name, "best": best, "failure": None}


class FakeEvaluator:
    """What the job of an evaluation leaves in its run directory. Making it claims the attempt."""

    def __init__(self, run_dir: Path | RunDir, attempt: int = 1) -> None:
        self.run = run_dir if isinstance(run_dir, RunDir) else RunDir(run_dir)
        self.spec = parse_evaluation(self.run.read_spec())
        self.attempt: Attempt = self.run.claim(attempt)
        self.attempt.append("job.phase", "judging", {"phase": "evaluating", "progress": 0.5})
        self.attempt.beat({})

    def finish(self, evidence: Mapping[str, Any]) -> None:
        """Publish this evidence and what the gate says of it."""
        self.attempt.publish_result(
            {
                "attempt": self.attempt.number,
                "spec_hash": evaluation_hash(self.spec),
                "state": "SUCCEEDED",
                "evidence": evidence,
                "decision": decide(self.spec.gate.conditions, evidence).as_dict(),
            }
        )
        self.attempt.append("job.finished", "finished", {})

    def fail(self, message: str) -> None:
        """The job gives up, and says why."""
        self.attempt.append("job.failed", message, {"class": "USER_ERROR", "message": message}, level="error")


def evidence(figures: Mapping[str, tuple[float, float]], reasons: Sequence[str] = ()) -> dict[str, Any]:
    """Evidence of 100 prompts: figure -> its interval. `reasons`: why it is INVALID."""
    told = {
        name: {"estimate": (low + high) / 2, "low": low, "high": high, "n": 100, "missing": 0}
        for name, (low, high) in figures.items()
    }
    state = "INVALID" if reasons else "VALID"
    return {"state": state, "reasons": list(reasons), "figures": told, "source": "finals", "prompts": 100}
