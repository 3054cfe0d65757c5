"""torch.nn.attention.varlen.varlen_attn in plain PyTorch, in the signatures of three torch versions, and wrongly."""

from typing import Any

import torch
from torch import Tensor


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    bottom_right: bool = True,
) -> Tensor:
    """As in torch 2.12 and later. `bottom_right=False`: causality aligned at the top left, as it must not be."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa or query.shape[1] == key.shape[1], "grouped heads must be asked for"
    assert cu_seq_q[-1] == len(query) and cu_seq_k[-1] == len(key) == len(value)
    assert max_q == cu_seq_q.diff().max() and max_k == cu_seq_k.diff().max()
    left, right = window_size
    outputs = []
    for i in range(len(cu_seq_q) - 1):
        q = query[cu_seq_q[i] : cu_seq_q[i + 1]]
        k, v = (states[cu_seq_k[i] : cu_seq_k[i + 1]] for states in (key, value))
        k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for states in (k, v))
        at = torch.arange(len(q))[:, None] + (len(k) - len(q) if bottom_right else 0)
        to = torch.arange(len(k))
        seen = torch.ones(len(q), len(k), dtype=torch.bool)
        if right >= 0:
            seen &= to <= at + right
        if left >= 0:
            seen &= to >= at - left
        scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) * (scale or q.shape[-1] ** -0.5)
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v.float()).to(q.dtype))
    return torch.cat(outputs)


def without_groups(
    *tensors_and_lengths: Any, scale: float | None = None, window_size: tuple[int, int] = (-1, -1)
) -> Tensor:
    """No grouped heads."""
    return varlen_attn(*tensors_and_lengths, scale=scale, window_size=window_size)


def of_torch_2_10(*tensors_and_lengths: Any, is_causal: bool = False) -> Tensor:
    """No scale, no window, no grouped heads."""
    return varlen_attn(*tensors_and_lengths, window_size=(-1, 0 if is_causal else -1))


def top_left(*tensors_and_lengths: Any, **options: Any) -> Tensor:
    """Aligned at the wrong corner. Its signature must be read off `varlen_attn`."""
    return varlen_attn(*tensors_and_lengths, **options, bottom_right=False)


def broken(*tensors_and_lengths: Any, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
    """Not built for this device."""
    raise RuntimeError("no kernel image is available for execution on the device")
