"""What a quickstart refuses before anything is started, and the spec it would POST."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from service.cli import app
from service.cli_session import UserError
from service.quickstart import MARKER, Quickstart, check_inputs, prepare_home, run, spec_for
from sweeps.spec import parse_spec

pytestmark = pytest.mark.quick


def row(prompt: str, chosen: str = "yes", rejected: str = "no") -> dict[str, Any]:
    said = [("chosen", chosen), ("rejected", rejected)]
    turns = {key: [{"role": "assistant", "content": text}] for key, text in said}
    return {"prompt": [{"role": "user", "content": prompt}], **turns}


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "data.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row(f"question {number}")) + "\n" for number in range(5))
    return str(path)


def test_practice_asks_three_held_out_instructions() -> None:
    questions = check_inputs(Quickstart(home=Path("x"), seed=3))
    assert [question[0]["role"] for question in questions] == ["user"] * 3
    assert questions == check_inputs(Quickstart(home=Path("x"), seed=3))


def test_own_data_asks_its_first_held_out_prompts(data: str) -> None:
    questions = check_inputs(Quickstart(home=Path("x"), data=data, eval=data))
    assert [question[-1]["content"] for question in questions] == ["question 0", "question 1", "question 2"]


def test_the_practice_spec_is_judged(tmp_path: Path) -> None:
    spec = parse_spec(spec_for(Quickstart(home=tmp_path, seed=5)))
    assert (spec.objective.metric, spec.judge, spec.seed) == ("win_rate", "practice", 5)
    assert spec.budget.trials >= 12 and spec.scheduler.type == "asha" and spec.finals.prompts >= 500
    assert {"learning_rate", "beta", "gamma_beta_ratio"} <= set(spec.space)
    assert spec.constraints


def test_the_spec_for_own_data_goes_by_accuracy(data: str, tmp_path: Path) -> None:
    spec = parse_spec(spec_for(Quickstart(home=tmp_path, data=data, eval=data, model="org/model")))
    assert (spec.objective.metric, spec.judge, spec.base_model) == ("accuracy", None, "org/model")
    assert spec.dataset.train == data and spec.dataset.eval == data


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"eval": "e.jsonl"}, "--eval: needs --data FILE"),
        ({"data": "nope.jsonl"}, "--data: there is no nope.jsonl: check the path"),
        ({"data": "./nope"}, "--data: there is no ./nope"),
        ({"model": "/nope/model"}, "--model: /nope/model is no model directory"),
        ({"trials": 0}, "--trials: must be at least 1, not 0"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        run(Quickstart(home=tmp_path / "home", **options), Console())
    assert not (tmp_path / "home").exists(), "nothing half-made"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "--eval: .*bad.jsonl: there is no row in it"),
        (json.dumps(row("q")) + '\n{"prompt": \n', "--eval: .*bad.jsonl, line 2: "),
        (json.dumps(row("q", "same", "same")) + "\n", "--eval: .*bad.jsonl: no row of 1 can be used"),
    ],
)
def test_bad_data_is_refused_with_its_line(content: str, sentence: str, data: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        check_inputs(Quickstart(home=tmp_path, data=data, eval=str(bad)))


def test_the_command_says_so_in_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["quickstart", "--home", str(tmp_path / "q"), "--data", "nope.jsonl"])
    assert (result.exit_code, result.stderr) == (2, "error: --data: there is no nope.jsonl: check the path\n")


def test_a_home_of_our_own_is_emptied(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    prepare_home(home)
    (home / "report.html").write_text("old")
    prepare_home(home)
    assert [path.name for path in home.iterdir()] == [MARKER]


def test_anything_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="holds other things"):
        prepare_home(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        prepare_home(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years"
