"""What a forward keeps for its backward: every number once, in the model's precision.

Left to transformers, a norm keeps a float32 copy of its input and the rounded quotient, a gated MLP keeps act(gate) and
act(gate) * up beside gate and up, and linear layers keep the outputs of norms as their inputs. `keep_less` gives these
modules forwards with the same values, bit for bit, that keep their own inputs alone. Their outputs are remade: a linear
layer that would keep one keeps, within `remaking`, how to compute it again, which costs its backward one elementwise
pass.

    norm        y = w x r,   r = (mean x^2 + eps)^(-1/2)     keeps x, r     (Zhang, Sennrich 2019; Gemma: 1 + w)
    gated MLP   y = D (act(G x) * U x)                       keeps G x, U x                     (Shazeer 2020)

A module is recognised by what it computes: its class is tried on a few numbers, and one that gives other values keeps
its forward. Linear layers are called as modules, so adapters and weights that workers share do not show here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK = 2**18
"""Numbers that a norm works on at one time on a CPU: its float32 temporaries stay in the cache."""

Elementwise = Callable[[Tensor], Tensor]
Derivative = Callable[[Tensor, Tensor], Tensor]
"""(gradient of the output, input) -> gradient of the input."""


def keep_less(model: nn.Module) -> int:
    """Give the model's norms and gated MLPs their own forwards, in place; how many modules were given one.

    Where no gradient is made, transformers' own forward goes on to run. A second call finds nothing to do.
    """
    changed = 0
    module: Any
    for module in model.modules():
        own: Any = type(module)
        if issubclass(own, _KeepsLess):
            continue
        kind = None
        if _is_norm(module):
            kind = _norm_class(own)
        elif _is_mlp(module) and (known := _activation(module.act_fn)) is not None:
            module.simpo_activation = known
            kind = _mlp_class(own)
        if kind is not None:
            module.__class__ = kind
            changed += 1
    return changed


def remaking() -> AbstractContextManager[None]:
    """Within, whatever would keep an output that can be remade keeps how to remake it."""
    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


class Remake:
    """How to compute an output again. The result is held while others are going to ask for it."""

    def __init__(self, output: Tensor, compute: Callable[[], Tensor]) -> None:
        self.asked = 0
        self._output, self._compute = ref(output), compute
        self._made: Tensor | None = None
        _REMAKES[output.data_ptr()] = self
        output.simpo_remake = self  # type: ignore[attr-defined]

    def gives(self, tensor: Tensor) -> bool:
        """Whether a tensor is the output, in this shape or another."""
        output = self._output()
        # Another tensor may lie at the address of an output that is gone.
        if output is None or output.data_ptr() != tensor.data_ptr():
            return False
        return output.numel() == tensor.numel() and output.dtype == tensor.dtype and tensor.is_contiguous()

    def made(self) -> Tensor:
        """The output, without a graph."""
        made = self._made
        if made is None:
            with torch.no_grad():
                made = self._compute()
        self.asked -= 1
        self._made = made if self.asked > 0 else None
        return made


Kept = Tensor | tuple[Remake, torch.Size]


def pack(tensor: Tensor) -> Kept:
    """What to keep of a tensor."""
    remake = _REMAKES.get(tensor.data_ptr())
    if remake is None or not remake.gives(tensor):
        return tensor
    remake.asked += 1
    return remake, tensor.shape


def unpack(kept: Kept) -> Tensor:
    """The tensor again."""
    return kept if isinstance(kept, Tensor) else kept[0].made().view(kept[1])


_REMAKES: WeakValueDictionary[int, Remake] = WeakValueDictionary()
"""Address -> how to remake what lies there; an entry lives as long as its output, or as something that keeps it."""


class _KeepsLess:
    """Mark of the classes that are made here."""


@cache
def _norm_class(own: Any) -> Any:
    """A subclass of a norm that keeps less; None for one that computes something else than either equation."""
    kinds = [added for added in (False, True) if _agrees(own, added)]
    if not kinds:
        return None
    added = kinds[0]

    def forward(self: Any, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return own.forward(self, x)  # type: ignore[no-any-return]
        output, inverse = _Norm.apply(x, self.weight, _epsilon(self), added)  # type: ignore[no-untyped-call]
        again = partial(_normed, x.detach(), self.weight.detach(), added, inverse=inverse)
        Remake(output, lambda: again()[0])
        return output  # type: ignore[no-any-return]

    return type(own.__name__, (_KeepsLess, own), {"forward": forward, "__module__": own.__module__})


@cache
def _mlp_class(own: Any) -> Any:
    """A subclass of a gated MLP that keeps less; None for one that computes something else than the equation."""
    x = torch.linspace(-3, 3, 50, device="cpu")
    probe = _blank(own, gate_proj=torch.sin, up_proj=torch.cos, down_proj=torch.exp, act_fn=torch.tanh)
    if not _gives(probe, x, torch.exp(torch.tanh(torch.sin(x)) * torch.cos(x))):
        return None

    def forward(self: Any, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return own.forward(self, x)  # type: ignore[no-any-return]
        gate, up, product = self.gate_proj(x), self.up_proj(x), _Product(*self.simpo_activation)
        output = _Gated.apply(gate, up, product)  # type: ignore[no-untyped-call]
        Remake(output, partial(product.of, gate.detach(), up.detach()))
        return self.down_proj(output)  # type: ignore[no-any-return]

    return type(own.__name__, (_KeepsLess, own), {"forward": forward, "__module__": own.__module__})


class _Norm(torch.autograd.Function):
    """(x, weight) -> y and r, float32 within; keeps x, the weight and r, one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, added: bool) -> tuple[Tensor, Tensor]:
        output, inverse = _normed(x, weight, added, epsilon=epsilon)
        ctx.save_for_backward(x, weight, inverse)
        ctx.added = added
        ctx.mark_non_differentiable(inverse)
        return output, inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """With n = x r and d = w dy:   dx = r (d - n mean(d n)),   dw = sum over rows of dy n."""
        x, weight, inverse = ctx.saved_tensors
        scale = _scale(weight, x, ctx.added).to(_wide(x))
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(scale) if ctx.needs_input_grad[1] else None
        for rows, r, grad, *into in _chunks(x, inverse, grads[0], *([] if grad_x is None else [grad_x])):
            quotient, wide = rows.to(scale.dtype) * r, grad.to(scale.dtype)
            if grad_weight is not None:
                grad_weight += (wide * quotient).sum(0)
            if into:
                scaled = wide * scale
                inner = (scaled * quotient).mean(-1, keepdim=True)
                torch.mul(scaled.sub_(quotient.mul_(inner)), r, out=into[0])
        return grad_x, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


def _normed(
    x: Tensor, weight: Tensor, added: bool, *, epsilon: float = 0.0, inverse: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(w x r, r). Llama rounds before it multiplies by w, Gemma afterwards."""
    scale = _scale(weight, x, added)
    output = torch.empty(x.shape, dtype=x.dtype if added else scale.dtype, device=x.device)
    known = inverse is not None
    inverse = torch.empty(*x.shape[:-1], 1, dtype=_wide(x), device=x.device) if inverse is None else inverse
    for rows, r, into in _chunks(x, inverse, output):
        wide = rows.to(inverse.dtype)
        if not known:
            r.copy_(torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon))
        quotient = wide * r
        torch.mul(quotient if added else quotient.to(x.dtype), scale, out=into)
    return output, inverse


def _scale(weight: Tensor, x: Tensor, added: bool) -> Tensor:
    """What a norm multiplies by: the weight in the precision of the product, or 1 + weight in float32."""
    return weight.to(_wide(x)) + 1.0 if added else weight.to(torch.promote_types(weight.dtype, x.dtype))


class _Gated(torch.autograd.Function):
    """act(gate) * up, keeping both."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, product: "_Product") -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.product = product
        return product.function(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """dgate = act'(gate) up dy,   dup = act(gate) dy."""
        gate, up = ctx.saved_tensors
        return ctx.product.derivative(grads[0] * up, gate), ctx.product.activated(gate).mul_(grads[0]), None


class _Product:
    """Remakes act(gate) * up, and holds act(gate) until the product's own backward, which is next to ask for it."""

    def __init__(self, function: Elementwise, derivative: Derivative) -> None:
        self.function, self.derivative = function, derivative
        self._activated: Tensor | None = None

    def of(self, gate: Tensor, up: Tensor) -> Tensor:
        self._activated = self.function(gate)
        return self._activated * up

    def activated(self, gate: Tensor) -> Tensor:
        """act(gate), to do with as one likes."""
        held, self._activated = self._activated, None
        return self.function(gate) if held is None else held


def _chunks(*tensors: Tensor) -> Iterator[Sequence[Tensor]]:
    """The same few rows of each tensor at a time; all of them on a GPU. What is written to must be contiguous."""
    flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    total, width = flat[0].shape
    rows = max(1, CHUNK // width) if flat[0].device.type == "cpu" else max(1, total)
    for first in range(0, total, rows):
        yield [tensor[first : first + rows] for tensor in flat]


def _wide(x: Tensor) -> torch.dtype:
    """float32, also for bfloat16; float64 for itself."""
    return torch.promote_types(x.dtype, torch.float32)


def _is_norm(module: nn.Module) -> bool:
    weights = dict(module.named_parameters())
    return weights.keys() == {"weight"} and weights["weight"].ndim == 1 and isinstance(_epsilon(module), float)


def _is_mlp(module: Any) -> bool:
    return {name for name, _ in module.named_children()} == {"gate_proj", "up_proj", "down_proj", "act_fn"}


def _epsilon(norm: nn.Module) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def _agrees(own: Any, added: bool) -> bool:
    """Whether a norm's class gives the values of an equation, bit for bit, in both precisions."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.linspace(-3, 2, 60, device="cpu").view(1, 5, 12).to(dtype)
        weight = torch.linspace(0.3, 1.7, 12, device="cpu").to(dtype)
        probe = _blank(own, variance_epsilon=0.01, eps=0.01, weight=nn.Parameter(weight))
        with torch.no_grad():
            expected, _ = _Norm.apply(x, weight, 0.01, added)  # type: ignore[no-untyped-call]
        if not _gives(probe, x, expected):
            return False
    return True


def _blank(own: Any, **attributes: Any) -> Any:
    """A module of a class with these attributes, without its constructor: that may want a whole config."""
    module = own.__new__(own)
    nn.Module.__init__(module)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def _gives(module: Any, x: Tensor, expected: Tensor) -> bool:
    try:
        with torch.no_grad():
            output = module(x)
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return False
    return isinstance(output, Tensor) and output.dtype == expected.dtype and torch.equal(output, expected)


_ACTIVATIONS: Sequence[tuple[Elementwise, Derivative]] = (
    (functional.silu, torch.ops.aten.silu_backward),
    (partial(functional.gelu, approximate="tanh"), partial(torch.ops.aten.gelu_backward, approximate="tanh")),
    (functional.gelu, torch.ops.aten.gelu_backward),
)


def _activation(own: Elementwise) -> tuple[Elementwise, Derivative] | None:
    """The activation that gives the same values as a model's own; None for one that is not known here."""
    x = torch.linspace(-9, 9, 200, device="cpu")
    with torch.no_grad():
        return next((known for known in _ACTIVATIONS if torch.equal(own(x), known[0](x))), None)
