"""What the workers of a process group do together in a step: they add up gradients and sums, and clip by one norm.

Every tensor that is communicated lies on the model's device: NCCL knows no other.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from simpo.sharding import own_part, reduced


def rank_and_size() -> tuple[int, int]:
    """This worker's number and how many there are; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_workers(weights: list[nn.Parameter], sums: Tensor) -> None:
    """Add up gradients, and the report's sums in place. A worker without micro-batches adds zeros.

    Whole gradients go in one flat buffer. Those of divided weights become shares, unless `fully_shard` has reduced
    them during the backward.
    """
    dist.all_reduce(sums)
    for weight in weights:
        if isinstance(weight, DTensor) and isinstance(weight.grad, DTensor):
            weight.grad = reduced(weight.grad, weight)
    plain = [weight for weight in weights if not isinstance(weight, DTensor)]
    if not plain:
        return
    grads = [weight.grad if weight.grad is not None else torch.zeros_like(weight) for weight in plain]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    for weight, part in zip(plain, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
        weight.grad = part.view_as(weight)


def all_sum(value: Tensor, device: torch.device) -> Tensor:
    """The sum over the workers, on the CPU; the value itself without a group."""
    if not dist.is_initialized():
        return value
    value = value.to(device)
    dist.all_reduce(value)
    return value.cpu()


def clip_gradients(weights: list[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients down to a global norm of `max_norm` if it is larger; returns the norm before.

    Weights are all whole or all divided.
    """
    if not any(isinstance(weight, DTensor) for weight in weights):
        return float(nn.utils.clip_grad_norm_(weights, max_norm))
    shares = [own_part(weight.grad) for weight in weights if weight.grad is not None]
    square = torch.stack([share.double().square().sum() for share in shares]).sum()
    dist.all_reduce(square)
    norm = float(square.sqrt())
    if norm > max_norm:
        for share in shares:
            share.mul_(max_norm / (norm + 1e-6))  # as torch's clip_grad_norm_
    return norm
