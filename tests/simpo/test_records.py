"""Reading preferences: every accepted shape and source, every refusal, every reason for dropping."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo.errors import DataError
from simpo.records import DROP_REASONS, Message, Preference, load_preferences
from simpo.sources import hub_rows

pytestmark = pytest.mark.quick

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "preferences"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


GOOD: dict[str, Any] = {"prompt": [user("hi")], "chosen": [assistant("yes")], "rejected": [assistant("no")]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def only(tmp_path: Path, row: dict[str, Any]) -> Preference:
    [preference] = load_preferences(write(tmp_path / "one.jsonl", [row])).rows
    return preference


TURN = (Message(role="user", content="hi"),)
TALK = [user("a"), assistant("b"), user("c")]
TALK_TURNS = tuple(Message(**turn) for turn in TALK)
SHAPES: dict[str, tuple[dict[str, Any], Any, str, str]] = {
    "explicit text": ({"prompt": "Q:", "chosen": " yes", "rejected": " no"}, "Q:", " yes", " no"),
    "explicit turns": (GOOD, TURN, "yes", "no"),
    "turns and text": ({"prompt": [user("hi")], "chosen": "yes", "rejected": "no"}, TURN, "yes", "no"),
    "text and turns": ({**GOOD, "prompt": "hi"}, TURN, "yes", "no"),
    "implicit turns": (
        {"chosen": [*TALK, assistant("yes")], "rejected": [*TALK, assistant("no")]},
        TALK_TURNS,
        "yes",
        "no",
    ),
    "UltraFeedback": (
        {"prompt": "hi", "chosen": [user("hi"), assistant("yes")], "rejected": [user("hi"), assistant("no")]},
        TURN,
        "yes",
        "no",
    ),
    "turns repeated": (
        {"prompt": TALK, "chosen": [*TALK, assistant("yes")], "rejected": [*TALK, assistant("no")]},
        TALK_TURNS,
        "yes",
        "no",
    ),
    "OpenAI's": (
        {
            "input": {"messages": TALK, "tools": [], "parallel_tool_calls": True},
            "preferred_output": [assistant("yes")],
            "non_preferred_output": [assistant("no")],
        },
        TALK_TURNS,
        "yes",
        "no",
    ),
    "implicit text": (  # TRL's own example: the shared space goes to the responses
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        "The sky is",
        " blue.",
        " green.",
    ),
    "Anthropic HH": (  # cut after the dialogue's mark, not after the shared "I"
        {"chosen": "\n\nHuman: hi\n\nAssistant: I do", "rejected": "\n\nHuman: hi\n\nAssistant: I am"},
        "\n\nHuman: hi\n\nAssistant:",
        " I do",
        " I am",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_accepted_shape(tmp_path: Path, shape: str) -> None:
    row, prompt, chosen, rejected = SHAPES[shape]
    preference = only(tmp_path, row)
    assert (preference.prompt, preference.chosen, preference.rejected) == (prompt, chosen, rejected)
    assert preference.conversational == (not isinstance(prompt, str))
    assert preference.instruction == (prompt if isinstance(prompt, str) else prompt[-1].content)


UNUSABLE: list[tuple[str, dict[str, Any]]] = [
    ("empty_prompt", {**GOOD, "prompt": []}),
    ("empty_prompt", {"prompt": " ", "chosen": "yes", "rejected": "no"}),
    ("empty_response", {**GOOD, "chosen": [assistant(" \n")]}),
    ("empty_response", {**GOOD, "rejected": []}),
    ("empty_response", {**GOOD, "rejected": None}),
    ("identical_responses", {**GOOD, "rejected": [assistant("yes ")]}),
    ("identical_responses", {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]}),
    ("identical_responses", {"chosen": "The sky is blue.", "rejected": "The sky is blue."}),
    ("no_shared_prompt", {"chosen": "Yes.", "rejected": "No."}),
    ("no_shared_prompt", {"chosen": [user("a"), assistant("x")], "rejected": [user("b"), assistant("y")]}),
    ("prompt_mismatch", {"prompt": "hi", "chosen": [*TALK, assistant("x")], "rejected": [*TALK, assistant("y")]}),
    ("prompt_mismatch", {"prompt": TALK[:1], "chosen": [*TALK, assistant("x")], "rejected": [*TALK, assistant("y")]}),
    ("prompt_not_ending_in_user_turn", {**GOOD, "prompt": [user("hi"), assistant("hello")]}),
    ("response_not_one_assistant_turn", {**GOOD, "chosen": [assistant("yes"), user("why"), assistant("so")]}),
    ("response_not_one_assistant_turn", {**GOOD, "chosen": [user("yes")]}),
    ("response_not_one_assistant_turn", {"chosen": TALK[:2], "rejected": [*TALK, assistant("more")]}),
    (
        "tools",
        {
            "input": {"messages": TALK, "tools": [{"type": "function"}]},
            "preferred_output": [assistant("yes")],
            "non_preferred_output": [assistant("no")],
        },
    ),
    ("content_not_text", {**GOOD, "chosen": [{"role": "assistant", "content": None}]}),
    ("content_not_text", {**GOOD, "prompt": [{"role": "user", "content": [{"type": "image"}]}]}),
    ("invalid_unicode", {**GOOD, "chosen": [assistant("\ud800")]}),
]


@pytest.mark.parametrize(("reason", "row"), UNUSABLE)
def test_an_unusable_row_is_dropped_and_counted_by_reason(tmp_path: Path, reason: str, row: dict[str, Any]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (GOOD, row, GOOD)))
    records = load_preferences(path)
    assert [preference.id for preference in records.rows] == ["1", "3"]
    assert records.dropped == {reason: 1} and records.examples == {reason: [2]}
    assert f"2 pairs, 1 rows dropped: 1 x {reason} ({DROP_REASONS[reason]}; rows 2)" == records.describe()


def test_every_reason_has_a_case() -> None:
    assert {reason for reason, _ in UNUSABLE} == set(DROP_REASONS)


def test_only_the_first_few_row_numbers_are_kept(tmp_path: Path) -> None:
    records = load_preferences(write(tmp_path / "rows.jsonl", [{**GOOD, "prompt": []}] * 7 + [GOOD]))
    assert records.dropped == {"empty_prompt": 7} and records.examples == {"empty_prompt": [1, 2, 3, 4, 5]}
    assert records.describe().endswith("rows 1, 2, 3, 4, 5, ...)")


MALFORMED: list[tuple[str, str]] = [
    ('{"chosen": "a", ', r"not valid JSON .*one JSON object a line"),
    ("[1, 2]", "must be a JSON object, not list"),
    ('{"question": "a", "answer": "b"}', r"no column 'chosen' \(there are: question, answer\)"),
    ('{"prompt": "a", "chosen": "b"}', "no column 'rejected'"),
    ('{"input": {"messages": []}, "preferred_output": []}', "no column 'non_preferred_output'"),
    ('{"input": "a", "preferred_output": [], "non_preferred_output": []}', "input must be .*messages"),
    ('{"prompt": "a", "chosen": 1, "rejected": 2}', "must both be text or both be lists|text or a list of turns"),
    ('{"prompt": "a", "chosen": "b", "rejected": [{"role": "assistant", "content": "c"}]}', "must both be text"),
    ('{"prompt": 7, "chosen": "b", "rejected": "c"}', "prompt must be text or a list of turns, not int"),
    ('{"prompt": [{"from": "human", "value": "x"}], "chosen": "b", "rejected": "c"}', 'must be {"role": "user"'),
    ("[" * 100_000, "not valid JSON"),
]


@pytest.mark.parametrize(("line", "reason"), MALFORMED)
def test_a_malformed_line_stops_the_reading_with_its_number(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + line + "\n")  # blank lines are no rows but count as lines
    with pytest.raises(DataError, match=reason) as caught:
        load_preferences(path)
    assert (caught.value.path, caught.value.line) == (str(path), 3)


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"chosen": "caf\xe9", "rejected": "b"}\n')
    with pytest.raises(DataError, match="UTF-8") as caught:
        load_preferences(path)
    assert caught.value.line == 2


def test_a_byte_order_mark_is_forgiven(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert len(load_preferences(path).rows) == 1


def test_a_gzip_file_that_breaks_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(GOOD) + "\n").encode())[:-12])
    with pytest.raises(DataError, match="breaks off here"):
        load_preferences(path)
    path.write_text(json.dumps(GOOD))
    with pytest.raises(DataError, match=r"breaks off here.*gzip"):
        load_preferences(path)


def test_an_empty_file_and_a_file_of_unusable_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row in it: give a source with at least one"):
        load_preferences(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(DataError, match=r"no row of 2 can be used: 2 x no_shared_prompt \(there is no prompt column"):
        load_preferences(write(tmp_path / "bad.jsonl", [{"chosen": "Yes.", "rejected": "No."}] * 2))


def test_limit_counts_usable_rows_and_reads_no_further(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{**GOOD, "prompt": []}, GOOD, GOOD, GOOD])
    path.write_bytes(path.read_bytes() + b"not JSON\n")
    records = load_preferences(str(path), limit=2)
    assert [row.id for row in records.rows] == ["2", "3"] and records.dropped == {"empty_prompt": 1}
    with pytest.raises(DataError, match="at least 1"):
        load_preferences(path, limit=0)


def test_ids_are_kept_and_invented_from_the_line(tmp_path: Path) -> None:
    rows = load_preferences(write(tmp_path / "a.jsonl", [{**GOOD, "id": "q-7"}, {**GOOD, "id": 12}, GOOD])).rows
    assert [row.id for row in rows] == ["q-7", "12", "3"]


def test_the_same_rows_from_every_kind_of_source(tmp_path: Path) -> None:
    import datasets  # noqa: PLC0415  # lazy: a second of import that no other test here needs

    rows = [{**GOOD, "id": str(n), "extra": n, "chosen": [assistant(f"yes {n}")]} for n in range(3)]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    saved = datasets.Dataset(table)
    saved.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(tmp_path / "splits")
    want = load_preferences(write(tmp_path / "rows.jsonl", rows)).rows
    assert len(want) == 3
    assert load_preferences(write(tmp_path / "rows.jsonl.gz", rows)).rows == want
    assert load_preferences(tmp_path / "rows.parquet").rows == want
    assert load_preferences(tmp_path / "saved").rows == want
    assert load_preferences(tmp_path / "splits").rows == want, "train is the split when none is named"
    assert load_preferences(f"{tmp_path}/splits:test").rows == want[:1]
    with pytest.raises(DataError, match=r"no split 'dev' in it.*\['test', 'train'\]"):
        load_preferences(f"{tmp_path}/splits:dev")
    with pytest.raises(DataError, match="without splits"):
        load_preferences(f"{tmp_path}/saved:train")


def test_files_that_are_no_preference_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"kind of file is not known.*parquet"):
        load_preferences(tmp_path / "rows.csv")
    (tmp_path / "rows.parquet").write_text("a,b\n")
    with pytest.raises(DataError, match="parquet file cannot be read"):
        load_preferences(tmp_path / "rows.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"question": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"no column 'chosen' \(there are: question\)"):
        load_preferences(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"was not saved by datasets.*state.json"):
        load_preferences(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "/no/such/rows.jsonl",
        "./rows",
        "../a/b",
        "~/rows",
        "rows",
        "a/b/c",
        "data/rows.parquet",
        "tests/nothing",
        "C:\\x",
    ],
)
def test_a_missing_path_never_reaches_the_network(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").mkdir()  # "tests/nothing" looks like a hub id, but there is such a directory here
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no such file or directory \(looked for /") as caught:
        load_preferences(source)
    assert caught.value.path == source


def test_hub_rows_come_through_datasets_and_its_errors_become_one_sentence() -> None:
    class OnlyRows:
        column_names = ("chosen", "rejected", "score")

        def select_columns(self, names: list[str]) -> list[dict[str, Any]]:
            assert names == ["chosen", "rejected"]
            return [{"chosen": "a", "rejected": "b"}]

    asked = []

    def load(name: str, split: str) -> OnlyRows:
        asked.append((name, split))
        return OnlyRows()

    def fail(name: str, split: str) -> OnlyRows:
        raise RuntimeError("Couldn't reach the Hub\nlong tail")

    assert [row.number for row in hub_rows("org/name", "test", load)] == [1] and asked == [("org/name", "test")]
    with pytest.raises(DataError, match=r"^org/name: split 'test' .*\(Couldn't reach the Hub\): check the name"):
        list(hub_rows("org/name", "test", fail))


@given(
    prompt=st.text(min_size=1).filter(str.strip),
    chosen=st.text(min_size=1).filter(str.strip),
    rejected=st.text(min_size=1).filter(str.strip),
)
def test_implicit_texts_are_only_ever_cut_in_two(prompt: str, chosen: str, rejected: str) -> None:
    from simpo.records import _split_texts, _Unusable  # noqa: PLC0415  # the rule itself, without a file

    left, right = prompt + chosen, prompt + rejected
    try:
        head, first, second = _split_texts(left, right)
    except _Unusable as unusable:
        assert unusable.reason == "identical_responses" and left == right
        return
    assert head + first == left and head + second == right and head.strip()


COUNTS = {  # rows in the files: every one is usable
    "hh_helpful_train": 1533,
    "hh_helpful_eval": 300,
    "hh_harmless_train": 1707,
    "hh_harmless_eval": 200,
    "qa_feedback_train": 2210,
    "qa_feedback_eval": 254,
    "alpacaeval1_gpt4_train": 4033,
    "alpacaeval1_gpt4_eval": 501,
    "pandalm_human_eval": 829,
    "llmbar_eval": 419,
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real preference data is not beside this checkout")
@pytest.mark.parametrize("name", COUNTS)
def test_real_preferences_load_whole(name: str) -> None:
    records = load_preferences(SHARED / f"{name}.jsonl.gz")
    assert len(records.rows) == COUNTS[name] and records.dropped == {}
    assert all(row.conversational and row.instruction and row.chosen != row.rejected for row in records.rows)
