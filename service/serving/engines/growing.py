"""A key-value cache that grows in place: a step writes one column, where a concatenation would copy all of them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM = 64  # columns made at a time


def new_cache() -> DynamicCache:
    """An empty one. `layer.keys` and `layer.values` (B, H, T, D) may be read, and replaced, at any time."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache


def joined(caches: Sequence[DynamicCache]) -> DynamicCache:
    """All rows in the first of these caches, aligned at the right: a shorter one has zeros on its left."""
    width = max(cache.get_seq_length() for cache in caches)
    for first, *others in zip(*(cache.layers for cache in caches), strict=True):
        layers = (first, *others)
        keys, values = _beside([each.keys for each in layers], width), _beside([each.values for each in layers], width)
        first.hold(keys, values, width)
    return caches[0]


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer: the first columns of buffers, as long as nobody put something else in their place.

    What was read of them stays as it is: only columns behind it are written.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._shown: tuple[Tensor, Tensor] | None = None  # what `update` left in keys and values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D); returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        width, new = self.get_seq_length(), key_states.shape[-2]
        if width == 0:
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        until = width + new
        keys, values = self._roomy(until)
        keys[:, :, width:until], values[:, :, width:until] = key_states, value_states
        self.hold(keys, values, until)
        return self.keys, self.values

    def hold(self, keys: Tensor, values: Tensor, width: int) -> None:
        """Take buffers of which so many columns are filled."""
        self._buffers = keys, values
        self.keys, self.values = keys[:, :, :width], values[:, :, :width]
        self._shown = self.keys, self.values

    def _roomy(self, until: int) -> tuple[Tensor, Tensor]:
        """The buffers, with room for so many columns, that begin with what the layer holds."""
        shown = self._shown is not None and self._shown[0] is self.keys and self._shown[1] is self.values
        if shown and self._buffers is not None and self._buffers[0].shape[-2] >= until:
            return self._buffers
        width = self.keys.shape[-2]
        return _beside([self.keys], width, until - width), _beside([self.values], width, until - width)


def _beside(parts: Sequence[Tensor], width: int, room: int = 0) -> Tensor:
    """(sum of B, H, width + room + _ROOM, D) that begins with these (B, H, T, D), zeros on the left of shorter ones."""
    rows, (_, h, _, d) = sum(len(part) for part in parts), parts[0].shape
    buffer = parts[0].new_empty((rows, h, width + room + _ROOM, d))
    row = 0
    for part in parts:
        filled = buffer[row : row + len(part)]
        filled[:, :, : width - part.shape[-2]] = 0.0
        filled[:, :, width - part.shape[-2] : width] = part
        row += len(part)
    return buffer
