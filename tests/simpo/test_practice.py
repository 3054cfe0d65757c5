"""The practice task: checkable answers, splits that never meet, same seed same bytes, a base made on the spot."""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from simpo.checkpoint import read_manifest
from simpo.config import TokenPolicy
from simpo.errors import ConfigError
from simpo.evaluation.judge import Judge, judge_answers
from simpo.model import load_model, load_tokenizer, num_parameters
from simpo.practice import BaseRecipe, PracticeJudge, _fresh_model, build_base, build_tokenizer, write_data
from simpo.practice_task import KINDS, SPLITS, WORDS, Split, examples, instructions, right_answer, score, split_of
from simpo.records import load_preferences
from simpo.tokenize import encode_prompt, stop_token_ids, tokenize_preferences

pytestmark = pytest.mark.quick

POLICY = TokenPolicy(max_length=512)
TINY = BaseRecipe(steps=3, batch=4, width=32, mlp_width=32, layers=1)


@pytest.mark.parametrize(
    ("instruction", "answer"),
    [
        ("Upper: tiger", "TIGER"),
        ("First: tiger", "t"),
        ("Last: tiger", "r"),
        ("Twice: tiger", "tiger tiger"),
        ("Spell: tiger", "t-i-g-e-r"),
        ("Larger: 31 57", "57"),
        ("Larger: 9 10", "10"),
        ("Next: 199", "200"),
        ("Next: tiger", None),
        ("Upper: ", None),
        ("Upper:tiger", None),
        ("Lower: tiger", None),
        ("What is the capital of France?", None),
    ],
)
def test_the_instruction_alone_determines_the_answer(instruction: str, answer: str | None) -> None:
    assert right_answer(instruction) == answer


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("cat cat", 1.0),
        ("I say cat cat.", 0.5 * 7 / 14),
        ("cat cat cat cat", 0.5 * 7 / 15),
        ("cat cats", 0.0),  # only as part of a longer word
        ("cat", 0.0),
        ("", 0.0),
    ],
)
def test_the_score_by_hand(answer: str, value: float) -> None:
    assert score("Twice: cat", answer) == pytest.approx(value)


def test_the_judge_keeps_the_protocol_and_does_not_guess() -> None:
    judge: Judge = PracticeJudge()
    assert judge_answers(judge, ["Next: 9", "Next: 9", "Sing!"], ["10", "11", "la"]) == [1.0, 0.0, None]


def test_an_instruction_is_in_one_split_for_good() -> None:
    held = {split: {text for texts in instructions(split).values() for text in texts} for split in SPLITS}
    assert not held["train"] & held["eval"] and not held["train"] & held["validation"]
    assert not held["validation"] & held["eval"]
    total = sum(map(len, held.values()))
    for split, share in SPLITS.items():
        assert len(held[split]) / total == pytest.approx(share, abs=0.02)
        assert all(split_of(text) == split for text in held[split])
    assert len(set(WORDS)) == len(WORDS)


@pytest.mark.parametrize("split", SPLITS)
def test_the_chosen_answer_is_right_and_always_the_better(split: Split) -> None:
    rows = examples(split, 250, seed=3, longer_share=0.2)
    assert {row.instruction.partition(":")[0] for row in rows} == set(KINDS)
    for row in rows:
        assert split_of(row.instruction) == split
        better, worse = score(row.instruction, row.chosen), score(row.instruction, row.rejected)
        assert better == 1.0 and worse is not None and worse <= 0.5 and row.rejected
    if split != "train":
        assert len({row.instruction for row in rows}) == len(rows)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_the_share_of_longer_chosen_answers_is_exact(share: float) -> None:
    rows = examples("train", 200, seed=0, longer_share=share)
    assert sum(len(row.chosen) > len(row.rejected) for row in rows) == round(200 * share)


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"longer_share: must lie in \[0, 1\]"):
        examples("train", 10, seed=0, longer_share=1.5)
    with pytest.raises(ConfigError, match="no more instructions for 9000 rows"):
        examples("eval", 9000, seed=0, longer_share=0.0)


def test_the_files_load_whole_and_rows_are_short(tmp_path: Path) -> None:
    data = write_data(tmp_path, seed=1, train=100, validation=20, evaluation=30)
    lengths = []
    for path, n in ((data.train, 100), (data.validation, 20), (data.evaluation, 30)):
        records = load_preferences(path)
        assert len(records.rows) == n and records.dropped == {} and all(row.conversational for row in records.rows)
        tokenized = tokenize_preferences(records, build_tokenizer(), POLICY)
        assert tokenized.dropped == {}
        lengths += [sum(map(len, pair)) for pair in tokenized.pairs]
    assert 20 <= sum(lengths) / len(lengths) <= 60 and max(lengths) <= 80


def test_the_same_call_writes_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys; from simpo.practice_task import examples;"
        "print([(e.instruction, e.rejected) for e in examples('train', 60, seed=5, longer_share=0.2)])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] and len(runs[0]) > 1000
    first, second = (write_data(tmp_path / name, seed=5, train=60, validation=5, evaluation=5) for name in "ab")
    assert first.train.read_bytes() == second.train.read_bytes()
    other = write_data(tmp_path / "c", seed=6, train=60, validation=5, evaluation=5)
    assert first.train.read_bytes() != other.train.read_bytes()
    row = json.loads(gzip.decompress(first.train.read_bytes()).splitlines()[0])
    assert set(row) == {"id", "prompt", "chosen", "rejected"}


def test_the_tokenizer_is_bytes_and_control_tokens(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer) == 262
    ids = encode_prompt([{"role": "user", "content": "Upper: tiger"}], tokenizer, POLICY)
    assert tokenizer.decode(ids) == "<|bos|><|user|>Upper: tiger<|end|><|assistant|>"
    assert len(ids) == 4 + len("Upper: tiger")
    text = "naïve  日本 \n tab\t."
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert stop_token_ids(tokenizer, POLICY) == [tokenizer.eos_token_id]
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert encode_prompt([{"role": "user", "content": "Upper: tiger"}], again, POLICY) == ids


def test_a_base_is_made_once_the_same_each_time_and_anew_for_another_recipe(tmp_path: Path) -> None:
    seen: list[tuple[int, int, float]] = []
    first = build_base(tmp_path / "a", seed=0, recipe=TINY, progress=lambda *report: seen.append(report))
    assert [(step, total) for step, total, _ in seen] == [(1, 3), (2, 3), (3, 3)] and all(loss > 0 for *_, loss in seen)

    def weights(path: Path) -> str:
        return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()

    assert weights(build_base(tmp_path / "b", seed=0, recipe=TINY)) == weights(first)
    assert weights(build_base(tmp_path / "c", seed=1, recipe=TINY)) != weights(first)

    seen.clear()
    build_base(tmp_path / "a", seed=0, recipe=TINY, progress=lambda *report: seen.append(report))
    assert seen == [], "the same recipe and seed lie there already"
    recipe = read_manifest(first)["recipe"]
    build_base(tmp_path / "a", seed=1, recipe=TINY)
    assert read_manifest(first)["recipe"] != recipe
    (first / "config.json").write_text("{}")
    build_base(tmp_path / "a", seed=1, recipe=TINY, progress=lambda *report: seen.append(report))
    assert len(seen) == 3, "a damaged base is made again"
    assert load_model(first).config.vocab_size == 262


def test_the_default_model_has_the_size_it_claims() -> None:
    model = _fresh_model(BaseRecipe(), 0, build_tokenizer())
    assert 0.8e6 <= num_parameters(model) <= 1.0e6 and len(model.model.layers) == 4
