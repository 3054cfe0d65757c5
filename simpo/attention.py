"""Pair attention: in a packed row, each response attends to its prompt and to itself, never to its rival.

Registered with transformers' AttentionInterface under the name `PAIR`; the backbone is transformers' own. The mask
function registered beside it returns None: left to itself transformers takes restarting positions for document borders
and would cut the rejected response off from its prompt.

A pair is computed in one or two blocks. Short pairs: one block of all its tokens under one mask. Long pairs: [prompt;
chosen] causally, then rejected queries over [prompt; rejected]. On CPU blocks of up to SMALL_SIDE squared scores go
through plain matrix products, 2 to 3 times faster there than the fused kernel's backward; everything else through it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from simpo.attention_windows import WindowTile, window_tiles, windowed_attention
from simpo.packing import MicroBatch, Segment

PAIR = "simpo_pair"
"""Name of the attention implementation, for `model.set_attn_implementation`."""

SMALL_SIDE = 320
"""Blocks of at most this squared scores are small: measured break-even with the fused CPU kernel at 350 to 400."""
ONE_BLOCK = 256
"""Pairs of at most so many tokens are one block: fewer calls outweigh the masked-out products."""
MERGED = 128
"""Neighbouring pairs of at most so many tokens in all share a block, for the same reason."""


def register_pair_attention() -> None:
    """Make `PAIR` known to transformers. May be called any number of times."""
    AttentionInterface.register(PAIR, pair_attention)
    AttentionMaskInterface.register(PAIR, _no_mask)


@dataclass(frozen=True)
class Block:
    """Queries of consecutive tokens, and the tokens whose keys they may see."""

    queries: slice
    keys: tuple[slice, ...]
    """One or two ranges, in order."""
    causal: bool
    """Whether the mask is plain causality of a square block."""
    visible_QK: Tensor
    """Boolean, True where a query sees a key."""
    small: bool
    """Whether to compute it by plain matrix products."""
    bias_QK: Tensor | None
    """The mask as 0 and -inf, for small blocks."""


class PairLayout:
    """What the attention of one micro-batch needs, made once and used by every layer."""

    def __init__(self, segments: tuple[Segment, ...], device: torch.device) -> None:
        self.longest = max(s.prompt + max(s.chosen, s.rejected) for s in segments)
        self._segments, self._device = segments, device
        self._windowed: dict[int | None, list[WindowTile]] = {}
        self.blocks = [block for group in _groups(segments) for block in _blocks(group, device)]

    @classmethod
    def of(cls, batch: MicroBatch, device: torch.device) -> "PairLayout":
        """The layout of a micro-batch."""
        return cls(batch.segments, device)

    def windowed(self, window: int | None) -> list[WindowTile]:
        """The tiles of layers with a sliding window or a soft cap, made when the first such layer asks."""
        if window not in self._windowed:
            self._windowed[window] = window_tiles(self._segments, window, self._device)
        return self._windowed[window]


def pair_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    pair_layout: PairLayout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over a packed row: query (1, heads, T, d), key and value (1, kv heads, T, d) -> (1, T, heads, d)."""
    assert pair_layout is not None and query.shape[0] == 1, "pair attention needs a packed row and its layout"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window is not None and pair_layout.longest > sliding_window else None
    if window is not None or softcap is not None:
        tiles = pair_layout.windowed(window)
        return windowed_attention(query[0], key[0], value[0], tiles, scale, softcap)[None], None
    outputs = [
        _attend(block, query[0, :, block.queries], _rows(key[0], block.keys), _rows(value[0], block.keys), scale)
        for block in pair_layout.blocks
    ]
    return torch.cat(outputs, dim=1).transpose(0, 1)[None].contiguous(), None


def _groups(segments: tuple[Segment, ...]) -> list[list[Segment]]:
    """Neighbours that share one block: very short pairs cost more in calls than in products."""
    groups: list[list[Segment]] = []
    room = 0
    for segment in segments:
        tokens = segment.prompt + segment.chosen + segment.rejected
        if tokens > room:
            groups.append([])
            room = MERGED
        groups[-1].append(segment)
        room -= tokens
    return groups


def _blocks(group: list[Segment], device: torch.device) -> list[Block]:
    """The blocks of neighbouring pairs. Their queries are the pairs' tokens, in order."""
    first, last = group[0], group[-1]
    start, end = first.start, last.start + last.prompt + last.chosen + last.rejected
    if end - start <= ONE_BLOCK:
        visible = torch.zeros(end - start, end - start, dtype=torch.bool, device=device)
        for segment in group:
            _show(visible, segment, segment.start - start)
        return [_block(slice(start, end), (slice(start, end),), visible)]
    prompt, chosen, rejected = first[1:]
    middle = start + prompt + chosen
    causal = _lower_triangle(prompt + chosen, 0, device)
    blocks = [_block(slice(start, middle), (slice(start, middle),), causal, is_causal=True)]
    if rejected:
        own = _lower_triangle(rejected, prompt, device)
        blocks.append(_block(slice(middle, end), (slice(start, start + prompt), slice(middle, end)), own))
    return blocks


def _show(visible: Tensor, segment: Segment, offset: int) -> None:
    """Mark what the tokens of a pair may see, the pair lying at `offset` of a square block."""
    _, prompt, chosen, rejected = segment
    middle, end = offset + prompt + chosen, offset + prompt + chosen + rejected
    visible[offset:middle, offset:middle] = _lower_triangle(prompt + chosen, 0, visible.device)
    own = _lower_triangle(rejected, prompt, visible.device)
    visible[middle:end, offset : offset + prompt] = own[:, :prompt]
    visible[middle:end, middle:end] = own[:, prompt:]


def _block(queries: slice, keys: tuple[slice, ...], visible_QK: Tensor, *, is_causal: bool = False) -> Block:
    small = visible_QK.device.type == "cpu" and visible_QK.numel() <= SMALL_SIDE**2
    bias_QK = torch.zeros(visible_QK.shape).masked_fill_(~visible_QK, float("-inf")) if small else None
    return Block(queries, keys, is_causal, visible_QK, small, bias_QK)


def _lower_triangle(rows: int, diagonal: int, device: torch.device) -> Tensor:
    """Boolean (rows, diagonal + rows): causality of the last `rows` tokens over all of them."""
    return torch.ones(rows, diagonal + rows, dtype=torch.bool, device=device).tril(diagonal=diagonal)


def _rows(tokens: Tensor, ranges: tuple[slice, ...]) -> Tensor:
    """Some ranges of (heads, T, d), one after another."""
    parts = [tokens[:, rows] for rows in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _attend(block: Block, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """(heads, Q, d) from query (heads, Q, d), key and value (kv heads, K, d)."""
    if block.small:
        output: Tensor = _SmallAttention.apply(  # type: ignore[no-untyped-call]
            query, key, value, block.bias_QK, scale
        )
        return output
    return scaled_dot_product_attention(
        query[None],
        key[None],
        value[None],
        attn_mask=None if block.causal else block.visible_QK,
        is_causal=block.causal,
        scale=scale,
        enable_gqa=query.shape[0] != key.shape[0],
    )[0]


class _SmallAttention(torch.autograd.Function):
    """softmax(scale * q k^T + bias) v by batched matrix products; softmax in float32.

    Query heads that share a key head are stacked along the rows, so grouped-query attention copies no keys. The
    probabilities are kept for the backward: a small block's are small.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias_QK: Tensor, scale: float) -> Tensor:
        heads, rows, width = query.shape
        kv_heads, columns, _ = key.shape
        grouped = query.reshape(kv_heads, -1, width)
        scores = torch.bmm(grouped, key.transpose(1, 2)).float()
        scores.view(kv_heads, -1, rows, columns).mul_(scale).add_(bias_QK)
        probabilities = torch.softmax(scores, dim=-1).to(query.dtype)
        ctx.save_for_backward(grouped, key, value, probabilities)
        ctx.scale = scale
        return torch.bmm(probabilities, value).view(heads, rows, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        grouped, key, value, probabilities = ctx.saved_tensors
        grad = grads[0].reshape(grouped.shape)
        grad_value = torch.bmm(probabilities.transpose(1, 2), grad)
        grad_probabilities = torch.bmm(grad, value.transpose(1, 2)).float()
        # softmax: ds = p * (dp - sum_k p dp), float32
        grad_scores = torch._softmax_backward_data(grad_probabilities, probabilities.float(), -1, torch.float32)
        grad_scores = grad_scores.mul_(ctx.scale).to(key.dtype)
        grad_query = torch.bmm(grad_scores, key).view(grads[0].shape)
        return grad_query, torch.bmm(grad_scores.transpose(1, 2), grouped), grad_value, None, None


def _no_mask(*_: Any, **__: Any) -> None:
    """Pair attention makes its own masks."""
