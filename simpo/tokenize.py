"""Text becomes token ids under one policy: training, generation and serving all pass through `encode_prompt`.

The rules, with their sources (the SimPO authors' code and TRL 1.16 differ; a row says whose rule we follow):

* The chat template is the tokenizer's own, never one picked by a model's name. Plain text is concatenated as it is.
* The prompt is rendered with the generation prompt; a response is what the whole conversation adds to it (TRL). With
  `count_assistant_header` the header ("assistant\\n\\n" and its marks) moves into the response (the authors' code).
  The ids of prompt + response are the same either way; only the count |y| changes.
* Exactly one BOS, where template or tokenizer begin with one. A second one costs points (SimPO README, Llama-3).
* A response ends in the template's end-of-turn token or in EOS, and nothing follows: not the newline that ChatML and
  Gemma write after it (TRL scores that newline; no model ever has to produce it), nor a second end (the authors' code).
* Both responses follow the same prompt ids. Where text and token boundaries disagree the pair is dropped, not bent.
* Nothing is cut. A pair over `max_length` is dropped, so every response that is scored ends as it was written.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simpo.config import TokenPolicy
from simpo.errors import DataError, ModelError
from simpo.packing import TokenPair
from simpo.records import Message, Preference, Records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Sequence[Message | Mapping[str, str]]

DROP_REASONS: Mapping[str, str] = {
    "too_long": "prompt and longer response exceed max_length: raise it or shorten the rows",
    "empty_prompt": "the prompt has no token",
    "empty_response": "chosen or rejected has no token before its end",
    "identical_responses": "chosen and rejected become the same ids",
    "prompt_boundary": "the prompt's text or ids are not what the conversation begins with: use a chat template that "
    "renders a prompt alike with and without its answer, and let plain prompts not end in a space",
    "control_token_in_text": "a turn spells one of the tokenizer's control tokens",
    "template_refused": "the chat template raised an error, for example over a system turn",
}
"""Why a pair is dropped: the key under which it is counted, and a sentence for people."""


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """What tokenising gave."""

    pairs: list[TokenPair]
    """The usable pairs, in the order of the rows. Responses hold their end token."""
    rows: list[int]
    """For each pair, the index of its row."""
    dropped: dict[str, int]
    """Rows left out, counted by a key of DROP_REASONS."""


def encode_prompt(prompt: str | Turns, tokenizer: "PreTrainedTokenizerBase", policy: TokenPolicy) -> list[int]:
    """The ids after which a response begins: rendered with the generation prompt, exactly one BOS.

    prompt: plain text, or turns ({"role", "content"} or Message).
    Raises ModelError (no chat template), DataError (the template refuses the turns; a turn spells a control token;
    longer than max_length).
    """
    encoder = _Encoder(tokenizer)
    try:
        ids = encoder.encode([encoder.prompt_text(prompt)])[0]
    except _Unusable as unusable:
        raise DataError(
            f"{unusable.reason}: {unusable.detail or DROP_REASONS[unusable.reason]}", "prompt"
        ) from unusable
    if not ids:
        raise DataError("the prompt has no token: give it some text", "prompt")
    if len(ids) >= policy.max_length:
        raise DataError(
            f"the prompt has {len(ids)} tokens, which leaves no room in max_length {policy.max_length}: shorten it",
            "prompt",
        )
    return ids


def tokenize_preferences(
    records: Records | Sequence[Preference], tokenizer: "PreTrainedTokenizerBase", policy: TokenPolicy
) -> Tokenized:
    """Token pairs of the records that fit the policy; the others are counted.

    Raises ModelError (conversations without a chat template; no token can end a response), DataError (no pair left).
    """
    rows = records.rows if isinstance(records, Records) else list(records)
    encoder = _Encoder(tokenizer)
    dropped: dict[str, int] = {}
    texts: list[str] = []  # four a row: prompt, prompt without its header, prompt + chosen, prompt + rejected
    kept: list[int] = []
    for index, row in enumerate(rows):
        try:
            texts += encoder.texts(row, policy)
            kept.append(index)
        except _Unusable as unusable:
            dropped[unusable.reason] = dropped.get(unusable.reason, 0) + 1
    ids = encoder.encode(texts)
    result = Tokenized(pairs=[], rows=[], dropped=dropped)
    for position, index in enumerate(kept):
        prompt, bare, *both = ids[4 * position : 4 * position + 4]
        try:
            result.pairs.append(encoder.pair(prompt, bare, both, rows[index].conversational, policy))
            result.rows.append(index)
        except _Unusable as unusable:
            dropped[unusable.reason] = dropped.get(unusable.reason, 0) + 1
    if not result.pairs:
        why = "; ".join(f"{count} x {reason} ({DROP_REASONS[reason]})" for reason, count in sorted(dropped.items()))
        raise DataError(f"no pair of {len(rows)} is left after tokenising: {why or 'there was no row'}")
    return result


def stop_token_ids(tokenizer: "PreTrainedTokenizerBase", policy: TokenPolicy) -> list[int]:
    """The ids at which generation stops: EOS and what the chat template writes after an assistant turn, ascending.

    These are the very tokens that end a response in training; no field of the policy changes them today.
    Raises ModelError where there is neither.
    """
    del policy
    return sorted(_Encoder(tokenizer).stops)


class _Unusable(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        assert reason in DROP_REASONS
        self.reason = reason
        self.detail = detail


class _Encoder:
    """A tokenizer with the few facts about it that the rules need, found once."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self.specials = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in tokenizer.all_special_tokens}
        # Chat markers are often special without being one of bos, eos, pad ...
        self.specials |= {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.control = re.compile("|".join(re.escape(token) for token in sorted(self.specials)) or r"(?!)")
        bos = tokenizer.bos_token_id
        self.bos: int | None = bos if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else None
        self.eos: int | None = tokenizer.eos_token_id
        self.stops = self._stops()

    def _stops(self) -> set[int]:
        stops = set() if self.eos is None else {self.eos}
        if self.tokenizer.chat_template:
            turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
            try:
                after = self._render(turns).rpartition("answer")[2]
            except _Unusable as unusable:
                raise ModelError(
                    f"{unusable.detail} over one question with its answer: mend the template"
                ) from unusable
            ends = [i for i in self._ids([after])[0] if i in self.specials.values()]
            stops.update(ends[:1])
        if not stops:
            raise ModelError(
                "this tokenizer has no EOS token, and its chat template ends a turn with no special token: nothing "
                "could end an answer. Set eos_token in tokenizer_config.json"
            )
        return stops

    def texts(self, row: Preference, policy: TokenPolicy) -> tuple[str, str, str, str]:
        """(prompt, prompt without its header where that is counted, prompt + chosen, prompt + rejected)."""
        prompt = self.prompt_text(row.prompt)
        if isinstance(row.prompt, str):
            return prompt, prompt, prompt + row.chosen, prompt + row.rejected
        turns = [_turn(turn) for turn in row.prompt]
        both = []
        for answer in (row.chosen, row.rejected):
            self._refuse_control(answer)
            text = self._render([*turns, {"role": "assistant", "content": answer}])
            if not text.startswith(prompt):
                raise _Unusable("prompt_boundary")
            both.append(text)
        return prompt, self._render(turns) if policy.count_assistant_header else prompt, both[0], both[1]

    def prompt_text(self, prompt: str | Turns) -> str:
        """The text after which the response begins."""
        if isinstance(prompt, str):
            return prompt
        if not self.tokenizer.chat_template:
            raise ModelError(
                "this tokenizer has no chat template, so it cannot render a conversation: use the instruct variant of "
                "the model, add a chat_template to its tokenizer, or give prompts and responses as plain text"
            )
        turns = [_turn(turn) for turn in prompt]
        for turn in turns:
            self._refuse_control(turn["content"])
        return self._render(turns, add_generation_prompt=True)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids with exactly one BOS, where this tokenizer or its template begins with one."""
        lists = self._ids(texts)
        if self.bos is None:
            return lists
        return [ids if ids[:1] == [self.bos] else [self.bos, *ids] for ids in lists]

    def pair(
        self, prompt: list[int], bare: list[int], both: list[list[int]], conversational: bool, policy: TokenPolicy
    ) -> TokenPair:
        if not prompt or not bare:
            raise _Unusable("empty_prompt")
        header = prompt[len(bare) :]
        if prompt[: len(bare)] != bare or any(ids[: len(prompt)] != prompt for ids in both):
            raise _Unusable("prompt_boundary")
        chosen, rejected = (header + self._ended(ids[len(prompt) :], conversational) for ids in both)
        if chosen == rejected:
            raise _Unusable("identical_responses")
        if len(bare) + max(len(chosen), len(rejected)) > policy.max_length:
            raise _Unusable("too_long")
        return TokenPair(prompt=bare, chosen=chosen, rejected=rejected)

    def _ended(self, response: list[int], conversational: bool) -> list[int]:
        """The response with exactly one end."""
        if conversational:  # its text spells no control token, so the first stop is the template's own
            for index, token in enumerate(response):
                if token in self.stops:
                    response = response[: index + 1]
                    break
        if not response or response[-1] not in self.stops:
            response = [*response, self.eos if self.eos is not None else min(self.stops)]
        if len(response) == 1:
            raise _Unusable("empty_response")
        return response

    def _render(self, turns: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        from jinja2 import TemplateError  # noqa: PLC0415  # lazy: only where there is a template

        try:
            return str(
                self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
            )
        except TemplateError as error:
            raise _Unusable("template_refused", f"the chat template says: {error}") from error

    def _refuse_control(self, text: str) -> None:
        found = self.control.search(text)
        if found:
            raise _Unusable(
                "control_token_in_text", f"a turn spells the control token {found[0]!r}: write it otherwise"
            )

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]


def _turn(turn: Message | Mapping[str, str]) -> dict[str, str]:
    if isinstance(turn, Message):
        return {"role": turn.role, "content": turn.content}
    return {"role": turn["role"], "content": turn["content"]}
