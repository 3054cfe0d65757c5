"""Linear layers whose weights lie as the processor's matrix kernels read them best.

A small batch on a CPU is bound by reading the weights, and the row-major layout of a checkpoint is a slow one: packed
once at loading, 8 rows cost half the time in float32. Products are the same up to rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn

_ROWS = 32  # the layout is chosen for about so many; it serves fewer, and more, as well
_CLOSE = 1e-2  # of the largest output: bfloat16 rounds to 1/256


def pack(model: nn.Module) -> None:
    """Replace every linear layer of a model that will only be read, in place. Elsewhere than on a CPU: nothing."""
    for name, module in list(model.named_modules()):
        packed = packed_linear(module) if type(module) is nn.Linear else None
        if packed is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, packed)


def packed_linear(linear: nn.Linear) -> "PackedLinear | None":
    """The same layer, packed; None where it cannot be."""
    layout = _packed(linear) if linear.weight.device.type == "cpu" else None
    return None if layout is None else PackedLinear(linear, layout)


class PackedLinear(nn.Module):
    """y = x W^T + b, for inference alone: W is no parameter any more."""

    def __init__(self, linear: nn.Linear, layout: Tensor) -> None:
        """`layout`: the linear's weight, packed."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._layout = layout
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._layout, self._bias, "none", [], "")
        return y


@torch.inference_mode()
def _packed(linear: nn.Linear) -> Any:
    """Its weight, packed; None where this build of torch cannot, or does it wrongly: it is not a public function."""
    if linear.weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    weight = linear.weight.detach()
    try:
        layout = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        x = torch.linspace(-1, 1, 2 * linear.in_features, dtype=weight.dtype).view(2, -1)
        mine = torch.ops.mkldnn._linear_pointwise(x, layout, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    plain = nn.functional.linear(x, weight)
    if not torch.isfinite(plain).all():
        return layout  # a model that has diverged says so when it is asked
    return layout if (mine - plain).abs().max() <= _CLOSE * plain.abs().max() else None
