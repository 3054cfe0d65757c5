"""Prefix reuse: keys and values of prompts read lately, for prompts that begin alike.

Serves `n` answers to one prompt, a talk that grows, and a system message that everybody sends. What a token's keys and
values are follows from the tokens before it and the weights alone, so an entry belongs to one adapter.
"""

from collections import OrderedDict
from collections.abc import Sequence

from service.serving.engines.slots import States

MAX_TOKENS = 4096
"""Prompt tokens that are kept in all; a prompt longer than that is not kept."""
_LEAST = 16  # a shorter common beginning is read anew as fast as it is copied


class Prefixes:
    """A bounded store, least recently used out first. Used by the decoder's thread alone."""

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._entries: OrderedDict[tuple[object, tuple[int, ...]], States] = OrderedDict()
        self._num_tokens = 0
        self.reused_tokens = 0
        """Of all that were looked for, those that need not be read."""

    def longest(self, prompt_ids: Sequence[int], owner: object) -> tuple[States, int]:
        """What is known of a prompt's beginning, and of how many tokens: not all, for the last one gives the logits."""
        best, length = self._longest(tuple(prompt_ids), owner)
        if best is None:
            return {}, 0
        self._entries.move_to_end(best)
        return self._entries[best], length

    def _longest(self, ids: tuple[int, ...], owner: object) -> tuple[tuple[object, tuple[int, ...]] | None, int]:
        best, length = None, _LEAST - 1
        for key in self._entries:
            if key[0] is owner and (common := min(_common(key[1], ids), len(ids) - 1)) > length:
                best, length = key, common
        return best, length

    def wants(self, prompt_ids: Sequence[int], owner: object) -> bool:
        """Whether `keep` would keep it: it is neither too short, nor too long, nor there already."""
        return _LEAST < len(prompt_ids) <= self._max_tokens and (owner, tuple(prompt_ids)) not in self._entries

    def keep(self, prompt_ids: Sequence[int], owner: object, states: States) -> None:
        """Note a prompt that has just been read, and is wanted."""
        self._entries[owner, tuple(prompt_ids)] = states
        self._num_tokens += len(prompt_ids)
        while self._num_tokens > self._max_tokens:
            (_, ids), _ = self._entries.popitem(last=False)
            self._num_tokens -= len(ids)


def begins(prompt_ids: Sequence[int], owner: object) -> tuple[object, tuple[int, ...]] | None:
    """Prompts for which this is the same may have more in common; no others have. None: it is too short to share."""
    return (owner, tuple(prompt_ids[:_LEAST])) if len(prompt_ids) > _LEAST else None


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    if one[:_LEAST] != other[:_LEAST]:
        return 0
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
