"""The command line's bad ways: one sentence, a status, nothing left behind. Its good way is in test_sweep.py."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from sweeps.__main__ import main
from sweeps.console import attempts_view
from sweeps.run_dir import RunDir
from sweeps.spec import parse_spec, with_absolute_paths

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"name": "x", "method": "ppo"}, "method: unknown method 'ppo'"),
        ({"name": "x", "space": {"beta": -1}}, "space.beta: must be greater than 0"),
        ({"name": "x", "dataset": "/nowhere.jsonl"}, "no such file"),
        ({"name": "x", "base_model": "/nowhere"}, "no model directory at '/nowhere'"),
    ],
)
def test_a_refused_spec_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], body: dict[str, object], words: str
) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(body))
    with pytest.raises(SystemExit) as left:
        # No Ray is there: what is refused does not need one.
        main(["run", str(spec), "--out", str(tmp_path / "out"), "--quiet", "--ray-address", "127.0.0.1:1"])
    assert left.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error
    assert not (tmp_path / "out").exists()


def test_an_existing_directory_is_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "out")
    run.write_spec({"name": "other"})
    spec = tmp_path / "spec.json"
    spec.write_text('{"name": "x"}')
    with pytest.raises(SystemExit):
        main(["run", str(spec), "--out", str(run.root)])
    assert "holds the spec of another sweep" in capsys.readouterr().err
    assert run.read_spec() == {"name": "other"}


@pytest.mark.parametrize("command", ["resume", "show"])
def test_a_directory_without_a_sweep_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, str(tmp_path)])
    assert left.value.code == 2
    assert "no readable spec.json" in capsys.readouterr().err


def test_a_finished_sweep_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path)
    run.write_spec(parse_spec({"name": "x"}).model_dump(mode="json"))
    run.claim(1).publish_result({"state": "SUCCEEDED"})
    with pytest.raises(SystemExit):
        main(["resume", str(tmp_path)])
    assert "has its result already" in capsys.readouterr().err
    assert run.highest() == 1


def test_a_sweep_without_a_result_can_be_shown(tmp_path: Path) -> None:
    run, spec = RunDir(tmp_path), parse_spec({"name": "x", "objective": "accuracy"})
    attempt = run.claim(1)
    trial = {"trial_id": "trl_0000", "number": 0, "params": {"beta": 2.0}}
    attempt.append("job.phase", "searching", {"phase": "searching", "progress": 0.0})
    attempt.append("trial.created", "trial 0 starts", trial)
    attempt.append("trial.rung", "trial 0 at step 30", {**trial, "step": 30, "metrics": {"accuracy": 0.61}})
    attempt.append("best.updated", "best", {**trial, "value": 0.61})
    console = Console(width=120, record=True, file=(tmp_path / "screen").open("w"))
    console.print(attempts_view(run, spec))
    text = console.export_text()
    assert "attempt 1: best" in text
    for shown in ("searching", "RUNNING", "beta", "30", "0.610"):
        assert shown in text
    console.file.close()


def test_paths_in_a_spec_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.jsonl").touch()
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    spec = with_absolute_paths(parse_spec({"name": "x", "dataset": "mine.jsonl", "base_model": "model"}))
    assert (spec.dataset.train, spec.base_model) == (str(tmp_path / "mine.jsonl"), str(tmp_path / "model"))
    hub = parse_spec({"name": "x", "dataset": "org/set", "base_model": "org/model"})
    assert with_absolute_paths(hub) == hub
