"""What must hold of a run directory after any fault: one checker over the journals of all its attempts.

It reads the files itself. Of the code under test it uses the spec, the plan and the check of a checkpoint's hashes.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpo.checkpoint import read_manifest
from simpo.errors import CheckpointError
from sweeps.budget import plan_budget
from sweeps.spec import parse_spec, spec_hash

ENDS = {"trial.completed", "trial.pruned", "trial.failed", "trial.infeasible"}
RETRIES = 2
CLOSING = {"job.finished", "job.failed", "job.stopped"}


@dataclass(kw_only=True)
class Told:
    """One attempt as its files tell it."""

    number: int
    path: Path
    claim: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    accepted: list[dict[str, Any]] = field(default_factory=list)
    """Those that a successor has read, or all."""
    result: dict[str, Any] | None = None

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """Accepted records of these kinds."""
        return [record for record in self.accepted if record["type"] in kinds]


def check(root: Path, *, like: Path | None = None) -> None:
    """Raise AssertionError with every violation. like: an undisturbed run of the same spec; both must agree."""
    found = list(violations(root, like=like))
    assert not found, "\n".join(found)


def violations(root: Path, *, like: Path | None = None) -> Iterator[str]:
    """Every sentence that is not true of the run directory."""
    broken: list[str] = []
    attempts = _read(root, broken)
    yield from broken
    if not attempts:
        yield "no attempt was claimed"
        return
    yield from _claims(attempts)
    for attempt in attempts:
        yield from _one_attempt(attempt)
    yield from _across(attempts)
    yield from _budget(root, attempts)
    yield from _result(root, attempts)
    if like is not None:
        yield from _same(attempts, _read(like, broken))


def _read(root: Path, broken: list[str]) -> list[Told]:
    """All attempts, with what of them counts: a successor's job.resumed says how far it has read."""
    attempts = []
    for path in sorted((root / "attempts").iterdir(), key=lambda path: int(path.name)):
        if not (path / "claim.json").exists():
            broken.append(f"attempt {path.name} was written without a claim")
            continue
        attempt = Told(number=int(path.name), path=path, claim=json.loads((path / "claim.json").read_text()))
        for segment in sorted(path.glob("journal/*.jsonl")):
            records = [json.loads(line) for line in segment.read_text().splitlines()]
            if not records or int(segment.stem) != records[0]["seq"]:
                broken.append(f"attempt {path.name}: segment {segment.name} does not begin with its number")
            attempt.records += records
        if (path / "result.json").exists():
            attempt.result = json.loads((path / "result.json").read_text())
        attempts.append(attempt)
    fences: dict[int, int] = {}
    for attempt in reversed(attempts):
        attempt.accepted = [r for r in attempt.records if r["seq"] <= fences.get(attempt.number, r["seq"])]
        for record in attempt.of("job.resumed"):
            fences |= {int(number): seq for number, seq in record["data"]["read"].items()}
    return attempts


def _claims(attempts: list[Told]) -> Iterator[str]:
    numbers = [attempt.number for attempt in attempts]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"claims do not rise by one: {numbers}"
    moments = [attempt.claim["at"] for attempt in attempts]
    if moments != sorted(moments):
        yield f"claims were not made in the order of their numbers: {moments}"
    for attempt in attempts:
        if attempt.claim["attempt"] != attempt.number:
            yield f"attempt {attempt.number} holds the claim of attempt {attempt.claim['attempt']}"


def _one_attempt(attempt: Told) -> Iterator[str]:
    where = f"attempt {attempt.number}"
    sequence = [record["seq"] for record in attempt.records]
    if sequence != list(range(1, len(sequence) + 1)):
        yield f"{where}: its numbers are broken: {sequence}"
    if foreign := {record["attempt"] for record in attempt.records} - {attempt.number}:
        yield f"{where}: holds records of attempts {sorted(foreign)}"
    kinds = [record["type"] for record in attempt.records]
    if kinds and kinds[0] != "job.started":
        yield f"{where}: begins with {kinds[0]}"
    closings = [place for place, kind in enumerate(kinds) if kind in CLOSING]
    if closings and closings != [len(kinds) - 1]:
        yield f"{where}: goes on after its last word"
    trials = {record["data"]["trial_id"] for record in attempt.records if record["type"].startswith("trial.")}
    for trial_id in sorted(trials):
        life = [r for r in attempt.records if r["type"].startswith("trial.") and r["data"]["trial_id"] == trial_id]
        for wrong in _one_life(life):
            yield f"{where}, {trial_id}: {wrong}"


def _one_life(life: list[dict[str, Any]]) -> Iterator[str]:
    """created, then at most RETRIES + 1 times started with rising steps, then one end at most."""
    kinds = [record["type"] for record in life]
    if kinds[0] != "trial.created" or kinds.count("trial.created") != 1:
        yield f"was created {kinds.count('trial.created')} times, first came {kinds[0]}"
    if kinds.count("trial.started") > RETRIES + 1:
        yield f"was started {kinds.count('trial.started')} times, {RETRIES} retries are allowed"
    ends = [place for place, kind in enumerate(kinds) if kind in ENDS]
    if ends and ends != [len(kinds) - 1]:
        yield f"goes on after its end: {kinds[ends[0] :]}"
    step, started = 0, False
    for record in life[1:]:
        kind, at = record["type"], record["data"].get("step")
        if kind == "trial.started":
            started, step = True, at
        elif kind in ("trial.progress", "trial.rung"):
            if not started:
                yield f"{kind} before it was started"
            if at < step or (at == step and kind == "trial.progress"):
                yield f"step {at} came after step {step}"
            step = at


def _across(attempts: list[Told]) -> Iterator[str]:
    over: dict[str, int] = {}
    points: dict[str, Any] = {}
    values: dict[tuple[str, int], float] = {}
    for attempt in attempts:
        created = attempt.of("trial.created")
        if created and attempt.number > 1:
            yield from _fence(attempts, attempt, created[0]["seq"])
        for record in created:
            trial_id, point = record["data"]["trial_id"], [record["data"].get(key) for key in ("params", "cutoffs")]
            if trial_id in over:
                yield f"{trial_id} ended in attempt {over[trial_id]} and was created again in attempt {attempt.number}"
            if points.setdefault(trial_id, point) != point:
                yield f"{trial_id} is another point in attempt {attempt.number}: {point}, was {points[trial_id]}"
        for record in attempt.of("trial.started"):
            yield from _origin(attempt, record["data"])
        for record in attempt.of("trial.rung"):
            data = record["data"]
            if (known := values.setdefault((data["trial_id"], data["step"]), data["value"])) != data["value"]:
                yield f"{data['trial_id']} at step {data['step']} is {data['value']}, was {known}"
        for record in attempt.of(*ENDS):
            data = record["data"]
            over.setdefault(data["trial_id"], attempt.number)
            own = f"attempts/{attempt.number}/trials/{data['trial_id']}/"
            if data["checkpoint"] and not data["checkpoint"].startswith(own):
                yield f"{data['trial_id']} ended in attempt {attempt.number} with {data['checkpoint']}"


def _fence(attempts: list[Told], attempt: Told, first: int) -> Iterator[str]:
    """Who goes on says how far it has read, of everybody, before it builds on it."""
    resumed = [record for record in attempt.accepted if record["type"] == "job.resumed"]
    if len(resumed) != 1 or resumed[0]["seq"] > first:
        yield f"attempt {attempt.number} created trials without saying what it had read"
        return
    for other in attempts:
        read = resumed[0]["data"]["read"].get(str(other.number))
        if other.number < attempt.number and (read is None or read > len(other.records)):
            yield f"attempt {attempt.number} says {read} of {len(other.records)} records of attempt {other.number}"


def _origin(attempt: Told, data: dict[str, Any]) -> Iterator[str]:
    """A trial goes on from its own checkpoint, in this attempt or an earlier one, at that checkpoint's step."""
    if data["from"] is None:
        if data["step"] != 0:
            yield f"{data['trial_id']} began at step {data['step']} from nowhere"
        return
    _, number, _, trial_id, rung = data["from"].split("/")
    if int(number) > attempt.number:
        yield f"attempt {attempt.number} goes on from {data['from']}, which is of a later attempt"
    if (trial_id, rung) != (data["trial_id"], f"rung-{data['step']:06d}"):
        yield f"{data['trial_id']} began at step {data['step']} from {data['from']}"


def _budget(root: Path, attempts: list[Told]) -> Iterator[str]:
    plan = plan_budget(parse_spec(json.loads((root / "spec.json").read_text())))
    trials = {record["data"]["trial_id"] for attempt in attempts for record in attempt.of("trial.created")}
    if len(trials) > plan.trials:
        yield f"{len(trials)} trials were created, the budget has {plan.trials}"
    for attempt in attempts:
        for record in attempt.of("trial.progress", "trial.rung", *ENDS):
            if record["data"]["step"] > plan.steps:
                yield f"{record['data']['trial_id']} went to step {record['data']['step']} of {plan.steps}"


def _result(root: Path, attempts: list[Told]) -> Iterator[str]:
    """At most one, in the highest attempt; all trials are over, each once; what it names lies there whole."""
    for attempt in attempts[:-1]:
        if attempt.result is not None:
            yield f"attempt {attempt.number} has a result, but attempt {attempts[-1].number} was claimed"
    result = attempts[-1].result
    if result is None:
        return
    if result["attempt"] != attempts[-1].number:
        yield f"the result of attempt {attempts[-1].number} says attempt {result['attempt']}"
    if result["spec_hash"] != spec_hash(parse_spec(json.loads((root / "spec.json").read_text()))):
        yield "the result belongs to another spec"
    created = {record["data"]["trial_id"] for attempt in attempts for record in attempt.of("trial.created")}
    ends = Counter(record["data"]["trial_id"] for attempt in attempts for record in attempt.of(*ENDS))
    for trial_id in sorted(created | set(ends)):
        if ends[trial_id] != 1:
            yield f"{trial_id} has {ends[trial_id]} accepted ends"
    if sum(result["trials"].values()) != len(created):
        yield f"the result counts {result['trials']}, {len(created)} trials were created"
    for row in [result["best"], *result["leaderboard"]]:
        if row["checkpoint"] is None:
            continue
        try:
            manifest = read_manifest(root / row["checkpoint"])
        except CheckpointError as error:
            yield f"{row['trial_id']}: {error}"
        else:
            if manifest["trial_id"] != row["trial_id"]:
                yield f"{row['checkpoint']} is of {manifest['trial_id']}, not of {row['trial_id']}"


def _same(attempts: list[Told], others: list[Told]) -> Iterator[str]:
    mine, theirs = attempts[-1].result, others[-1].result
    if mine is None or theirs is None:
        yield "there is no result to compare"
        return
    for key in ("best", "accuracy", "win_rate", "trials", "probes"):
        first, second = ({k: v for k, v in r[key].items() if k != "checkpoint"} for r in (mine, theirs))
        if first != second:
            yield f"{key} is {first}, undisturbed it is {second}"
    for trial_id in sorted(_ends(attempts).keys() | _ends(others).keys()):
        end, undisturbed = _ends(attempts).get(trial_id), _ends(others).get(trial_id)
        if end != undisturbed:
            yield f"{trial_id} ended as {end}, undisturbed as {undisturbed}"


def _ends(attempts: list[Told]) -> dict[str, Any]:
    keys = ("params", "state", "step", "value", "rungs", "constraints")
    records = [record for attempt in attempts for record in attempt.of(*ENDS)]
    return {record["data"]["trial_id"]: {key: record["data"][key] for key in keys} for record in records}
