"""Full sharding: every worker of a process group holds a share of the weights, of their gradients and of the moments.

The decoder's layers are torch's `fully_shard` (FSDP2): a layer is gathered for its forward, again for its backward, and
its gradient is reduced to shares as it is made. Embedding, final norm and head work at both ends of every micro-batch,
and two of them get gradients that are made by hand: each worker keeps them whole in the model's precision; their
float32 masters, and with them gradients and moments between steps, are shares like all others. Adapters are small and
stay whole: with them the frozen layers alone are divided.

Everything here that says "together" is a collective: all workers must call it, in the same order.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor


def shard_model(model: Any, sharding: Literal["none", "full"]) -> bool:
    """Divide the model's layers over the process group, in place and together; True when it is divided.

    After `add_lora`, before `TrainState.fresh`. Without a group, or in a group of one, there is nobody to share with
    and nothing changes.
    """
    if sharding == "none" or not dist.is_initialized() or dist.get_world_size() == 1:
        return False
    decoder, adapted = model.get_decoder(), _is_adapted(model)
    mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
    # Float32 shares of a bfloat16 model: gathered in bfloat16, reduced in float32. What is frozen keeps its precision.
    mixed = not adapted and model.dtype != torch.float32
    policy = MixedPrecisionPolicy(
        param_dtype=model.dtype if mixed else None,
        reduce_dtype=torch.float32 if mixed else None,
        cast_forward_inputs=False,
    )
    adapters = {parameter for parameter in model.parameters() if adapted and parameter.requires_grad}
    for layer in decoder.layers:
        if mixed:
            layer.float()
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=True, ignored_params=adapters)
    inside = {parameter for layer in decoder.layers for parameter in layer.parameters()}
    outside = {parameter for parameter in decoder.parameters() if parameter not in inside}
    fully_shard(decoder, mesh=mesh, mp_policy=policy, ignored_params=adapters | outside)
    for module in _shards(model):
        # A step's loss is a mean over the global batch already: gradients are summed (gloo knows no other way).
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    model.simpo_mesh = mesh
    return True


def is_sharded(model: Any) -> bool:
    """Whether `shard_model` has divided it: forwards and backwards are then collective."""
    return hasattr(model, "simpo_mesh")


def master_of(model: Any, parameter: nn.Parameter) -> nn.Parameter:
    """The float32 weight that the optimiser moves for a parameter: itself, a copy, or this worker's share."""
    if isinstance(parameter, DTensor):
        return parameter
    if is_sharded(model) and not _is_adapted(model):
        mesh = model.simpo_mesh
        return nn.Parameter(distribute_tensor(parameter.detach().float(), mesh, [Shard(0)], src_data_rank=None))
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())


def own_part(tensor: Tensor) -> Tensor:
    """What this worker holds of a tensor: its share, which is a view; the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that workers share, together; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_like(full: Tensor, like: Tensor) -> Tensor:
    """This worker's share of a whole tensor that all have, divided as `like` is; the tensor on its device otherwise."""
    full = full.to(like.device)
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def zero_gradient(weight: Tensor) -> Tensor:
    """A gradient to add to by hand: whole on each worker also where the weight is shared, to be summed afterwards."""
    if not isinstance(weight, DTensor):
        return torch.zeros_like(weight)
    zeros = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.to_local().device)
    return DTensor.from_local(zeros, weight.device_mesh, [Partial()])


def reduced(gradient: DTensor, weight: DTensor) -> DTensor:
    """A gradient summed over the workers and divided as its weight is, together."""
    return gradient.redistribute(placements=weight.placements)


def gather(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by name, whole, together. Of shared ones worker 0 gets a copy in host memory, the others nothing."""
    kept = {}
    for name, tensor in named:
        full = whole(tensor)
        if full is tensor:
            kept[name] = tensor
        elif dist.get_rank() == 0:
            kept[name] = full.cpu()
    return kept


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Each worker holds the whole model for a while, entered together: forwards in here are nobody else's concern."""
    shards = list(_shards(model)) if is_sharded(model) else []
    for module in shards:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in shards:
            module.set_reshard_after_forward(module is not model.get_decoder(), recurse=False)
            module.reshard()


def _is_adapted(model: nn.Module) -> bool:
    """Whether some weights are frozen: what is trained beside them are adapters."""
    return not all(parameter.requires_grad for parameter in model.parameters())


def _shards(model: Any) -> Iterator[FSDPModule]:
    return (module for module in model.modules() if isinstance(module, FSDPModule))
