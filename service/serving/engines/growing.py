"""A key-value cache that grows in place: a step writes one column, where a concatenation would copy all of them."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM = 64  # columns made at a time


def new_cache() -> DynamicCache:
    """An empty one. `layer.keys` and `layer.values` (B, H, T, D) may be read, and replaced, at any time."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache


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
        self.keys, self.values = keys[:, :, :until], values[:, :, :until]
        self._shown = self.keys, self.values
        return self.keys, self.values

    def _roomy(self, until: int) -> tuple[Tensor, Tensor]:
        """The buffers, with room for so many columns, that begin with what the layer holds."""
        shown = self._shown is not None and self._shown[0] is self.keys and self._shown[1] is self.values
        if shown and self._buffers is not None and self._buffers[0].shape[-2] >= until:
            return self._buffers
        self._buffers = _copied(self.keys, until + _ROOM), _copied(self.values, until + _ROOM)
        return self._buffers


def _copied(states_BHTD: Tensor, columns: int) -> Tensor:
    b, h, t, d = states_BHTD.shape
    buffer = torch.empty((b, h, columns, d), dtype=states_BHTD.dtype, device=states_BHTD.device)
    buffer[:, :, :t] = states_BHTD
    return buffer
