"""Pair attention: in a packed row, each response attends to its prompt and to itself, never to its rival.

Registered with transformers' AttentionInterface under the name `PAIR`; the backbone is transformers' own. The mask
function registered beside it returns None: left to itself transformers takes restarting positions for document borders
and would cut the rejected response off from its prompt.

The queries of a row are divided into tiles, each with exactly the keys that one of its queries may see: [prompt;
chosen] up to the tile's end, or [prompt; rejected] likewise; short pairs and their neighbours share a tile. On CPU a
tile is three plain matrix products and its backward five, 3 times faster there than the fused kernel; on other devices
a tile is a call of the fused kernel.

Legend: T tokens of the row; Q queries and K keys of a tile; d head width; G query heads that share a key head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from simpo.attention_cuda import HeadShape, VarlenLayout, usable_kernel, varlen_attention
from simpo.attention_windows import WindowTile, add_to, rows_of, window_tiles, windowed_attention
from simpo.packing import MicroBatch, Segment

PAIR = "simpo_pair"
"""Name of the attention implementation, for `model.set_attn_implementation`."""

TILE_QUERIES = 128
"""Queries of a tile of a long pair: large enough to be fast, small enough to compute little above the diagonal."""
KEPT_KEYS = 192
"""Keys up to which a tile keeps its probabilities: those of long pairs would be a sixth of all that a step keeps."""
MERGED = 160
"""A pair, or neighbouring pairs, of at most so many tokens in all are one tile: fewer calls outweigh the masked-out
products."""


def register_pair_attention() -> None:
    """Make `PAIR` known to transformers. May be called any number of times."""
    AttentionInterface.register(PAIR, pair_attention)
    AttentionMaskInterface.register(PAIR, _no_mask)


@dataclass(frozen=True)
class Tile:
    """Consecutive queries, and the keys that one or another of them may see."""

    queries: slice
    keys: tuple[slice, ...]
    """One or two ranges of the row, in order."""
    bias_QM: Tensor
    """0 where a query sees a key, -inf elsewhere, over the last M of the keys; the earlier ones are seen by all."""


class PairLayout:
    """What the attention of one micro-batch needs, made once and used by every layer."""

    def __init__(self, segments: tuple[Segment, ...], device: torch.device) -> None:
        self.longest = max(s.prompt + max(s.chosen, s.rejected) for s in segments)
        self._segments, self._device = segments, device
        self._windowed: dict[int | None, list[WindowTile]] = {}

    @classmethod
    def of(cls, batch: MicroBatch, device: torch.device) -> "PairLayout":
        """The layout of a micro-batch."""
        return cls(batch.segments, device)

    @cached_property
    def tiles(self) -> list[Tile]:
        """For layers without a window, where the one-call kernel is not used."""
        rows = TILE_QUERIES if self._device.type == "cpu" else self.longest
        return [tile for group in _groups(self._segments) for tile in _tiles(group, rows, self._device)]

    @cached_property
    def varlen(self) -> VarlenLayout:
        """For the one-call kernel of CUDA."""
        return VarlenLayout(self._segments, self._device)

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
    if query.is_cuda and softcap is None:
        heads, kv_heads, width = query.shape[1], key.shape[1], query.shape[-1]
        shape = HeadShape(heads=heads, kv_heads=kv_heads, width=width, dtype=query.dtype, window=window is not None)
        if (kernel := usable_kernel(shape, query.device)) is not None:
            layout = pair_layout.varlen
            return varlen_attention(query[0], key[0], value[0], layout, scale, window, kernel)[None], None
    if window is not None or softcap is not None:
        tiles = pair_layout.windowed(window)
        return windowed_attention(query[0], key[0], value[0], tiles, scale, softcap)[None], None
    if query.device.type == "cpu":
        output: Tensor = _TiledAttention.apply(  # type: ignore[no-untyped-call]
            query[0], key[0], value[0], pair_layout.tiles, scale
        )
        return output[None], None
    outputs = [_fused(tile, query[0], key[0], value[0], scale) for tile in pair_layout.tiles]
    return torch.cat(outputs, dim=1).transpose(0, 1)[None].contiguous(), None


def _groups(segments: tuple[Segment, ...]) -> list[list[Segment]]:
    """Neighbours that share one tile: very short pairs cost more in calls than in products."""
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


def _tiles(group: list[Segment], rows: int, device: torch.device) -> Iterator[Tile]:
    """The tiles of neighbouring pairs. Their queries are the pairs' tokens, in order."""
    first, last = group[0], group[-1]
    start, end = first.start, last.start + last.prompt + last.chosen + last.rejected
    if end - start <= MERGED:
        visible = torch.zeros(end - start, end - start, dtype=torch.bool, device=device)
        for segment in group:
            _show(visible, segment, segment.start - start)
        yield Tile(slice(start, end), (slice(start, end),), _bias(visible))
        return
    middle = start + first.prompt + first.chosen
    for at in range(start, middle, rows):
        stop = min(at + rows, middle)
        yield Tile(slice(at, stop), (slice(start, stop),), _causal(stop - at, device))
    prompt = slice(start, start + first.prompt)
    for at in range(middle, end, rows):
        stop = min(at + rows, end)
        yield Tile(slice(at, stop), (prompt, slice(middle, stop)), _causal(stop - at, device))


def _show(visible: Tensor, segment: Segment, offset: int) -> None:
    """Mark what the tokens of a pair may see, the pair lying at `offset` of a square."""
    _, prompt, chosen, rejected = segment
    middle, end = offset + prompt + chosen, offset + prompt + chosen + rejected
    visible[offset:middle, offset:middle] = visible.new_ones(prompt + chosen, prompt + chosen).tril()
    visible[middle:end, offset : offset + prompt] = True
    visible[middle:end, middle:end] = visible.new_ones(rejected, rejected).tril()


def _causal(rows: int, device: torch.device) -> Tensor:
    return _bias(torch.ones(rows, rows, dtype=torch.bool, device=device).tril())


def _bias(visible: Tensor) -> Tensor:
    return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, float("-inf"))


def _fused(tile: Tile, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """(heads, Q, d) of one tile by torch's fused kernel."""
    keys = rows_of(key, tile.keys)
    unmasked = keys.shape[1] - tile.bias_QM.shape[1]
    mask = nn.functional.pad(tile.bias_QM, (unmasked, 0)).to(query.dtype)
    return scaled_dot_product_attention(
        query[None, :, tile.queries],
        keys[None],
        rows_of(value, tile.keys)[None],
        attn_mask=mask,
        scale=scale,
        enable_gqa=query.shape[0] != key.shape[0],
    )[0]


class _TiledAttention(torch.autograd.Function):
    """softmax(scale * q k^T + bias) v, tile by tile, in batched matrix products; reductions in float32.

    Heads that share a key head are stacked along the rows, so grouped-query attention copies no keys. All tiles are one
    node of the graph: slices and concatenations that autograd knew of would each cost a pass over the whole row. The
    probabilities of tiles with few keys are kept for the backward, those of others are made again.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: list[Tile], scale: float) -> Tensor:
        heads, tokens, width = query.shape
        kv_heads = key.shape[0]
        shared = heads // kv_heads
        grouped = _grouped(query.transpose(0, 1), kv_heads).mul_(scale)
        key, value = key.contiguous(), value.contiguous()
        output = torch.empty(tokens, kv_heads, shared, width, dtype=query.dtype)
        kept = []
        for tile in tiles:
            probabilities = _probabilities(tile, grouped, key, shared)
            mixed = torch.bmm(probabilities, rows_of(value, tile.keys))
            output[tile.queries] = mixed.view(kv_heads, -1, shared, width).transpose(0, 1)
            kept.append(probabilities if probabilities.shape[-1] <= KEPT_KEYS else probabilities.new_empty(0))
        ctx.save_for_backward(grouped, key, value, *kept)
        ctx.tiles, ctx.scale = tiles, scale
        return output.view(tokens, heads, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        grouped, key, value, *kept = ctx.saved_tensors
        kv_heads, tokens, width = key.shape
        shared = grouped.shape[1] // tokens
        grad = _grouped(grads[0], kv_heads)
        grad_query = torch.empty(tokens, kv_heads, shared, width, dtype=key.dtype)
        grad_key, grad_value = (torch.zeros(key.shape, dtype=torch.float32) for _ in range(2))
        for tile, probabilities in zip(ctx.tiles, kept, strict=True):
            if not probabilities.numel():
                probabilities = _probabilities(tile, grouped, key, shared)
            queries = _tile_of(grouped, tile.queries, shared)
            grad_tile = _tile_of(grad, tile.queries, shared)
            add_to(grad_value, tile.keys, torch.bmm(probabilities.transpose(1, 2), grad_tile))
            grad_probabilities = torch.bmm(grad_tile, rows_of(value, tile.keys).transpose(1, 2))
            # softmax: ds = p * (dp - sum_k p dp), float32 within
            grad_scores = torch._softmax_backward_data(grad_probabilities, probabilities, -1, key.dtype)
            add_to(grad_key, tile.keys, torch.bmm(grad_scores.transpose(1, 2), queries))
            grad_tile = torch.bmm(grad_scores, rows_of(key, tile.keys))
            grad_query[tile.queries] = grad_tile.view(kv_heads, -1, shared, width).transpose(0, 1)
        grad_query = grad_query.mul_(ctx.scale).view(tokens, -1, width).transpose(0, 1)
        return grad_query, grad_key.to(key.dtype), grad_value.to(key.dtype), None, None


def _probabilities(tile: Tile, grouped: Tensor, key: Tensor, shared: int) -> Tensor:
    """(kv heads, Q * G, K): softmax of a tile's scores, float32 within, also for bfloat16 scores."""
    rows, columns = tile.bias_QM.shape
    scores = torch.bmm(_tile_of(grouped, tile.queries, shared), rows_of(key, tile.keys).transpose(1, 2))
    scores.view(len(key), rows, shared, -1)[..., -columns:].add_(tile.bias_QM[:, None])
    return torch.softmax(scores, dim=-1)


def _grouped(rows_THd: Tensor, kv_heads: int) -> Tensor:
    """(T, heads, d) -> a copy of shape (kv heads, T * G, d)."""
    tokens, heads, width = rows_THd.shape
    split = rows_THd.reshape(tokens, kv_heads, heads // kv_heads, width)
    copied = torch.empty(kv_heads, tokens, heads // kv_heads, width, dtype=rows_THd.dtype)
    return copied.copy_(split.permute(1, 0, 2, 3)).view(kv_heads, -1, width)


def _tile_of(grouped: Tensor, queries: slice, shared: int) -> Tensor:
    return grouped[:, queries.start * shared : queries.stop * shared]


def _no_mask(*_: Any, **__: Any) -> None:
    """Pair attention makes its own masks."""
