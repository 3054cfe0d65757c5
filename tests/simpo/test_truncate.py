"""The three truncation rules against the worked table of the two published ones, and what is counted about them."""

import warnings
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpo.config import TokenPolicy
from simpo.errors import DataError
from simpo.packing import TokenPair
from simpo.records import Message, Preference
from simpo.tokenize import encode_prompt, tokenize_preferences
from simpo.truncate import TRUNCATIONS, Cut, cut_prompt, truncate
from tests.simpo import tokenizer_zoo as zoo

quick = pytest.mark.quick

# (prompt, chosen, rejected, max_length, max_prompt_length), then what is kept: by the authors' code, and by TRL 1.16's
# CPO as (chosen's prompt, chosen), (rejected's prompt, rejected).
TABLE = [
    ((200, 1900, 300, 2048, 1800), (200, 248, 248), (200, 1848, 300)),
    ((1900, 100, 80, 2048, 1800), (1900, 100, 80), (1900, 100, 80)),
    ((1900, 300, 80, 2048, 1800), (1800, 248, 80), (1900, 148, 80)),
    ((600, 600, 100, 1024, 512), (512, 512, 100), (600, 424, 100)),
    ((400, 600, 100, 1024, 512), (400, 600, 100), (400, 600, 100)),
    ((400, 700, 100, 1024, 512), (400, 512, 100), (400, 624, 100)),
    ((2100, 50, 50, 2048, 1800), (1800, 50, 50), (2100, 0, 0)),
]
BOS = 7


def reference(max_length: int, max_prompt_length: int) -> TokenPolicy:
    return TokenPolicy(max_length=max_length, truncation="reference", max_prompt_length=max_prompt_length)


def trl(max_length: int) -> TokenPolicy:
    return TokenPolicy(max_length=max_length, truncation="trl")


def whole(prompt: int, chosen: int, rejected: int) -> TokenPair:
    """Ids that tell their part and their place: a prompt with BOS, counted responses."""
    return TokenPair(
        [BOS, *range(1001, 1000 + prompt)], list(range(5000, 5000 + chosen)), list(range(9000, 9000 + rejected))
    )


def plain(prompt: int, chosen: int, rejected: int) -> Preference:
    """Text whose ids have these counts under a byte tokenizer that adds BOS; responses get EOS."""
    return Preference(prompt="p" * (prompt - 1), chosen="c" * (chosen - 1), rejected="r" * (rejected - 1), id="1")


@quick
@pytest.mark.parametrize(("case", "by_reference", "by_trl"), TABLE)
def test_the_worked_table(
    case: tuple[int, int, int, int, int], by_reference: tuple[int, int, int], by_trl: tuple[int, int, int]
) -> None:
    *lengths, max_length, max_prompt_length = case
    pair = whole(*lengths)
    for policy, expected in ((reference(max_length, max_prompt_length), by_reference), (trl(max_length), by_trl)):
        cut = truncate(pair, policy, BOS)
        assert cut is not None
        assert tuple(map(len, cut.pair)) == expected
        assert [cut.prompt_lost, cut.chosen_lost, cut.rejected_lost] == [
            a - b for a, b in zip(lengths, expected, strict=True)
        ]
        assert pair.chosen[: expected[1]] == cut.pair.chosen, "responses keep their start"
        assert pair.rejected[: expected[2]] == cut.pair.rejected
        assert cut.pair.prompt[1:] == pair.prompt[len(pair.prompt) - expected[0] + 1 :], "the prompt keeps its end"
        assert cut.pair.prompt[0] == BOS, "and its BOS, which the authors' code loses"
    fits = lengths[0] + max(lengths[1:3]) <= max_length
    assert (truncate(pair, TokenPolicy(max_length=max_length), BOS) == Cut(pair, 0, 0, 0)) == fits


@pytest.mark.parametrize(("case", "_by_reference", "by_trl"), TABLE)
def test_trl_keeps_the_very_ids_that_we_keep(
    case: tuple[int, int, int, int, int], _by_reference: Any, by_trl: tuple[int, int, int]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's own deprecations are not ours to mend
        trainer = pytest.importorskip("trl.experimental.cpo.cpo_trainer").CPOTrainer
        accelerate = pytest.importorskip("accelerate")
    accelerate.PartialState(cpu=True)  # what its logger asks for
    *lengths, max_length, _ = case
    row, tokenizer = plain(*lengths), zoo.bytes_tokenizer(None, adds_bos=True)
    stub = SimpleNamespace(is_encoder_decoder=False, processing_class=tokenizer, max_length=max_length)
    stub.build_tokenized_answer = MethodType(trainer.build_tokenized_answer, stub)
    theirs = trainer.tokenize_row(stub, {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected})
    kept = {side: [label for label in theirs[f"{side}_labels"] if label != -100] for side in ("chosen", "rejected")}
    assert (len(theirs["prompt_input_ids"]), len(kept["chosen"]), len(kept["rejected"])) == by_trl
    if not kept["chosen"]:
        with pytest.raises(DataError, match="1 x no_room"):
            tokenize_preferences([row], tokenizer, trl(max_length))
        return
    (pair,) = tokenize_preferences([row], tokenizer, trl(max_length)).pairs
    assert pair == TokenPair(theirs["prompt_input_ids"], kept["chosen"], kept["rejected"])


@quick
def test_what_was_cut_is_counted() -> None:
    rows = [plain(8, 9, 3), plain(14, 9, 3), plain(4, 5, 3), plain(14, 4, 3)]
    tokenizer = zoo.bytes_tokenizer(None, adds_bos=True)
    result = tokenize_preferences(rows, tokenizer, reference(16, 10))
    assert [tuple(map(len, pair)) for pair in result.pairs] == [(8, 6, 3), (10, 6, 3), (4, 5, 3), (10, 4, 3)]
    assert result.truncated == {"pairs": 3, "chosen_without_end": 2, "prompts_cut": 2}
    assert set(result.truncated) <= set(TRUNCATIONS)
    eos = tokenizer.eos_token_id
    assert [pair.chosen[-1] == eos for pair in result.pairs] == [False, False, True, True]
    assert all(pair.prompt.count(tokenizer.bos_token_id) == 1 for pair in result.pairs)
    dropped = tokenize_preferences(rows, tokenizer, TokenPolicy(max_length=16))
    assert (dropped.rows, dropped.dropped, dropped.truncated) == ([2], {"too_long": 3}, {})


@quick
def test_a_response_cut_to_nothing_is_refused_and_counted() -> None:
    rows = [plain(16, 3, 4), plain(17, 3, 4), plain(15, 5, 4), plain(4, 3, 4)]
    result = tokenize_preferences(rows, zoo.bytes_tokenizer(None, adds_bos=True), trl(16))
    assert result.rows == [2, 3] and result.dropped == {"no_room": 2}
    assert [len(side) for side in result.pairs[0]] == [15, 1, 1], "one token each is a response"


@quick
def test_responses_that_differ_only_beyond_the_cut_teach_nothing() -> None:
    row = Preference(prompt="abcd", chosen="same start, then this", rejected="same start, but that", id="1")
    with pytest.raises(DataError, match="1 x cut_alike"):
        tokenize_preferences([row], zoo.bytes_tokenizer(None), trl(12))


@quick
def test_the_header_is_cut_with_the_part_that_counts_it() -> None:
    turns = (Message(role="user", content="what is it a red fox"),)
    row = Preference(prompt=turns, chosen="it is a fox", rejected="red cat", id="1")
    policy = TokenPolicy(max_length=18, truncation="reference", max_prompt_length=8)
    apart = tokenize_preferences([row], zoo.llama3(), policy).pairs[0]
    assert zoo.llama3().decode(apart.prompt).startswith("<|begin_of_text|>")
    assert zoo.llama3().decode(apart.prompt).endswith("<|start_header_id|> assistant <|end_header_id|> \n\n")
    with_header = TokenPolicy(max_length=14, truncation="trl", count_assistant_header=True)
    with pytest.raises(DataError, match="cut_alike"):  # nothing but the header would be left of either response
        tokenize_preferences([row], zoo.llama3(), with_header)


@quick
def test_a_prompt_to_be_answered_is_cut_as_in_training_or_refused() -> None:
    tokenizer = zoo.bytes_tokenizer(None, adds_bos=True)
    ids = encode_prompt("abcdefghijklmnop", tokenizer, reference(12, 8))
    assert tokenizer.decode(ids) == "<s>jklmnop"
    assert len(encode_prompt("abcdefghij", tokenizer, reference(12, 8))) == 11, "it fits: nothing is cut"
    with pytest.raises(DataError, match=r"17 tokens.*max_length 12"):
        encode_prompt("abcdefghijklmnop", tokenizer, trl(12))


@quick
def test_a_prompt_without_bos_is_cut_to_its_end() -> None:
    assert cut_prompt([1, 2, 3, 4], 2, None) == [3, 4]
    assert cut_prompt([1, 2, 3, 4], 2, 1) == [1, 4]
    assert cut_prompt([1, 2, 3, 4], 2, 9) == [3, 4]
    assert cut_prompt([1, 2], 2, 1) == [1, 2]


@quick
@settings(max_examples=80)
@given(prompt=st.integers(2, 60), chosen=st.integers(2, 60), rejected=st.integers(2, 60), max_length=st.integers(8, 80))
def test_every_kept_pair_fits_and_holds_both_responses(
    prompt: int, chosen: int, rejected: int, max_length: int
) -> None:
    pair = whole(prompt, chosen, rejected)
    for policy in (reference(max_length, max_length // 2), trl(max_length)):
        cut = truncate(pair, policy, BOS)
        assert cut is not None
        longest = len(cut.pair.prompt) + max(len(cut.pair.chosen), len(cut.pair.rejected))
        assert longest <= max_length or not cut.pair.chosen
        assert bool(cut.pair.chosen) == bool(cut.pair.rejected)
        assert cut.pair.prompt[0] == BOS
        fits = prompt + max(chosen, rejected) <= max_length
        assert (cut.counts() == {}) == fits == (cut.pair == pair)
