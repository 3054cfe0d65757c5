"""A trial without Ray: how it ends, how it goes on, that nothing of one trial reaches the next."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from simpo.checkpoint import read_manifest
from sweeps.prepare import prepare, read_inputs
from sweeps.run_dir import RunDir
from sweeps.spec import SweepSpec
from sweeps.trial import Assignment, Update, Workbench, train_trial
from tests.sweeps.tiny import tiny_base, tiny_spec

POINT = {"learning_rate": 1e-2, "beta": 2.0, "gamma_beta_ratio": 0.5}


def _prepared(tmp_path: Path, **changes: Any) -> tuple[SweepSpec, Path]:
    spec = tiny_spec(tiny_base(tmp_path / "base"), **changes)
    RunDir(tmp_path).write_spec(spec.model_dump(mode="json"))
    prepare(spec, read_inputs(spec, tmp_path / "prepared"), tmp_path / "prepared", lambda share, message: None)
    return spec, tmp_path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _prepared(tmp_path_factory.mktemp("trial"))[1]


@pytest.fixture(scope="module")
def bench(place: Path) -> Workbench:
    return Workbench(str(place), str(place / "prepared"))


def _assignment(place: Path, directory: Path, **changes: Any) -> Assignment:
    told = Assignment(
        trial_id="trl_0000",
        params=POINT,
        cutoffs={},
        run_dir=str(place),
        prepared=str(place / "prepared"),
        directory=str(directory),
        resume=[],
        deadline=None,
    )
    return dataclasses.replace(told, **changes)


def _end(updates: list[Update]) -> tuple[str, int, str]:
    outcome = updates[-1].outcome
    assert updates[-1].kind == "end"
    assert outcome is not None
    assert all(update.outcome is None for update in updates[:-1])
    return outcome.state, outcome.step, outcome.reason


def test_a_full_trial(bench: Workbench, place: Path, tmp_path: Path) -> None:
    updates = list(train_trial(bench, _assignment(place, tmp_path)))
    assert _end(updates) == ("COMPLETE", 12, "")
    assert [update.step for update in updates if update.kind == "progress"] == list(range(1, 13))
    assert [update.step for update in updates if update.kind == "rung"] == [4, 8]
    outcome = updates[-1].outcome
    assert outcome is not None
    assert sorted(outcome.rungs) == [4, 8, 12]
    assert outcome.value == outcome.rungs[12] == updates[-1].metrics["accuracy"]
    assert updates[-1].checkpoint == str(tmp_path / "final")
    manifest = read_manifest(tmp_path / "final")
    assert (manifest["step"], manifest["learning_rate"], manifest["method"]["name"]) == (12, 1e-2, "simpo")
    assert Update.from_result(updates[-1].as_result()) == updates[-1]


def test_trials_do_not_touch_each_other(bench: Workbench, place: Path, tmp_path: Path) -> None:
    def losses(directory: str, rate: float) -> list[float]:
        told = _assignment(place, tmp_path / directory, params={**POINT, "learning_rate": rate})
        return [update.metrics["loss"] for update in train_trial(bench, told) if update.kind == "progress"]

    first, other, again = losses("a", 1e-2), losses("b", 5e-2), losses("c", 1e-2)
    assert first == again != other


def test_a_trial_on_more_cores_says_the_same(bench: Workbench, place: Path, tmp_path: Path) -> None:
    """Who has the cores of empty slots must not differ from who has not."""
    told = [list(train_trial(bench, _assignment(place, tmp_path / "one")))]
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        told.append(list(train_trial(bench, _assignment(place, tmp_path / "other"))))
    finally:
        torch.set_num_threads(before)
    one, other = ([{**update.metrics, "seconds": 0.0} for update in updates] for updates in told)
    assert len(one) > 12 and other == [pytest.approx(metrics, rel=1e-5, abs=1e-6) for metrics in one]


def test_a_replicate_is_another_order_from_the_same_weights_and_leaves_the_next_trial_alone(
    bench: Workbench, place: Path, tmp_path: Path
) -> None:
    def losses(directory: str, replicate: int, **changes: Any) -> list[float]:
        told = _assignment(place, tmp_path / directory, replicate=replicate, **changes)
        return [update.metrics["loss"] for update in train_trial(bench, told) if update.kind == "progress"]

    own, first, second = losses("a", 0), losses("b", 1), losses("c", 2)
    assert len({tuple(each) for each in (own, first, second)}) == 3
    assert (losses("d", 1), losses("e", 0)) == (first, own)
    assert read_manifest(tmp_path / "b" / "final")["replicate"] == 1
    assert "replicate" not in read_manifest(tmp_path / "a" / "final")
    other = losses("f", 1, params={**POINT, "beta": 3.0})
    assert other[0] != first[0] and other != losses("g", 2, params={**POINT, "beta": 3.0})


@pytest.mark.parametrize("source", ["own directory", "a predecessor's"])
def test_a_resumed_trial_equals_the_undisturbed_one(bench: Workbench, place: Path, tmp_path: Path, source: str) -> None:
    whole = list(train_trial(bench, _assignment(place, tmp_path / "whole")))
    broken = train_trial(bench, _assignment(place, tmp_path / "dead"))
    while next(broken).step < 10:  # beyond the second rung
        pass
    broken.close()
    told = _assignment(place, tmp_path / "dead")
    if source == "a predecessor's":
        told = _assignment(place, tmp_path / "next", resume=[str(tmp_path / "dead")])
    rest = list(train_trial(bench, told))
    assert (rest[0].kind, rest[0].step, rest[1].step) == ("started", 8, 9), "it starts from the rung at step 8"
    assert rest[0].checkpoint == str(tmp_path / "dead" / "rung-000008")
    assert rest[-1].outcome == whole[-1].outcome
    assert rest[-1].metrics == whole[-1].metrics


def test_a_damaged_rung_is_passed_over(bench: Workbench, place: Path, tmp_path: Path) -> None:
    list(train_trial(bench, _assignment(place, tmp_path)))
    (tmp_path / "rung-000008" / "model.safetensors").write_bytes(b"torn")
    shutil.rmtree(tmp_path / "final")
    rest = list(train_trial(bench, _assignment(place, tmp_path)))
    assert (rest[0].step, rest[1].step) == (4, 5), "the rung at step 4 is the newest whole one"
    assert [path for path, _ in rest[0].damaged] == [str(tmp_path / "rung-000008")]
    assert "differs from its hash" in rest[0].damaged[0][1]


def test_a_cutoff_stops_a_trial_at_its_rung(bench: Workbench, place: Path, tmp_path: Path) -> None:
    updates = list(train_trial(bench, _assignment(place, tmp_path, cutoffs={4: 0.0, 8: 1.01})))
    state, step, reason = _end(updates)
    assert (state, step) == ("PRUNED", 8)
    assert "accuracy" in reason
    assert "misses the cut-off 1.01" in reason
    assert updates[-1].checkpoint is None
    assert not (tmp_path / "final").exists()


def test_a_value_at_the_cutoff_goes_on(bench: Workbench, place: Path, tmp_path: Path) -> None:
    updates = list(train_trial(bench, _assignment(place, tmp_path / "a")))
    at_rung = next(update.metrics["accuracy"] for update in updates if update.kind == "rung")
    again = list(train_trial(bench, _assignment(place, tmp_path / "b", cutoffs={4: at_rung})))
    assert _end(again)[0] == "COMPLETE"


def test_the_deadline_stops_a_trial_between_steps(bench: Workbench, place: Path, tmp_path: Path) -> None:
    times = iter(range(100))
    told = _assignment(place, tmp_path, deadline=6.5)
    updates = list(train_trial(bench, told, clock=lambda: float(next(times))))
    state, step, reason = _end(updates)
    assert (state, step) == ("PRUNED", 7)
    assert "wall-clock" in reason
    assert updates[-1].outcome is not None
    assert updates[-1].outcome.value == updates[-1].outcome.rungs[4], "its last rung is its value"


def test_a_broken_constraint_ends_a_trial_at_the_rung(tmp_path: Path) -> None:
    _, place = _prepared(tmp_path, constraints={"eos_rate": ">=0.9", "repetition": "<=0.9"})
    bench = Workbench(str(place), str(place / "prepared"))
    told = _assignment(place, tmp_path / "t", params={**POINT, "learning_rate": 1e-4})
    updates = list(train_trial(bench, told))
    state, step, reason = _end(updates)
    assert (state, step) == ("INFEASIBLE", 4)
    assert "eos_rate is" in reason
    assert "wanted >=0.9" in reason
    assert updates[-1].outcome is not None
    assert updates[-1].outcome.constraints["eos_rate"] > 0 > updates[-1].outcome.constraints["repetition"]


def test_what_trains_to_nan_fails_with_its_reason(bench: Workbench, place: Path, tmp_path: Path) -> None:
    told = _assignment(place, tmp_path, params={**POINT, "learning_rate": 1e30})
    state, _, reason = _end(list(train_trial(bench, told)))
    assert state == "FAILED"
    assert "not finite" in reason or "log-probability" in reason
    again = list(train_trial(bench, _assignment(place, tmp_path / "next")))
    assert _end(again)[0] == "COMPLETE", "the next trial starts from the base again"


def test_a_setting_that_a_method_refuses_fails_one_trial(bench: Workbench, place: Path, tmp_path: Path) -> None:
    state, _, reason = _end(list(train_trial(bench, _assignment(place, tmp_path, params={**POINT, "beta": -1.0}))))
    assert state == "FAILED"
    assert "beta: must be greater than 0" in reason


def test_assignments_travel_as_plain_json(place: Path, tmp_path: Path) -> None:
    told = _assignment(place, tmp_path, cutoffs={4: 0.5}, deadline=1.0, resume=["x"])
    assert Assignment.from_config(json.loads(json.dumps(told.as_config()))) == told


def test_a_generation_hands_on_to_heirs_with_other_rates(place: Path, tmp_path: Path) -> None:
    spec = tiny_spec(
        place / "base",
        sampler="random",
        scheduler={"type": "pbt", "population": 2, "generations": 2},
        budget={"trials": 4, "steps": 12},
    )
    run = RunDir(tmp_path / "run")
    run.write_spec(spec.model_dump(mode="json"))
    bench = Workbench(str(run.root), str(place / "prepared"))
    parent = _assignment(place, tmp_path / "trl_0000", until=6)
    updates = list(train_trial(bench, parent))
    assert _end(updates) == ("PRUNED", 6, "its generation is over")
    assert (tmp_path / "trl_0000" / "rung-000006" / "manifest.json").exists()
    value = updates[-1].outcome.value if updates[-1].outcome is not None else None
    beaten = dataclasses.replace(parent, directory=str(tmp_path / "trl_0001"), bar=value)
    assert _end(list(train_trial(bench, beaten))) == _end(updates)
    assert not (tmp_path / "trl_0001").exists(), "nobody goes on from it"
    again = list(train_trial(bench, parent))
    assert _end(again) == _end(updates), "its process died before the last word"
    assert [update.kind for update in again] == ["started", "end"]
    assert again[-1].metrics == updates[-1].metrics
    heir = _assignment(
        place,
        tmp_path / "trl_0002",
        trial_id="trl_0002",
        params={**POINT, "learning_rate": 8e-3},
        resume=[str(tmp_path / "trl_0000")],
        start=6,
    )
    updates = list(train_trial(bench, heir))
    assert _end(updates) == ("COMPLETE", 12, "")
    assert [update.step for update in updates if update.kind == "progress"] == list(range(7, 13))
    assert updates[-1].outcome is not None and sorted(updates[-1].outcome.rungs) == [6, 12]
    assert read_manifest(tmp_path / "trl_0002" / "final")["learning_rate"] == 8e-3
    same = dataclasses.replace(heir, params=POINT, trial_id="trl_0004", directory=str(tmp_path / "trl_0004"))
    gone = dataclasses.replace(same, directory=str(tmp_path / "trl_0005"), resume=[], restart=True)
    longer, anew = (list(train_trial(bench, each))[-1] for each in (same, gone))
    assert longer.metrics == anew.metrics, "from the start as from the checkpoint: the data's order is the seed's"
    orphan = dataclasses.replace(heir, directory=str(tmp_path / "trl_0003"), resume=[])
    state, _, reason = _end(list(train_trial(bench, orphan)))
    assert (state, reason) == ("FAILED", "no valid checkpoint of step 6 is left of the trial it goes on from")
