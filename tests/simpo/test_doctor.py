"""The doctor: every ailment is found in rows that have it, and not in rows that have not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpo.__main__ import main
from simpo.config import TokenPolicy
from simpo.doctor.diagnosis import Diagnosis, examine
from simpo.doctor.finding import SHOWN, Finding, finding, stray_or_many
from simpo.doctor.rows import length_figures, length_findings
from simpo.doctor.templates import FAMILIES
from simpo.records import Message, Preference, Records
from tests.simpo import tokenizer_zoo as zoo

pytestmark = pytest.mark.quick


def row(number: int, prompt: Any = None, chosen: str = "yes", rejected: str = "oh no") -> Preference:
    prompt = f"question {number}" if prompt is None else prompt
    if not isinstance(prompt, str):
        prompt = tuple(Message(role=role, content=content) for role, content in prompt)
    return Preference(prompt=prompt, chosen=chosen, rejected=rejected, id=f"r{number}")


def chat(number: int, content: str | None = None, **answers: str) -> Preference:
    return row(number, [("user", content or f"question {number}")], **answers)


def records(*rows: Preference, **dropped: int) -> Records:
    return Records(rows=list(rows), dropped=dropped, examples={reason: [7] for reason in dropped})


def found(diagnosis: Diagnosis) -> dict[str, Finding]:
    codes = {each.code: each for each in diagnosis.findings}
    assert len(codes) == len(diagnosis.findings), "each is said once"
    return codes


def codes(*rows: Preference, **options: Any) -> set[str]:
    return set(found(examine(records(*rows), **options))) - {"no_tokenizer"}


def test_healthy_rows_have_no_finding_and_every_finding_a_remedy() -> None:
    healthy = [chat(i, chosen=f"{'yes' * (i % 2)} well", rejected=f"{'no' * (1 - i % 2)} well") for i in range(30)]
    diagnosis = examine(records(*healthy), evaluation=records(chat(99)), tokenizer=zoo.chatml())
    assert diagnosis.findings == [] and diagnosis.ok
    assert diagnosis.as_dict()["counts"] == {"error": 0, "warning": 0, "info": 0}
    bare = found(examine(records(*healthy)))
    assert set(bare) == {"no_tokenizer"} and "--tokenizer" in bare["no_tokenizer"].remedy


def test_duplicates_flips_and_ties() -> None:
    flipped = [row(3, "p", "a", "b"), row(4, "p", "b", "a")]
    tied = row(5, chosen="a  b", rejected="a b")
    diagnosis = examine(records(row(1), row(2), row(2), *flipped, tied, identical_responses=2))
    by_code = found(diagnosis)
    assert by_code["duplicate_rows"].rows == ("r2",) and by_code["duplicate_rows"].count == 1
    assert by_code["flipped_pairs"].rows == ("r3", "r4") and by_code["flipped_pairs"].level == "error"
    assert by_code["tied_but_for_white_space"].rows == ("r5",)
    assert by_code["identical_responses"].rows == ("7",) and by_code["identical_responses"].share == 2 / 8
    assert "5 different prompts" not in by_code["repeated_prompts"].message
    assert "4 different prompts, at most 2 rows" in by_code["repeated_prompts"].message
    assert diagnosis.findings[0].level == "error" and not diagnosis.ok
    stray = examine(records(*flipped, *(row(i) for i in range(100, 200))))
    assert found(stray)["flipped_pairs"].level == "warning" and stray.ok, "annotators may disagree"


def test_a_file_of_which_most_is_unusable_is_an_error() -> None:
    by_code = found(examine(records(row(1), empty_response=2)))
    assert by_code["mostly_unusable"].level == "error" and by_code["empty_response"].level == "warning"
    assert "mostly_unusable" not in found(examine(records(row(1), row(2), empty_response=2)))


@pytest.mark.parametrize(
    ("roles", "wrong"),
    [
        (["user"], False),
        (["system", "user", "assistant", "user"], False),
        (["user", "user"], True),
        (["assistant", "user"], True),
        (["user", "system", "user"], True),
    ],
)
def test_turns_must_alternate(roles: list[str], wrong: bool) -> None:
    assert ("turns_do_not_alternate" in codes(row(1, [(role, "x") for role in roles]))) == wrong


def test_evaluation_prompts_that_were_trained_on() -> None:
    train = [
        chat(1, "What is  THIS?"),
        row(2, [("user", "a"), ("assistant", "b"), ("user", "c")]),
        row(3, "plain text"),
    ]
    evaluation = [
        chat(11, "what is this?"),
        row(12, [("user", "A"), ("assistant", "x"), ("user", "y")]),
        row(13, "other"),
    ]
    by_code = found(examine(records(*train), evaluation=records(*evaluation)))
    assert by_code["prompt_overlap"].rows == ("r11",) and by_code["prompt_overlap"].level == "error"
    assert by_code["first_turn_overlap"].rows == ("r12",) and by_code["first_turn_overlap"].level == "warning"
    assert by_code["prompt_overlap"].share == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("longer", "shorter", "side"), [(61, 39, "longer"), (60, 40, None), (40, 60, None), (39, 61, "shorter")]
)
def test_length_bias_is_told_with_its_direction(longer: int, shorter: int, side: str | None) -> None:
    figures = length_figures([(9, 5)] * longer + [(5, 9)] * shorter, "tokens")
    messages = [each.message for each in length_findings(figures, longer + shorter)]
    assert [f"is the {side} one in 61%" in message for message in messages] == ([True] if side else [])
    assert figures["gap_mean"] == pytest.approx(4 * (longer - shorter) / 100)
    assert list(length_findings(length_figures([(9, 5)] * 19, "tokens"), 19)) == [], "too few to tell"


TEMPLATED = {
    "ChatML": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "Llama 3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "Llama 4": "<|begin_of_text|><|header_start|>user<|header_end|>\n\nhi<|eot|>",
    "Llama 2 and Mistral": "<s>[INST] hi [/INST]",
    "Gemma": "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "Zephyr and Phi": "<|user|>\nhi</s>\n<|assistant|>\n",
    "Command R": "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>hi<|END_OF_TURN_TOKEN|>",
    "DeepSeek": "<\uff5cUser\uff5c>hi<\uff5cAssistant\uff5c>",
}


@pytest.mark.parametrize(("family", "text"), TEMPLATED.items())
def test_text_that_went_through_a_template(family: str, text: str) -> None:
    turned = [each for each in examine(records(chat(1, text))).findings if each.code == "already_templated"]
    assert any(f"in {family} form" in each.message for each in turned) and turned[0].level == "error"
    plain = [each for each in examine(records(row(1, text))).findings if each.code == "templated_text"]
    assert plain[0].level == "warning" and "--tokenizer" in plain[0].remedy
    foreign = zoo.bytes_tokenizer(None, bos="<foreign>")
    mismatched = [each.code for each in examine(records(row(1, text)), tokenizer=foreign).findings]
    assert "template_mismatch" in mismatched
    assert set(TEMPLATED) == set(FAMILIES)


def test_a_mark_that_is_only_spelled_is_a_warning_and_own_text_is_fine() -> None:
    about = chat(1, "what does [INST] mean?")
    assert found(examine(records(about)))["control_tokens"].level == "warning"
    assert "dropped" in found(examine(records(about, chat(2)), tokenizer=zoo.mistral()))["control_tokens"].message
    own = found(examine(records(row(1, TEMPLATED["ChatML"])), tokenizer=zoo.chatml()))
    assert own["templated_text"].level == "info"
    assert "answer_goes_on_as_dialogue" in codes(chat(1, chosen="Yes.\n\nHuman: and then?"))
    assert "answer_goes_on_as_dialogue" not in codes(row(1, "\n\nHuman: hi\n\nAssistant:"))


def test_bos_twice_and_in_the_middle() -> None:
    plain = zoo.bytes_tokenizer(None, adds_bos=True)
    assert codes(row(1, "<s>question"), tokenizer=plain) == set(), "one in front is one"
    assert codes(row(1, "<s> <s>question"), tokenizer=plain) == {"double_bos"}
    assert codes(row(1, chosen="<s>yes"), tokenizer=plain) == {"bos_inside"}
    assert codes(chat(1), tokenizer=zoo.gemma()) == {"bos_from_both"}
    doubling = zoo.bytes_tokenizer("{{ bos_token }}" + zoo.LLAMA3)
    assert found(examine(records(chat(1)), tokenizer=doubling))["double_bos"].level == "error"
    one_token = zoo.bytes_tokenizer(None, bos="</s>", eos="</s>")
    assert codes(row(1, chosen="yes</s>"), tokenizer=one_token) == set(), "it ends the answer"


@pytest.mark.parametrize(
    ("policy", "code", "level", "figures"),
    [
        (TokenPolicy(max_length=16), "too_long", "warning", {"over": 3, "dropped": 3, "tokens_cut": 0}),
        (
            TokenPolicy(max_length=16, truncation="trl"),
            "truncated",
            "error",
            {"over": 3, "dropped": 1, "tokens_cut": 5 + 1, "chosen_without_end": 2, "rejected_without_end": 0},
        ),
        (
            TokenPolicy(max_length=16, truncation="reference", max_prompt_length=10),
            "truncated",
            "error",
            {"over": 3, "dropped": 0, "tokens_cut": 4 + 0 + 2 + 7, "chosen_without_end": 1, "prompts_cut": 2},
        ),
    ],
)
def test_truncation_under_the_policy(policy: TokenPolicy, code: str, level: str, figures: dict[str, int]) -> None:
    tokenizer = zoo.bytes_tokenizer(None)
    rows = [row(1, "p" * 11, "c" * 9, "r"), row(2, "p" * 12, "c" * 4, "r"), row(3, "p" * 17, "c" * 2, "r")]
    rows += [row(i, "p", "c" * (i % 3 + 1), "rr") for i in range(4, 10)]
    if policy.truncation == "reference":
        rows[0] = row(1, "p" * 8, "c" * 9, "r")
    diagnosis = examine(records(*rows), tokenizer=tokenizer, policy=policy)
    assert found(diagnosis)[code].level == level
    longest = max(len(each.prompt) + len(each.chosen) + 1 for each in rows)
    assert diagnosis.truncation["max_length_for_99_percent"] == longest == diagnosis.truncation["longest"]
    assert {key: diagnosis.truncation[key] for key in figures} == figures


def test_what_the_tokenizer_refuses_is_counted_and_too_much_of_it_is_an_error() -> None:
    system = [row(i, [("system", "be kind"), ("user", "hi")]) for i in range(3)]
    by_code = found(examine(records(*system, chat(9)), tokenizer=zoo.gemma()))
    assert by_code["template_refused"].count == 3 and by_code["mostly_dropped"].level == "error"
    told = found(examine(records(chat(1)), tokenizer=zoo.gemma(), policy=TokenPolicy(system="empty")))
    assert "no_system_turns" in told
    all_gone = examine(records(*system), tokenizer=zoo.gemma())
    assert all_gone.truncation == {} and all_gone.lengths["unit"] == "characters"


def test_progress_is_told_and_rows_are_shown_sparingly() -> None:
    told: list[tuple[int, int]] = []
    examine(
        records(*(row(i) for i in range(1200))),
        tokenizer=zoo.bytes_tokenizer(None),
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(500, 1200), (1000, 1200), (1200, 1200)]
    shown = finding("x", "info", "{rows}", "none", count=9, of=10, rows=(str(i) for i in range(9)))
    assert len(shown.rows) == SHOWN and shown.message == "9 rows" and shown.share == 0.9
    assert [stray_or_many(count, 1000) for count in (9, 10)] == ["warning", "error"]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def file(name: str, *rows: dict[str, str]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
        return str(path)

    return file


def test_the_command(write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [{"prompt": f"say {c}", "chosen": c * 2, "rejected": c * 3} for c in "abcdef"]
    train, held_out = write("a.jsonl", *good), write("b.jsonl", {**good[0], "prompt": "say z"})
    zoo.bytes_tokenizer(zoo.CHATML).save_pretrained(tmp_path / "model")
    command = ["doctor", train, "--eval", held_out, "--tokenizer", str(tmp_path / "model"), "--max-length", "9"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "6 rows, 6 pairs" in printed and "max_length 9 (drop): 0 pairs over it" in printed
    assert "ready to train on" in printed
    assert main([*command[:2], "--eval", train, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["data"] == train and report["ok"] is False and report["counts"]["error"] == 1
    assert report["findings"][0]["code"] == "prompt_overlap"
    assert main(["doctor", train]) == 0
    assert main(["doctor", str(tmp_path / "none.jsonl")]) == 2
    assert main([*command, "--truncation", "reference"]) == 2
    assert "max_prompt_length" in capsys.readouterr().err
