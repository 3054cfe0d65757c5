"""Prefix reuse: keys and values of prompts read lately, for prompts that begin alike.

Serves `n` answers to one prompt, a talk that grows, and a system message that everybody sends. What a token's keys and
values are follows from the tokens before it and the weights alone, so an entry belongs to one adapter.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor
from transformers import DynamicCache

from service.serving.engines.growing import new_cache

MAX_TOKENS = 4096
"""Prompt tokens that are kept in all; a prompt longer than that is not kept."""
_LEAST = 16  # a shorter common beginning is read anew as fast as it is copied


class Prefixes:
    """A bounded store, least recently used out first. Used by the decoder's thread alone."""

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._entries: OrderedDict[tuple[object, tuple[int, ...]], list[tuple[Tensor, Tensor]]] = OrderedDict()
        self.reused_tokens = 0

    def begin(self, prompt_ids: Sequence[int], owner: object) -> tuple[DynamicCache, int]:
        """A cache for this prompt, and how many of its tokens are in it: not all, for the last one gives the logits."""
        cache = new_cache()
        best, length = self._longest(tuple(prompt_ids), owner)
        if best is None:
            return cache, 0
        self._entries.move_to_end(best)
        for layer, (keys, values) in enumerate(self._entries[best]):
            cache.update(keys[:, :, :length], values[:, :, :length], layer)
        self.reused_tokens += length
        return cache, length

    def _longest(self, ids: tuple[int, ...], owner: object) -> tuple[tuple[object, tuple[int, ...]] | None, int]:
        best, length = None, _LEAST - 1
        for key in self._entries:
            if key[0] is owner and (common := min(_common(key[1], ids), len(ids) - 1)) > length:
                best, length = key, common
        return best, length

    def helps(self, prompt_ids: Sequence[int], owner: object) -> bool:
        """Whether `begin` would find something."""
        return self._longest(tuple(prompt_ids), owner)[0] is not None

    def keep(self, prompt_ids: Sequence[int], owner: object, cache: DynamicCache, row: int | None = None) -> None:
        """Note a prompt whose cache has just been filled. Its tensors are shared: nobody writes into them.

        `row`: its place in a cache that holds several, aligned at the right; that part is copied.
        """
        ids = tuple(prompt_ids)
        if not _LEAST < len(ids) <= self._max_tokens:
            return
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        if row is not None:
            part = (slice(row, row + 1), slice(None), slice(-len(ids), None))
            layers = [(keys[part].clone(), values[part].clone()) for keys, values in layers]
        self._entries[owner, ids] = layers
        self._entries.move_to_end((owner, ids))
        while sum(len(key[1]) for key in self._entries) > self._max_tokens:
            self._entries.popitem(last=False)


def begins(prompt_ids: Sequence[int], owner: object) -> tuple[object, tuple[int, ...]] | None:
    """Prompts for which this is the same may have more in common; no others have. None: it is too short to share."""
    return (owner, tuple(prompt_ids[:_LEAST])) if len(prompt_ids) > _LEAST else None


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    if one[:_LEAST] != other[:_LEAST]:
        return 0
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
