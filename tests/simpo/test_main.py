"""`python -m simpo` on a model and data made here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpo.__main__ import main
from simpo.checkpoint import read_manifest, save_checkpoint

pytestmark = pytest.mark.quick
Build = Callable[..., Any]


@pytest.fixture
def model_dir(tiny_model: Build, tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415  # lazy: this fixture alone needs them
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415  # lazy: as above

    words = ["<s>", "</s>", "<unk>", *(chr(code) for code in range(97, 123))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    return save_checkpoint(tmp_path / "base", model=tiny_model(), tokenizer=fast)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"prompt": f"say {c}", "chosen": c * 2, "rejected": c * 5} for c in "abcdefghij"]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_train_evaluate_generate(
    model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", str(model_dir), "--data", str(data), "--max-length", "64"]
    out = tmp_path / "run"
    train = ["train", *common, "--out", str(out), "--learning-rate", "1e-2", "--steps", "12", "--batch-pairs", "8"]
    assert main([*train, "--set", "beta=2.5", "--eval-data", str(data), "--checkpoint-every", "5"]) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [report["step"] for report in reports] == list(range(1, 13))
    assert reports[-1]["loss"] < reports[0]["loss"]
    manifest = read_manifest(out / "final")
    assert manifest["method"]["beta"] == 2.5
    assert manifest["tokens"]["max_length"] == 64 and len(manifest["policy_hash"]) == 64
    assert sorted(path.name for path in out.iterdir()) == ["final", "step-10", "step-5"]

    assert main(["evaluate", *common[2:], "--model", str(out / "final")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"]["estimate"] > 0.8
    assert result["accuracy"]["n"] == 10
    by_length = result["by_length"]
    assert by_length["chosen_longer"] is None and by_length["chosen_shorter"]["accuracy"] == result["accuracy"]

    assert main(["generate", "--model", str(out / "final"), "--prompt", "say a", "--max-new-tokens", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "say a"


def test_a_file_of_questions_is_answered_turn_by_turn(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question_id": 81, "turns": ["say a", "say b"]}\n{"question_id": 82, "turns": ["say c"]}\n')
    generate = ["generate", "--model", str(model_dir), "--prompts", str(questions), "--max-new-tokens", "3"]
    assert main(generate) == 2  # without a chat template there is no second turn
    assert "prompt 81 is a conversation" in capsys.readouterr().err.replace("\n", " ")
    config = model_dir / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    assert main(generate) == 0
    two, one = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (two["id"], two["prompt"], len(two["answers"]), two["answer"]) == ("81", "say b", 2, two["answers"][1])
    assert (one["id"], one["prompt"]) == ("82", "say c") and "answers" not in one
    assert main(generate[:3]) == 2
    assert "nothing to answer" in capsys.readouterr().err


def test_resume_goes_on_from_the_newest_checkpoint(
    model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["train", "--model", str(model_dir), "--data", str(data), "--out", str(out), "--max-length", "64"]
    command += ["--learning-rate", "1e-2", "--batch-pairs", "8", "--steps", "6", "--checkpoint-every", "4"]
    assert main(command) == 0
    whole = [json.loads(line)["loss"] for line in capsys.readouterr().out.splitlines()]
    (out / "final" / "manifest.json").unlink()  # as if it had been cut off
    assert main([*command, "--resume"]) == 0
    resumed = [json.loads(line)["loss"] for line in capsys.readouterr().out.splitlines()]
    assert resumed == whole[4:]


def test_adapters_are_trained_resumed_and_merged(
    model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["train", "--model", str(model_dir), "--data", str(data), "--out", str(out), "--max-length", "64"]
    command += ["--learning-rate", "1e-2", "--batch-pairs", "8", "--steps", "6", "--checkpoint-every", "4"]
    command += ["--lora-rank", "4", "--lora-targets", "q_proj,down_proj", "--checkpointing", "on"]
    assert main(command) == 0
    whole = [json.loads(line)["loss"] for line in capsys.readouterr().out.splitlines()]
    assert read_manifest(out / "final")["lora"]["targets"] == ["q_proj", "down_proj"]
    assert not (out / "step-4" / "model.safetensors").exists()
    assert main(["evaluate", "--data", str(data), "--model", str(out / "final")]) == 0
    (out / "final" / "manifest.json").unlink()
    capsys.readouterr()
    assert main([*command, "--resume"]) == 0
    assert [json.loads(line)["loss"] for line in capsys.readouterr().out.splitlines()] == whole[4:]


def test_a_second_run_takes_its_reference_from_the_store(
    model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for method, run in (("dpo", "a"), ("ipo", "b")):
        command = ["train", "--model", str(model_dir), "--data", str(data), "--out", str(tmp_path / run)]
        command += ["--method", method, "--learning-rate", "1e-2", "--batch-pairs", "8", "--steps", "2"]
        assert main([*command, "--max-length", "64", "--reference-store", str(tmp_path / "references")]) == 0
        printed.append(" ".join(capsys.readouterr().err.split()))
    assert "reference log-probabilities: 20 computed" in printed[0]
    assert "reference log-probabilities: 0 computed" in printed[1]
    assert "20 known, 8 of them checked" in printed[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "simp0"], "unknown method 'simp0'"),
        (["--set", "beta=-1"], "beta: must be greater than 0"),
        (["--set", "beta"], "not NAME=VALUE"),
        (["--set", "gamma=1", "--set", "gamma_beta_ratio=0.5"], "not both"),
        (["--steps", "0"], "steps"),
        (["--model", "/no/such/model"], "no model directory"),
        (["--data", "/no/such/file.jsonl"], "/no/such/file.jsonl"),
        (["--batch-pairs", "99"], "only 10 pairs"),
        (["--lora-alpha", "8"], "--lora-rank: is needed"),
        (["--reference-store", "/tmp"], "--reference-store: simpo has no reference"),
        (["--lora-rank", "0"], "rank: must be a whole number of at least 1"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    good = ["train", "--model", str(model_dir), "--data", str(data), "--out", str(tmp_path / "run"), "--steps", "2"]
    good += ["--learning-rate", "1e-3", "--batch-pairs", "4", "--max-length", "64"]
    assert main([*good, *arguments]) == 2
    printed = capsys.readouterr()
    assert words in " ".join(printed.err.split())
    assert "Traceback" not in printed.err
    assert not (tmp_path / "run").exists()
