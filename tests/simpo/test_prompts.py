"""Prompt sets of any form."""

import json
from pathlib import Path
from typing import Any

import pytest

from simpo.errors import DataError
from simpo.prompts import EvaluationPrompt, load_prompts, read_prompt
from simpo.sources import hub_rows

pytestmark = pytest.mark.quick

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    ("row", "turns", "history"),
    [
        ({"instruction": "Hi", "dataset": "x"}, ("Hi",), ()),
        ({"turns": ["a", "b"]}, ("a", "b"), ()),
        ({"turns": [{"content": "a"}]}, ("a",), ()),
        ({"question": "a"}, ("a",), ()),
        ({"prompt": ["a", "b"]}, ("a", "b"), ()),
        (
            {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]},
            ("a",),
            ({"role": "system", "content": "s"},),
        ),
    ],
)
def test_known_forms(row: dict[str, Any], turns: tuple[str, ...], history: tuple[dict[str, str], ...]) -> None:
    prompt = read_prompt(row, default_id="7")
    assert (prompt.turns, prompt.history, prompt.id) == (turns, history, "7")


def test_what_comes_with_a_prompt() -> None:
    row = {"question_id": 81, "turns": ["a", "b"], "category": "math", "reference": ["1", "2"], "output": "o"}
    prompt = read_prompt(row, default_id="7")
    assert prompt == EvaluationPrompt(
        id="81", turns=("a", "b"), category="math", references=("1", "2"), baseline_answer="o"
    )
    assert [message["content"] for message in prompt.messages(["x"])] == ["a", "x", "b"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "a"}, "there is no prompt .there are: text"),
        ({"prompt": "", "instruction": None}, "there is no prompt"),
        ({"prompt": "a", "instruction": "b"}, "instruction and prompt both hold a prompt"),
        ({"instruction": "a", "input": "b"}, "the column input is not read"),
        ({"prompt": 3}, "must be text or a list of turns, not int"),
        ({"turns": ["a", " "]}, "a turn of turns is empty"),
        ({"prompt": [{"role": "assistant", "content": "b"}]}, "must end with the user"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_line(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "fine"}\n' + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"line 2: .*{reason}"):
        load_prompts(str(path))


def test_ids_are_unique_and_sources_exist(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("id,prompt\n1,a\n1,b\n")
    with pytest.raises(DataError, match="line 3: the id '1' occurs before"):
        load_prompts(str(path))
    with pytest.raises(DataError, match="no such file"):
        load_prompts(str(tmp_path / "none.jsonl"))


def test_hub_rows_that_are_no_preferences_come_whole() -> None:
    rows = hub_rows("org/name", "train", lambda name, split: [{"turns": ["a"], "x": 1}], preferences=False)
    assert [row.values for row in rows] == [{"turns": ["a"], "x": 1}]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmark question sets are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "count", "turns"),
    [
        ("alpaca_eval/eval_set_with_baseline_outputs.jsonl.gz", 805, 1),
        ("arena_hard/question.jsonl.gz", 500, 1),
        ("mt_bench/question.jsonl", 80, 2),
    ],
)
def test_benchmark_question_sets_load(name: str, count: int, turns: int) -> None:
    prompts = load_prompts(str(SHARED / name))
    assert len(prompts) == count and {len(prompt.turns) for prompt in prompts} == {turns}
