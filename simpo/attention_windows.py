"""Pair attention with what fused kernels lack: a soft cap on the scores, a sliding window. Explicit products, float32.

A window of w: a query at position p sees the keys at positions p - w < k <= p. Positions are those of the response's
own sequence: the rejected response goes on after the prompt, so that its window reaches back into the prompt, past the
chosen response that lies between them in the row.

Legend: T tokens of the row; Q queries and K keys of a tile; d head width; G query heads that share a key head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simpo.packing import Segment

TILE_QUERIES = 256
"""Queries of a tile: bounds the scores that are in memory at one time to heads x 256 x keys."""


@dataclass(frozen=True)
class WindowTile:
    """Consecutive queries of one response (or of prompt and chosen), and the keys that one or another of them sees."""

    queries: slice
    keys: tuple[slice, ...]
    """One or two ranges of the row, in order."""
    bias_QK: Tensor
    """0 where a query sees a key, -inf elsewhere."""


def window_tiles(segments: Sequence[Segment], window: int | None, device: torch.device) -> list[WindowTile]:
    """The tiles of a row in order of their queries, which cover it. `window` None: all earlier keys are seen."""
    return [tile for segment in segments for tile in _tiles(segment, window, device)]


def windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, tiles: Sequence[WindowTile], scale: float, softcap: float | None
) -> Tensor:
    """softmax(cap(scale * q k^T) + bias) v: query (heads, T, d), key and value (kv heads, T, d) -> (T, heads, d).

    cap(s) = softcap * tanh(s / softcap), or s without a soft cap (Gemma-2, arXiv 2408.00118, section 2).
    """
    output: Tensor = _WindowedAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, tiles, scale, softcap
    )
    return output


def _tiles(segment: Segment, window: int | None, device: torch.device) -> Iterator[WindowTile]:
    start, prompt, chosen, rejected = segment
    middle = start + prompt + chosen
    reach = window or prompt + chosen + rejected
    for own_start, skipped, length in ((start, 0, prompt + chosen), (middle, prompt, rejected)):
        for first in range(skipped, skipped + length, TILE_QUERIES):
            end = min(first + TILE_QUERIES, skipped + length)
            lowest = max(0, first - reach + 1)
            # Positions [lowest, end) of this sequence: `skipped` of them lie in the prompt, the others from own_start.
            keys = []
            if lowest < skipped:
                keys.append(slice(start + lowest, start + skipped))
            keys.append(slice(own_start + max(0, lowest - skipped), own_start + end - skipped))
            at_Q1 = torch.arange(first, end, device=device)[:, None]
            at_K = torch.arange(lowest, end, device=device)
            hidden_QK = (at_K > at_Q1) | (at_K <= at_Q1 - reach)
            bias_QK = torch.zeros(hidden_QK.shape, device=device).masked_fill_(hidden_QK, float("-inf"))
            yield WindowTile(slice(own_start + first - skipped, own_start + end - skipped), tuple(keys), bias_QK)


class _WindowedAttention(torch.autograd.Function):
    """All tiles as one node of the graph. Only q, k and v are kept: the backward computes the scores again."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        tiles: Sequence[WindowTile],
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        heads, tokens, width = query.shape
        output = query.new_empty(tokens, heads, width)
        for tile in tiles:
            probabilities, _ = _probabilities(tile, query, key, scale, softcap)
            mixed = torch.bmm(probabilities.to(value.dtype), rows_of(value, tile.keys))
            output[tile.queries] = mixed.view(heads, -1, width).transpose(0, 1)
        ctx.save_for_backward(query, key, value)
        ctx.settings = tiles, scale, softcap
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value = ctx.saved_tensors
        tiles, scale, softcap = ctx.settings
        heads, _, width = query.shape
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros(key.shape, dtype=torch.float32, device=key.device) for _ in range(2))
        for tile in tiles:
            probabilities, bent = _probabilities(tile, query, key, scale, softcap)
            grad = _stacked(grads[0].transpose(0, 1)[:, tile.queries], len(key))
            add_to(grad_value, tile.keys, torch.bmm(probabilities.to(grad.dtype).transpose(1, 2), grad))
            # softmax: ds = p * (dp - sum_k p dp); soft cap: ds * (1 - tanh^2); float32
            rise = torch.bmm(grad, rows_of(value, tile.keys).transpose(1, 2)).float()
            grad_scores = probabilities * (rise - (probabilities * rise).sum(-1, keepdim=True))
            if bent is not None:
                grad_scores *= 1 - bent * bent
            grad_scores = grad_scores.mul_(scale).to(key.dtype)
            grad_query[:, tile.queries] = torch.bmm(grad_scores, rows_of(key, tile.keys)).view(heads, -1, width)
            queries = _stacked(query[:, tile.queries], len(key))
            add_to(grad_key, tile.keys, torch.bmm(grad_scores.transpose(1, 2), queries))
        return grad_query, grad_key.to(key.dtype), grad_value.to(key.dtype), None, None, None


def _probabilities(
    tile: WindowTile, query: Tensor, key: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """(softmax of the scores, tanh(score / softcap) if there is a soft cap), (kv heads, G * Q, K), float32."""
    kv_heads = len(key)
    scores = torch.bmm(_stacked(query[:, tile.queries], kv_heads), rows_of(key, tile.keys).transpose(1, 2)).float()
    scores = scores.mul_(scale)
    bent = None
    if softcap is not None:
        bent = scores.div_(softcap).tanh_()
        scores = bent * softcap
    scores.view(kv_heads, -1, *tile.bias_QK.shape).add_(tile.bias_QK)
    return torch.softmax(scores, dim=-1), bent


def _stacked(query: Tensor, kv_heads: int) -> Tensor:
    """(heads, Q, d) -> (kv heads, G * Q, d): grouped-query attention copies no keys."""
    return query.reshape(kv_heads, -1, query.shape[-1])


def rows_of(tokens: Tensor, ranges: tuple[slice, ...]) -> Tensor:
    """Some ranges of (heads, T, d), one after another."""
    parts = [tokens[:, rows] for rows in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def add_to(total: Tensor, ranges: tuple[slice, ...], part: Tensor) -> None:
    """Add (heads, K, d) to the keys it belongs to."""
    at = 0
    for rows in ranges:
        total[:, rows] += part[:, at : (at := at + rows.stop - rows.start)]
