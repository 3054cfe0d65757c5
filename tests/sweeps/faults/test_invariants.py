"""The checker finds each violation when it is there, and nothing in a sound directory."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.run_dir import Attempt, RunDir
from sweeps.spec import parse_spec, spec_hash
from tests.sweeps.faults.invariants import check, violations

pytestmark = pytest.mark.quick

SPEC = parse_spec({"name": "checked", "objective": "accuracy", "budget": {"trials": 2, "steps": 12}})
POINT = {"params": {"learning_rate": 1e-3}, "cutoffs": {}}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attempt 1 ends trial 0 and dies in trial 1; attempt 2 takes that one from its rung and publishes."""
    run = RunDir(tmp_path_factory.mktemp("sound"))
    run.write_spec(SPEC.model_dump(mode="json"))
    first, second = run.claim(1), None
    first.append("job.started", "")
    _begin(first, 0)
    _begin(first, 1)
    _rung(first, 0)
    _rung(first, 1)
    _end(first, 0)
    second = run.claim(2)
    second.append("job.started", "")
    second.append("job.resumed", "", {"read": {"1": 8}, "over": 1, "running": 1})
    _begin(second, 1, step=4, source="attempts/1/trials/trl_0001/rung-000004")
    _end(second, 1)
    second.publish_result(_result(run))
    second.append("job.finished", "")
    return run.root


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> RunDir:
    return RunDir(shutil.copytree(sound, tmp_path / "run"))


def test_a_sound_directory_has_no_violation(sound: Path) -> None:
    check(sound, like=sound)


def _edit(change: Callable[[list[dict[str, Any]]], object], number: int = 1) -> Callable[[RunDir], None]:
    """A violation in an attempt's records: each a segment of its own, as the code under test writes them."""

    def apply(run: RunDir) -> None:
        paths = sorted(run.attempt(number).path.glob("journal/*.jsonl"))
        records = [json.loads(path.read_text()) for path in paths]
        change(records)
        for path in paths:
            path.unlink()
        for record in records:
            (paths[0].parent / f"{record['seq']:08d}.jsonl").write_text(json.dumps(record) + "\n")

    return apply


def _again(kind: str, **data: Any) -> Callable[[RunDir], None]:
    """A record more at the end of an attempt that has none after it."""

    def apply(run: RunDir) -> None:
        number = data.pop("attempt", 2)
        seq = 1 + max(int(path.stem) for path in run.attempt(number).path.glob("journal/*.jsonl"))
        record = {"seq": seq, "attempt": number, "type": kind, "data": data}
        (run.attempt(number).path / "journal" / f"{seq:08d}.jsonl").write_text(json.dumps(record) + "\n")

    return apply


def _in_file(name: str, **changes: Any) -> Callable[[RunDir], None]:
    def apply(run: RunDir) -> None:
        path = run.root / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def _no_word_of_it(run: RunDir) -> None:
    _edit(lambda records: records[1].update(type="job.phase"), 2)(run)


def _third_trial(run: RunDir) -> None:
    """Inside attempt 2, before its last word."""

    def change(records: list[dict[str, Any]]) -> None:
        more = [json.loads(json.dumps(records[2])), json.loads(json.dumps(records[4]))]
        for record in more:
            record["data"]["trial_id"], record["data"]["checkpoint"] = "trl_0002", None
        records[5:5] = more
        for seq, record in enumerate(records, 1):
            record["seq"] = seq

    _edit(change, 2)(run)


VIOLATIONS: dict[str, tuple[Callable[[RunDir], object], str]] = {
    "a gap in the claims": (
        lambda run: (run.root / "attempts/2").rename(run.root / "attempts/3"),
        "do not rise by one",
    ),
    "claims out of order": (_in_file("attempts/2/claim.json", at="2001-01-01T00:00:00Z"), "not made in the order"),
    "another's claim": (_in_file("attempts/2/claim.json", attempt=1), "holds the claim of attempt 1"),
    "no claim": (lambda run: (run.root / "attempts/1/claim.json").unlink(), "written without a claim"),
    "a lost record": (_edit(lambda records: records.pop(3)), "numbers are broken"),
    "a record of another": (_edit(lambda records: records[3].update(attempt=2)), r"holds records of attempts \[2\]"),
    "no beginning": (_edit(lambda records: records[0].update(type="job.phase")), "begins with job.phase"),
    "a word after the last": (_again("job.phase"), "goes on after its last word"),
    "two creations": (_edit(lambda records: records[2].update(type="trial.created")), "was created 2 times"),
    "too many starts": (
        _edit(lambda records: [record.update(records[2], seq=record["seq"]) for record in records[3:6]]),
        "was started 4 times",
    ),
    "progress after the end": (
        _again("trial.progress", attempt=1, trial_id="trl_0000", step=12),
        "goes on after its end",
    ),
    "steps that fall": (_edit(lambda records: records[5]["data"].update(step=-1)), "step -1 came after step 0"),
    "an ended trial again": (_edit(lambda records: records[2]["data"].update(trial_id="trl_0000"), 2), "created again"),
    "another point": (_edit(lambda records: records[2]["data"].update(params={}), 2), "is another point"),
    "another value": (
        _edit(lambda records: records[4].update(type="trial.rung") or records[4]["data"].update(step=4, value=0.1), 2),
        "trl_0001 at step 4 is 0.1, was 0.5",
    ),
    "from nowhere": (_edit(lambda records: records[3]["data"].update({"from": None}), 2), "step 4 from nowhere"),
    "from another's checkpoint": (
        _edit(lambda records: records[3]["data"].update({"from": "attempts/1/trials/trl_0000/rung-000004"}), 2),
        "trl_0001 began at step 4 from attempts/1/trials/trl_0000",
    ),
    "from a later attempt": (
        _edit(lambda records: records[2]["data"].update({"step": 4, "from": "attempts/2/trials/trl_0000/rung-000004"})),
        "which is of a later attempt",
    ),
    "weights of another attempt": (
        _edit(lambda records: records[4]["data"].update(checkpoint="attempts/1/trials/trl_0001/final"), 2),
        "ended in attempt 2 with attempts/1",
    ),
    "no word of what was read": (_no_word_of_it, "without saying what it had read"),
    "more read than there was": (_edit(lambda records: records[1]["data"].update(read={"1": 99}), 2), "says 99 of 8"),
    "beyond the budget": (_third_trial, "3 trials were created, the budget has 2"),
    "beyond the steps": (_edit(lambda records: records[4]["data"].update(step=13), 2), "step 13 of 12"),
    "an orphan's result": (
        lambda run: shutil.copy(run.root / "attempts/2/result.json", run.root / "attempts/1/result.json"),
        "attempt 1 has a result, but attempt 2 was claimed",
    ),
    "a result of another attempt": (_in_file("attempts/2/result.json", attempt=1), "says attempt 1"),
    "a result of another spec": (_in_file("attempts/2/result.json", spec_hash="0"), "another spec"),
    "a trial without an end": (_edit(lambda records: records[4].update(type="job.phase"), 2), "has 0 accepted ends"),
    "miscounted": (_in_file("attempts/2/result.json", trials={"COMPLETE": 1}), "2 trials were created"),
    "damaged weights": (
        lambda run: (run.root / "attempts/2/trials/trl_0001/final/weights").write_bytes(b"?"),
        "differs from its hash",
    ),
    "lost weights": (lambda run: shutil.rmtree(run.root / "attempts/2/trials/trl_0001/final"), "not a finished"),
    "swapped weights": (
        _in_file("attempts/2/trials/trl_0001/final/manifest.json", trial_id="trl_0000"),
        "is of trl_0000, not of trl_0001",
    ),
    "another winner": (_in_file("attempts/2/result.json", accuracy={"winner": 1.0}), "accuracy is .*, undisturbed"),
    "another end": (_edit(lambda records: records[4]["data"].update(value=0.9), 2), "trl_0001 ended as .* undisturbed"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_each_violation_is_found(run: RunDir, sound: Path, name: str) -> None:
    harm, words = VIOLATIONS[name]
    harm(run)
    with pytest.raises(AssertionError, match=words):
        check(run.root, like=sound)


def test_what_an_orphan_writes_late_is_no_violation_and_counts_for_nothing(run: RunDir, sound: Path) -> None:
    _again("trial.failed", attempt=1, trial_id="trl_0001", number=1, step=12, checkpoint=None)(run)
    assert list(violations(run.root, like=sound)) == []


def _begin(attempt: Attempt, number: int, *, step: int = 0, source: str | None = None) -> None:
    where = {"trial_id": f"trl_{number:04d}", "number": number}
    attempt.append("trial.created", "", {**where, **POINT})
    attempt.append("trial.started", "", {**where, "step": step, "from": source})


def _rung(attempt: Attempt, number: int) -> None:
    attempt.append("trial.rung", "", {"trial_id": f"trl_{number:04d}", "number": number, "step": 4, "value": 0.5})


def _end(attempt: Attempt, number: int) -> None:
    trial_id = f"trl_{number:04d}"
    where = attempt.trial_path(trial_id) / "final"
    where.mkdir(parents=True)
    (where / "weights").write_bytes(b"0")
    files = {"weights": hashlib.sha256(b"0").hexdigest()}
    manifest = {"format": "simpo-checkpoint/1", "step": 12, "trial_id": trial_id, "files": files}
    (where / "manifest.json").write_text(json.dumps(manifest))
    outcome = {"state": "COMPLETE", "value": 0.5, "rungs": {"4": 0.5}, "constraints": {}, "params": POINT["params"]}
    data = {"trial_id": trial_id, "number": number, "step": 12, "checkpoint": attempt.relative(where), **outcome}
    attempt.append("trial.completed", "", data)


def _result(run: RunDir) -> dict[str, Any]:
    rows = [
        {"trial_id": f"trl_{number:04d}", "checkpoint": f"attempts/{number + 1}/trials/trl_{number:04d}/final"}
        for number in (0, 1)
    ]
    measured: dict[str, Any] = {"accuracy": {}, "win_rate": {}, "probes": {}, "trials": {"COMPLETE": 2}}
    return {"attempt": 2, "spec_hash": spec_hash(SPEC), "best": rows[0], "leaderboard": rows, **measured}
