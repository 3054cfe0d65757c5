"""Pair attention: in a packed row, each response attends to its prompt and to itself, never to its rival.

Registered with transformers' AttentionInterface under the name `PAIR`; the backbone is transformers' own. The mask
function registered beside it returns None: left to itself transformers takes restarting positions for document borders
and would cut the rejected response off from its prompt.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from simpo.errors import ModelError
from simpo.packing import MicroBatch, Segment

PAIR = "simpo_pair"
"""Name of the attention implementation, for `model.set_attn_implementation`."""


def register_pair_attention() -> None:
    """Make `PAIR` known to transformers. May be called any number of times."""
    AttentionInterface.register(PAIR, pair_attention)
    AttentionMaskInterface.register(PAIR, _no_mask)


class PairLayout:
    """What the attention of one micro-batch needs, made once and used by every layer."""

    def __init__(self, segments: tuple[Segment, ...], device: torch.device) -> None:
        self.segments = segments
        self.masks = [rejected_mask(s, device) if s.rejected else None for s in segments]

    @classmethod
    def of(cls, batch: MicroBatch, device: torch.device) -> "PairLayout":
        """The layout of a micro-batch."""
        return cls(batch.segments, device)


def rejected_mask(segment: Segment, device: torch.device) -> Tensor:
    """Boolean (R, P + R), True where the rejected query may look: all of the prompt, itself causally."""
    ones = torch.ones(segment.rejected, segment.prompt + segment.rejected, dtype=torch.bool, device=device)
    return ones.tril(diagonal=segment.prompt)


def pair_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    pair_layout: PairLayout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over a packed row: query (1, heads, T, d), key and value (1, kv heads, T, d) -> (1, T, heads, d).

    Two calls a pair: [prompt; chosen] causally, then rejected queries over [prompt; rejected]. The prompt's keys and
    values collect gradients from both through autograd.
    """
    assert pair_layout is not None and query.shape[0] == 1, "pair attention needs a packed row and its layout"
    gqa = query.shape[1] != key.shape[1]
    outputs = []
    for segment, mask in zip(pair_layout.segments, pair_layout.masks, strict=True):
        start, prompt, chosen, rejected = segment
        longest = prompt + max(chosen, rejected)
        if sliding_window is not None and longest > sliding_window:
            raise ModelError(
                f"a pair of {longest} tokens exceeds the model's sliding window: set it to at most {sliding_window}",
                "tokens.max_length",
            )
        middle, end = start + prompt + chosen, start + prompt + chosen + rejected
        shared = slice(start, start + prompt)
        first, second = slice(start, middle), slice(middle, end)
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, first], key[:, :, first], value[:, :, first], is_causal=True, scale=scaling, enable_gqa=gqa
            )
        )
        if mask is not None:
            outputs.append(
                scaled_dot_product_attention(
                    query[:, :, second],
                    torch.cat((key[:, :, shared], key[:, :, second]), dim=2),
                    torch.cat((value[:, :, shared], value[:, :, second]), dim=2),
                    attn_mask=mask,
                    scale=scaling,
                    enable_gqa=gqa,
                )
            )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Pair attention makes its own masks."""
