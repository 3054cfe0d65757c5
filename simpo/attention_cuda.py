"""Pair attention in one kernel call: torch's variable-length flash attention, with keys gathered for each response.

A pair is two sequences: queries [prompt; chosen] over the same keys, and queries [rejected] over [prompt; rejected].
Queries need no gathering, a row holds them in this order already. Causality is aligned at the bottom right: the last
query sees the last key. torch says so nowhere, and its signature has grown from version to version (2.10: is_causal;
then window_size and scale; 2.12: grouped heads too), so the kernel is adapted by inspection and has to pass a test
against explicit products before its first use. What does not pass is left to scaled_dot_product_attention.

Legend: T tokens of the row; K gathered keys; N sequences; d head width.
"""

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from simpo.attention_windows import window_tiles, windowed_attention
from simpo.packing import Segment

_log = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, "VarlenLayout", float, int | None], Tensor]
"""(query (T, heads, d), key and value (K, kv heads, d), layout, scale, window) -> (T, heads, d)."""

TOLERANCE = 0.02
"""Of the self-test, relative to the largest value: bfloat16 has 8 bits; a wrong alignment is off by more than 0.3."""


class VarlenLayout:
    """The sequences of a row, and which rows their keys are."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        rows: list[int] = []
        first: list[int] = []  # of each row of the packed row, where its key is among the gathered ones
        again: list[tuple[int, int]] = []  # (row, second place): prompts are keys of both responses
        queries, keys = [0], [0]
        for start, prompt, chosen, rejected in segments:
            middle = start + prompt + chosen
            first += range(len(rows), len(rows) + prompt + chosen)
            rows += range(start, middle)
            queries.append(queries[-1] + prompt + chosen)
            keys.append(len(rows))
            if rejected:
                again += [(start + i, len(rows) + i) for i in range(prompt)]
                rows += range(start, start + prompt)
                first += range(len(rows), len(rows) + rejected)
                rows += range(middle, middle + rejected)
                queries.append(queries[-1] + rejected)
                keys.append(len(rows))
        self.rows_K = torch.tensor(rows, device=device)
        self.first_T = torch.tensor(first, device=device)
        self.again_R2 = torch.tensor(again, device=device).reshape(-1, 2)
        self.query_ends = torch.tensor(queries, dtype=torch.int32, device=device)
        """N + 1 offsets into the queries, from 0."""
        self.key_ends = torch.tensor(keys, dtype=torch.int32, device=device)
        self.longest_query = max(after - before for before, after in pairwise(queries))
        self.longest_key = max(after - before for before, after in pairwise(keys))


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: VarlenLayout, scale: float, window: int | None, kernel: Kernel
) -> Tensor:
    """query (heads, T, d), key and value (kv heads, T, d) -> (T, heads, d)."""
    keys, values = (_gathered(states.transpose(0, 1), layout) for states in (key, value))
    return kernel(query.transpose(0, 1).contiguous(), keys, values, layout, scale, window)


@dataclass(frozen=True)
class HeadShape:
    """What a kernel may refuse, or get wrong, one by one."""

    heads: int
    kv_heads: int
    width: int
    dtype: torch.dtype
    window: bool


@lru_cache(maxsize=32)
def usable_kernel(shape: HeadShape, device: torch.device) -> Kernel | None:
    """torch's kernel for these heads after it passed its test on this device; None where it is missing or fails."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  # lazy: torch before 2.10 lacks it
    except ImportError:
        return None
    kernel = adapted(varlen_attn)
    reason = "its signature is unknown" if kernel is None else fault_of(kernel, shape, device)
    if reason:
        _log.warning("varlen_attn is not used for %s: %s; each block is a call of its own instead", shape, reason)
        return None
    return kernel


def adapted(varlen_attn: Callable[..., Any]) -> Kernel | None:
    """A version of torch.nn.attention.varlen.varlen_attn as a Kernel; None for a signature we do not know."""
    known = inspect.signature(varlen_attn).parameters
    windows = "window_size" in known
    if not windows and "is_causal" not in known:
        return None

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, layout: VarlenLayout, scale: float, window: int | None
    ) -> Tensor:
        if window is not None and not windows:
            raise NotImplementedError("this torch's varlen_attn has no sliding window")
        # A window of w is the query itself and w - 1 keys to its left.
        options: dict[str, Any] = {"window_size": (-1 if window is None else window - 1, 0)} if windows else {}
        if not windows:
            options["is_causal"] = True
        if "scale" in known:
            options["scale"] = scale
        else:
            query = query * (scale * query.shape[-1] ** 0.5)
        if "enable_gqa" in known:
            options["enable_gqa"] = query.shape[1] != key.shape[1]
        else:
            shared = query.shape[1] // key.shape[1]
            key, value = (states.repeat_interleave(shared, dim=1) for states in (key, value))
        output: Tensor = varlen_attn(
            query,
            key,
            value,
            layout.query_ends,
            layout.key_ends,
            layout.longest_query,
            layout.longest_key,
            **options,
        )
        return output

    return kernel


def fault_of(kernel: Kernel, shape: HeadShape, device: torch.device) -> str:
    """What is wrong with a kernel on two small pairs, outputs and gradients; empty when nothing is.

    May be called within any forward: neither no_grad, inference mode nor the hooks of a checkpointed layer reach it.
    """
    with (
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
    ):
        return _fault_of(kernel, shape, device)


def _fault_of(kernel: Kernel, shape: HeadShape, device: torch.device) -> str:
    segments = (Segment(0, 5, 9, 7), Segment(21, 3, 4, 12))
    window = 6 if shape.window else None
    tokens = sum(sum(segment[1:]) for segment in segments)
    generator = torch.Generator().manual_seed(0)
    sizes = ((shape.heads, tokens), (shape.kv_heads, tokens), (shape.kv_heads, tokens), (tokens, shape.heads))
    *drawn, grad = (torch.randn(*size, shape.width, generator=generator).to(device, shape.dtype) for size in sizes)
    scale = shape.width**-0.5
    layout = VarlenLayout(segments, device)
    query, key, value = (tensor.requires_grad_() for tensor in drawn)
    try:
        output = varlen_attention(query, key, value, layout, scale, window, kernel)
        ours = [output, *torch.autograd.grad(output, (query, key, value), grad)]
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).strip()[:200]}"
    query, key, value = (tensor.detach().float().requires_grad_() for tensor in drawn)
    expected = windowed_attention(query, key, value, window_tiles(segments, window, device), scale, None)
    theirs = [expected, *torch.autograd.grad(expected, (query, key, value), grad.float())]
    for name, got, wanted in zip(("output", "dq", "dk", "dv"), ours, theirs, strict=True):
        wanted = wanted.detach()
        off = float((got.detach().float() - wanted).abs().max() / wanted.abs().max())
        if not off <= TOLERANCE:  # also when it is not a number
            return f"its {name} is off by {off:.2g} of the largest value"
    return ""


def _gathered(states_TKd: Tensor, layout: VarlenLayout) -> Tensor:
    gathered: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
        states_TKd, layout.rows_K, layout.first_T, layout.again_R2
    )
    return gathered


class _Gather(torch.autograd.Function):
    """Rows by index. The backward adds in a fixed order: index_select's own uses atomics on CUDA, in any order."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows_K: Tensor, first_T: Tensor, again_R2: Tensor) -> Tensor:
        ctx.save_for_backward(first_T, again_R2)
        return states.index_select(0, rows_K)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        first_T, again_R2 = ctx.saved_tensors
        total = grads[0].index_select(0, first_T)
        rows, second = again_R2.unbind(1)
        total[rows] = total[rows] + grads[0].index_select(0, second)  # every row at most once
        return total, None, None, None
