"""Memory: gradient checkpointing when it asks for it, and freed pages that stay with the process.

Checkpointing keeps a layer's input alone and runs its forward again in the backward: the same gradients, a third more
work. So it is off unless asked for, or unless (`auto`) the estimate below exceeds what is free.
"""

import ctypes
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from simpo.packing import PackedPlan
from simpo.sharding import own_part

USABLE = 0.8
"""Share of the free memory that activations may take; the rest is for the head's tile and what the estimate misses."""
BYTES_PER_TRAINED = 12
"""Of gradient and two moments, all float32, that the first optimiser step allocates for each trained weight."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names of two settings in glibc's malloc.h."""


def keep_freed_pages() -> bool:
    """Let this process reuse the memory that it frees, instead of giving it back and faulting it in again.

    By default glibc maps every block over 32 MB anew, and the kernel clears its pages: 7 to 9 % of a training step on a
    CPU (46,000 page faults a step of the 30M Llama; 500 with this). The resident size stays at its peak. For processes
    whose work is training or generation; call it once, at their start. False where the C library is another one.
    """
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return False
    limits = ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1))
    return all(library.mallopt(setting, limit) == 1 for setting, limit in limits)


def apply_checkpointing(model: Any, plan: PackedPlan, mode: Literal["off", "on", "auto"]) -> bool:
    """Switch the model's layers to checkpointing or back, for every later forward; True when it is on.

    auto: on when the plan's largest micro-batch would keep more than USABLE of the free memory, less what the first
    optimiser step is going to allocate. Off where the free memory is unknown.
    """
    on = mode == "on"
    if mode == "auto":
        free = free_bytes(model.device)
        trained = sum(own_part(weight).numel() for weight in model.parameters() if weight.requires_grad)
        on = free is not None and activation_bytes(model, plan) > USABLE * (free - BYTES_PER_TRAINED * trained)
    # No dropout, so there is no random state to keep. The attributes are transformers' own switch, by which its layers
    # know; the method that sets them changed its name between 5.17 and 5.23.
    for layer in model.get_decoder().layers:
        layer.gradient_checkpointing = on
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    return on


def activation_bytes(model: Any, plan: PackedPlan) -> float:
    """Estimate of what the largest micro-batch's forward keeps: unique tokens times `activation_bytes_per_token`."""
    totals_N = plan.pairs.lengths_N3.sum(axis=1)
    largest = min(max(plan.token_budget, int(totals_N.max())), int(totals_N[plan.order_SB].sum(axis=1).max()))
    # The keys that a token sees, averaged over tokens: a causal half of its own pair.
    keys = float((totals_N.astype(float) ** 2).sum() / totals_N.sum()) / 2
    # The explicit products of a soft cap make their scores again in the backward, as fused kernels do.
    fused = model.device.type != "cpu" or bool(getattr(model.config, "attn_logit_softcapping", None))
    inside = [name for name, _ in model.get_decoder().layers[0].named_children()]
    return largest * activation_bytes_per_token(
        model.config,
        keys,
        model.dtype.itemsize,
        fused=fused,
        norms=sum("norm" in name for name in inside),
        head_norms=hasattr(model.get_decoder().layers[0].self_attn, "q_norm"),
    )


def activation_bytes_per_token(
    config: Any, keys: float, itemsize: int, *, fused: bool, norms: int = 2, head_norms: bool = False
) -> float:
    """Bytes that all layers keep for one token, without checkpointing, after `simpo.activations.keep_less`.

    Of one layer, with h the width, i the inner width of the MLP, q and k the widths of all query and key heads, s bytes
    of a number: its norms keep their inputs (2sh, twice that in Gemma; where heads have norms, q and k too); attention
    its q, k, v and output (s (2q + 2k)), and its probabilities unless a fused kernel makes them again (s heads keys: an
    upper bound, for long pairs make most of theirs again on a CPU too); the MLP gate and up (2si).
    """
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    query, key = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    kept = norms * config.hidden_size + (3 if head_norms else 2) * (query + key) + 2 * config.intermediate_size
    probabilities = 0.0 if fused else config.num_attention_heads * keys
    return float(config.num_hidden_layers * itemsize * (kept + probabilities))


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_free_on_host(), default=None)


def _free_on_host(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What the machine has, and what this container may still take (Linux, control groups version 2)."""
    if proc.exists():
        lines = (line.split() for line in proc.read_text().splitlines())
        yield from (1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        yield max(0, int(text) - int(used.read_text()))
