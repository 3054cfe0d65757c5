"""A trial whose node shares no directory with the others: it fetches what it needs, and puts what must survive."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from simpo.errors import StorageError
from sweeps.prepare import prepare, read_inputs
from sweeps.prepared import load_facts
from sweeps.remote import Remote
from sweeps.run_dir import RunDir
from sweeps.signals import signals
from sweeps.store import DirectoryStore, StoreUnavailable
from sweeps.trial import Assignment, Update, train_trial
from sweeps.workbench import Workbench
from tests.sweeps.tiny import tiny_base, tiny_spec


@pytest.fixture
def assignment(tmp_path: Path) -> Assignment:
    """Of a sweep whose driver has put everything into the store."""
    spec = tiny_spec(tiny_base(tmp_path / "base"))
    run = RunDir(tmp_path / "run", Remote(DirectoryStore(tmp_path / "store"), tmp_path / "run"))
    run.write_spec(spec.model_dump(mode="json"))
    attempt = run.claim(1)
    prepare(spec, read_inputs(spec, attempt.prepared), attempt.prepared, lambda share, message: None)
    run.place.push(attempt.prepared)
    return Assignment(
        trial_id="trl_0000",
        params={"learning_rate": 1e-2, "beta": 2.0, "gamma_beta_ratio": 0.5},
        cutoffs={},
        run_dir=str(run.root),
        prepared=str(attempt.prepared),
        directory=str(attempt.trial_path("trl_0000")),
        resume=[],
        deadline=None,
        signals=str(attempt.signals),
        store=str(tmp_path / "store"),
    )


def _train(told: Assignment) -> list[Update]:
    return list(train_trial(Workbench(told.run_dir, told.prepared, told.store), told))


def test_it_goes_on_from_what_another_node_has_put(assignment: Assignment, tmp_path: Path) -> None:
    whole = _train(dataclasses.replace(assignment, directory=assignment.directory.replace("trl_0000", "trl_0009")))
    broken = train_trial(Workbench(assignment.run_dir, assignment.prepared, assignment.store), assignment)
    while next(broken).step < 10:  # beyond the second rung
        pass
    broken.close()
    shutil.rmtree(assignment.run_dir)
    rest = _train(assignment)
    assert (rest[0].kind, rest[0].step) == ("started", 8), "it starts from the rung at step 8"
    assert (rest[-1].outcome, rest[-1].metrics) == (whole[-1].outcome, whole[-1].metrics)
    assert rest[-1].checkpoint is not None
    shutil.rmtree(assignment.run_dir)
    assert RunDir(assignment.run_dir, Remote(DirectoryStore(tmp_path / "store"), Path(assignment.run_dir))).place.pull(
        Path(rest[-1].checkpoint)
    )


def test_it_heeds_signals_that_only_the_store_has(assignment: Assignment, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    driver = RunDir(tmp_path / "driver", Remote(store, tmp_path / "driver"))
    driver.attempt(1).signal(signals(hold=False, stop=["trl_0000"], deadline=None))
    outcome = _train(assignment)[-1].outcome
    assert outcome is not None
    assert (outcome.state, outcome.reason) == ("PRUNED", "stopped by hand")


def test_a_store_that_is_away_is_not_the_trials_failure(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: object) -> None:
        raise StoreUnavailable("answers SlowDown", "key")

    bench = Workbench(assignment.run_dir, assignment.prepared, assignment.store)
    monkeypatch.setattr(DirectoryStore, "put_file", away)
    with pytest.raises(StorageError, match="SlowDown"):
        list(train_trial(bench, assignment))


def test_a_base_that_was_made_here_goes_along(tmp_path: Path) -> None:
    """A prepared directory that was moved still finds the base in it."""
    spec = tiny_spec(tiny_base(tmp_path / "base"))
    prepared = tmp_path / "one" / "prepared"
    prepare(spec, read_inputs(spec, prepared), prepared, lambda share, message: None)
    shutil.move(tmp_path / "base", prepared / "base")
    text = (prepared / "prepared.json").read_text()
    (prepared / "prepared.json").write_text(text.replace(str(tmp_path / "base"), str(prepared / "base")))
    shutil.move(tmp_path / "one", tmp_path / "other")
    facts = load_facts(tmp_path / "other" / "prepared")
    assert facts is not None
    assert facts.base == str(tmp_path / "other" / "prepared" / "base")
