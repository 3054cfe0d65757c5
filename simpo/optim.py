"""The optimiser, and schedules as functions of the step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from simpo.config import OptimConfig


def adamw(parameters: Iterable[nn.Parameter], optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov, Hutter 2019); decay only on parameters of two or more dimensions."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optim.learning_rate,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
    )


def learning_rate(optim: OptimConfig, step: int, total_steps: int) -> float:
    """The rate of optimiser step `step` (from 0) of `total_steps`.

    warm-up: linear, reaching the peak with the last warm-up step. cosine: to 0 over the rest. wsd: constant, then
    linear to 0 over the last `decay_fraction`.
    """
    warmup = math.ceil(optim.warmup_fraction * total_steps)
    if step < warmup:
        return optim.learning_rate * (step + 1) / warmup
    if optim.schedule == "cosine":
        progress = (step - warmup) / max(1, total_steps - warmup)
        return optim.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    if optim.schedule == "wsd":
        decay = math.ceil(optim.decay_fraction * total_steps)
        if step >= total_steps - decay:
            return optim.learning_rate * (total_steps - step) / (decay + 1)
    return optim.learning_rate
