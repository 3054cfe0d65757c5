"""A tokenizer under one token policy: what it writes, how a conversation becomes text, how text becomes ids.

`tokenize.py` states the rules that this carries out.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from simpo.config import MAX_TEMPLATE, TokenPolicy
from simpo.errors import ModelError
from simpo.packing import TokenPair
from simpo.records import Message, Preference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Sequence[Message | Mapping[str, str]]

DROP_REASONS: Mapping[str, str] = {
    "too_long": "prompt and longer response exceed max_length: raise it, shorten the rows, or set truncation",
    "no_room": "the prompt leaves no room for a response in max_length: raise it, or shorten the prompt",
    "cut_alike": "cut to max_length, chosen and rejected are the same: raise it",
    "empty_prompt": "the prompt has no token",
    "empty_response": "chosen or rejected has no token before its end",
    "identical_responses": "chosen and rejected become the same ids",
    "prompt_boundary": "the prompt's text or ids are not what the conversation begins with: use a chat template that "
    "renders a prompt alike with and without its answer, and let plain prompts not end in a space",
    "control_token_in_text": "a turn spells one of the tokenizer's control tokens",
    "template_refused": "the chat template raised an error, for example over a system turn, or wrote without end",
}
"""Why a pair is dropped: the key under which it is counted, and a sentence for people."""

_TEMPLATE_FAULTS = (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
"""What the Python under a template raises beside Jinja's own errors: range(10 ** 9) is the sandbox's OverflowError."""
_REPEATS = 8  # times that a turn's text may stand in what is rendered: as JSON a character may take six

_PROBE = [{"role": "user", "content": "question"}]


class Unusable(Exception):
    """One row that the rules leave out: a key of DROP_REASONS, and what is special about this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def check_template(template: object, field: str | None = None) -> None:
    """Raises ModelError for a chat template, or a dict of them, of more than MAX_TEMPLATE characters."""
    texts = template.values() if isinstance(template, Mapping) else [template or ""]
    size = sum(len(str(text)) for text in texts)
    if size > MAX_TEMPLATE:
        raise ModelError(
            f"the chat template has {size} characters, and {MAX_TEMPLATE} at most are taken: it is a program of "
            "whoever made the model. Give a shorter one as tokens.chat_template",
            field,
        )


class Encoder:
    """A tokenizer under a policy, with the few facts about it that the rules need, found once."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", policy: TokenPolicy) -> None:
        """Raises ModelError.

        The template is too long, or refuses one question with its answer; no token could end a response.
        """
        self.tokenizer = tokenizer
        self.policy = policy
        self.template = policy.chat_template or tokenizer.chat_template
        check_template(self.template)
        self.specials = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in tokenizer.all_special_tokens}
        # Chat markers are often special without being one of bos, eos, pad ...
        self.specials |= {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.control = re.compile("|".join(re.escape(token) for token in sorted(self.specials)) or r"(?!)")
        self.bos: int | None = tokenizer.bos_token_id
        self.adds_bos: bool = self.bos is not None and tokenizer("a")["input_ids"][:1] == [self.bos]
        self.eos: int | None = tokenizer.eos_token_id
        self.stops = self._stops()

    @cached_property
    def template_writes_bos(self) -> bool:
        """Whether the chat template spells the BOS token itself, so that `tokenizer(text)` may double it."""
        return self.bos is not None and self._rendered_ids()[:1] == [self.bos]

    @cached_property
    def template_doubles_bos(self) -> bool:
        """Whether the chat template spells the BOS token twice in front. `encode` keeps one."""
        return self.bos is not None and self._rendered_ids()[:2] == [self.bos, self.bos]

    @cached_property
    def takes_system(self) -> bool:
        """Whether the chat template writes a system turn: found by rendering one, not by the word in its text."""
        if not self.template:
            return False
        try:
            filled = self._render([{"role": "system", "content": "instruction"}, *_PROBE])
            self._render([{"role": "system", "content": ""}, *_PROBE])
        except Unusable:
            return False
        return "instruction" in filled

    def prompt_text(self, prompt: str | Turns) -> str:
        """The text after which the response begins."""
        if isinstance(prompt, str):
            return prompt
        turns = self._conversation(prompt)
        for turn in turns:
            self._refuse_control(turn["content"])
        return self._render(turns, add_generation_prompt=True)

    def texts(self, row: Preference) -> tuple[str, str, str, str]:
        """(prompt, prompt without its header where that is counted, prompt + chosen, prompt + rejected)."""
        prompt = self.prompt_text(row.prompt)
        if isinstance(row.prompt, str):
            return prompt, prompt, prompt + row.chosen, prompt + row.rejected
        turns = self._conversation(row.prompt)
        both = []
        for answer in (row.chosen, row.rejected):
            self._refuse_control(answer)
            text = self._render([*turns, {"role": "assistant", "content": answer}])
            if not text.startswith(prompt):
                raise Unusable("prompt_boundary")
            both.append(text)
        return prompt, self._render(turns) if self.policy.count_assistant_header else prompt, both[0], both[1]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids with exactly one BOS in front, where this tokenizer, its template or the text itself begins with one."""
        return [self._one_bos(ids) for ids in self._ids(texts)]

    def pair(self, prompt: list[int], bare: list[int], both: list[list[int]], *, conversational: bool) -> TokenPair:
        """The whole pair, nothing cut, from the ids of the four `texts`. Raises Unusable."""
        if not prompt or not bare:
            raise Unusable("empty_prompt")
        header = prompt[len(bare) :]
        if prompt[: len(bare)] != bare or any(ids[: len(prompt)] != prompt for ids in both):
            raise Unusable("prompt_boundary")
        chosen, rejected = (header + self._ended(ids[len(prompt) :], conversational) for ids in both)
        if chosen == rejected:
            raise Unusable("identical_responses")
        return TokenPair(prompt=bare, chosen=chosen, rejected=rejected)

    def _stops(self) -> set[int]:
        stops = set() if self.eos is None else {self.eos}
        if self.template:
            try:
                after = self._render([*_PROBE, {"role": "assistant", "content": "answer"}]).rpartition("answer")[2]
            except Unusable as unusable:
                raise ModelError(
                    f"{unusable.detail} over one question with its answer: mend the template",
                    "tokens.chat_template" if self.policy.chat_template else None,
                ) from unusable
            ends = [i for i in self._ids([after])[0] if i in self.specials.values()]
            stops.update(ends[:1])
        if not stops:
            raise ModelError(
                "this tokenizer has no EOS token, and its chat template ends a turn with no special token: nothing "
                "could end an answer. Set eos_token in tokenizer_config.json"
            )
        return stops

    def _rendered_ids(self) -> list[int]:
        """The ids of one question as the template writes it; none where there is no template, or it refuses."""
        try:
            return self._ids([self._render(_PROBE)])[0] if self.template else []
        except Unusable:
            return []

    def _conversation(self, turns: Turns) -> list[dict[str, str]]:
        """The turns under the policy's rule for system turns."""
        if not self.template:
            raise ModelError(
                "this tokenizer has no chat template, so it cannot render a conversation: use the instruct variant of "
                "the model, give tokens.chat_template, or give prompts and responses as plain text"
            )
        plain = [_turn(turn) for turn in turns]
        if self.policy.system == "empty" and plain and plain[0]["role"] != "system" and self.takes_system:
            return [{"role": "system", "content": ""}, *plain]
        return plain

    def _one_bos(self, ids: list[int]) -> list[int]:
        if self.adds_bos and self.bos is not None and ids[:1] != [self.bos]:
            return [self.bos, *ids]
        while len(ids) > 1 and ids[0] == ids[1] == self.bos:
            ids = ids[1:]
        return ids

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
            raise Unusable("empty_response")
        return response

    def _render(self, turns: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        from jinja2 import TemplateError  # noqa: PLC0415  # lazy: only where there is a template

        try:
            text = str(
                self.tokenizer.apply_chat_template(
                    turns,
                    chat_template=self.policy.chat_template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )
        except TemplateError as error:
            raise Unusable("template_refused", f"the chat template says: {error}") from error
        except _TEMPLATE_FAULTS as error:
            raise Unusable("template_refused", f"the chat template fails: {error or type(error).__name__}") from error
        room = MAX_TEMPLATE * (len(turns) + 1) + _REPEATS * sum(len(turn["content"]) for turn in turns)
        if len(text) > room:
            raise Unusable(
                "template_refused", f"the chat template makes {len(text)} characters; {room} at most are taken"
            )
        return text

    def _refuse_control(self, text: str) -> None:
        found = self.control.search(text)
        if found:
            raise Unusable("control_token_in_text", f"a turn spells the control token {found[0]!r}: write it otherwise")

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]


def _turn(turn: Message | Mapping[str, str]) -> dict[str, str]:
    if isinstance(turn, Message):
        return {"role": turn.role, "content": turn.content}
    return {"role": turn["role"], "content": turn["content"]}
