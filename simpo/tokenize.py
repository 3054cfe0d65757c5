"""Text becomes token ids under one policy: training, generation and serving all pass through `encode_prompt`.

The rules, with their sources (the SimPO authors' code and TRL 1.16 differ; a row says whose rule we follow):

* The chat template is the tokenizer's own or the policy's, never one picked by a model's name. Plain text is
  concatenated as it is.
* The prompt is rendered with the generation prompt; a response is what the whole conversation adds to it (TRL). With
  `count_assistant_header` the header ("assistant\\n\\n" and its marks) moves into the response (the authors' code).
  The ids of prompt + response are the same either way; only the count |y| changes.
* Exactly one BOS, where template, tokenizer or text begin with one. A second one costs points (SimPO README, Llama-3).
* With `system: empty` a conversation without a system turn gets an empty one, where the template writes system turns;
  the authors look for the word "system" in the template's text, which Gemma's has in its refusal of system turns.
* A response ends in the template's end-of-turn token or in EOS, and nothing follows: not the newline that ChatML and
  Gemma write after it (TRL scores that newline; no model ever has to produce it), nor a second end (the authors' code).
* Both responses follow the same prompt ids. Where text and token boundaries disagree the pair is dropped, not bent.
* A pair over `max_length` is dropped, so that every response that is scored ends as it was written; or cut by one of
  the two published rules (`truncate.py`), and counted. What is cut to nothing is dropped: no empty response, no NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simpo.config import TokenPolicy
from simpo.encoder import DROP_REASONS, Encoder, Turns, Unusable
from simpo.errors import DataError
from simpo.packing import TokenPair
from simpo.records import Preference, Records
from simpo.truncate import cut_prompt, truncate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """What tokenising gave."""

    pairs: list[TokenPair] = field(default_factory=list)
    """The usable pairs, in the order of the rows. Responses hold their end token, unless they were cut."""
    rows: list[int] = field(default_factory=list)
    """For each pair, the index of its row."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, counted by a key of `encoder.DROP_REASONS`."""
    truncated: dict[str, int] = field(default_factory=dict)
    """What was cut, counted by a key of `truncate.TRUNCATIONS`; empty when nothing was."""


def encode_prompt(prompt: str | Turns, tokenizer: "PreTrainedTokenizerBase", policy: TokenPolicy) -> list[int]:
    """The ids after which a response begins: rendered with the generation prompt, exactly one BOS.

    prompt: plain text, or turns ({"role", "content"} or Message). One that fills max_length is cut as in training where
    the policy cuts prompts (truncation: reference), and refused elsewhere.
    Raises ModelError (no chat template), DataError (the template refuses the turns; a turn spells a control token;
    longer than max_length).
    """
    encoder = Encoder(tokenizer, policy)
    try:
        ids = encoder.encode([encoder.prompt_text(prompt)])[0]
    except Unusable as unusable:
        raise DataError(
            f"{unusable.reason}: {unusable.detail or DROP_REASONS[unusable.reason]}", "prompt"
        ) from unusable
    if not ids:
        raise DataError("the prompt has no token: give it some text", "prompt")
    if len(ids) < policy.max_length:
        return ids
    if policy.max_prompt_length is not None:
        return cut_prompt(ids, policy.max_prompt_length, encoder.bos)
    raise DataError(
        f"the prompt has {len(ids)} tokens, which leaves no room in max_length {policy.max_length}: shorten it",
        "prompt",
    )


def tokenize_preferences(
    records: Records | Sequence[Preference], tokenizer: "PreTrainedTokenizerBase", policy: TokenPolicy
) -> Tokenized:
    """Token pairs of the records under the policy; those that it leaves out or cuts are counted.

    Raises ModelError (conversations without a chat template; no token can end a response), DataError (no pair left).
    """
    rows = records.rows if isinstance(records, Records) else list(records)
    result = tokenize_rows(rows, Encoder(tokenizer, policy))
    if not result.pairs:
        counts = sorted(result.dropped.items())
        why = "; ".join(f"{count} x {reason} ({DROP_REASONS[reason]})" for reason, count in counts)
        raise DataError(f"no pair of {len(rows)} is left after tokenising: {why or 'there was no row'}")
    return result


def tokenize_rows(rows: Sequence[Preference], encoder: Encoder) -> Tokenized:
    """`tokenize_preferences` for one part of the rows, of which none may be usable."""
    result = Tokenized()
    texts: list[str] = []  # four a row: prompt, prompt without its header, prompt + chosen, prompt + rejected
    kept: list[int] = []
    for index, row in enumerate(rows):
        try:
            texts += encoder.texts(row)
            kept.append(index)
        except Unusable as unusable:
            _count(result.dropped, {unusable.reason: 1})
    ids = encoder.encode(texts)
    for position, index in enumerate(kept):
        prompt, bare, *both = ids[4 * position : 4 * position + 4]
        try:
            whole = encoder.pair(prompt, bare, both, conversational=rows[index].conversational)
            result.pairs.append(_fitted(whole, encoder, result.truncated))
            result.rows.append(index)
        except Unusable as unusable:
            _count(result.dropped, {unusable.reason: 1})
    return result


def stop_token_ids(tokenizer: "PreTrainedTokenizerBase", policy: TokenPolicy) -> list[int]:
    """The ids at which generation stops: EOS and what the chat template writes after an assistant turn, ascending.

    These are the very tokens that end a response in training. Raises ModelError where there is neither.
    """
    return sorted(Encoder(tokenizer, policy).stops)


def _fitted(whole: TokenPair, encoder: Encoder, truncated: dict[str, int]) -> TokenPair:
    """The pair within max_length. Raises Unusable where the rule, or what it leaves, takes the pair out."""
    cut = truncate(whole, encoder.policy, encoder.bos)
    if cut is None:
        raise Unusable("too_long")
    if not cut.pair.chosen or not cut.pair.rejected:
        raise Unusable("no_room")
    if cut.pair.chosen == cut.pair.rejected:
        raise Unusable("cut_alike")
    _count(truncated, cut.counts())
    return cut.pair


def _count(counts: dict[str, int], more: dict[str, int]) -> None:
    for key, count in more.items():
        counts[key] = counts.get(key, 0) + count
