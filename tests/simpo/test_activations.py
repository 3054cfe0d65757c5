"""Modules that keep less give the same values and gradients, and keep what they say."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simpo.activations import _ACTIVATIONS, _activation, _Gated, _Norm, _Product, keep_less, pack, remaking, unpack
from simpo.config import LoraConfig
from simpo.lora import LoraLinear
from tests.simpo.test_architectures import OWN, PAIR, model_of

pytestmark = pytest.mark.quick


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def passed(module: nn.Module, x: Tensor, *, remade: bool = True) -> dict[str, Tensor]:
    """Output and gradients of a module, by name."""
    x = x.detach().clone().requires_grad_()
    with remaking() if remade else torch.enable_grad():
        output = module(x)
    wanted = {"x": x, **{name: weight for name, weight in module.named_parameters() if weight.requires_grad}}
    grads = torch.autograd.grad(output, list(wanted.values()), drawn(*output.shape, dtype=output.dtype, seed=1))
    return {"": output.detach(), **dict(zip(wanted, grads, strict=True))}


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def mlp(name: str = "llama") -> Any:
    return model_of(name, PAIR).model.layers[0].mlp


@pytest.mark.parametrize("added", [False, True])
def test_the_gradient_of_a_norm(added: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simpo.activations.CHUNK", 12)  # chunks of two rows, and one of one
    x, weight = drawn(1, 5, 6, dtype=torch.float64), drawn(6, dtype=torch.float64, seed=1)
    x.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, weight: _Norm.apply(x, weight, 0.1, added)[0], (x, weight))
    weight.requires_grad_(False)
    assert torch.autograd.gradcheck(lambda x: _Norm.apply(x, weight, 0.1, added)[0], (x,))


@pytest.mark.parametrize("known", _ACTIVATIONS)
def test_the_gradient_of_a_gated_product(known: Any) -> None:
    gate, up = (drawn(3, 4, dtype=torch.float64, seed=seed).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda gate, up: _Gated.apply(gate, up, _Product(*known)), (gate, up))


@pytest.mark.parametrize("name", sorted(OWN))
def test_values_are_transformers_own_bit_for_bit_and_gradients_equal(name: str) -> None:
    """For each kind of module, in both precisions; a bfloat16 gradient is as near to float32 as theirs is."""
    model = model_of(name, PAIR)
    plain = copy.deepcopy(model)
    layers = 3
    assert keep_less(model) == 1 + layers * (1 + sum("norm" in key for key, _ in model.model.layers[0].named_modules()))
    assert keep_less(model) == 0
    kinds = {type(module): (key, module) for key, module in model.named_modules() if hasattr(module, "weight")}
    found = [(key, module) for kind, (key, module) in kinds.items() if "Norm" in kind.__name__]
    for key, ours in [*found, ("model.layers.1.mlp", model.model.layers[1].mlp)]:
        theirs = plain.get_submodule(key)
        assert type(ours).__name__ == type(theirs).__name__
        assert type(ours) is not type(theirs)
        x = drawn(1, 7, ours.weight.numel() if "norm" in key else ours.gate_proj.in_features)
        exact, expected = passed(ours, x), passed(theirs, x)
        assert torch.equal(exact[""], expected[""])
        assert all(relative(exact[key], value) < 1e-6 for key, value in expected.items())
        low = passed(ours.bfloat16(), x.bfloat16())
        theirs_low = passed(theirs.bfloat16(), x.bfloat16())
        assert torch.equal(low[""], theirs_low[""])
        for key, value in expected.items():
            assert relative(low[key], value) <= 1.2 * relative(theirs_low[key], value) + 1e-3


def test_a_gated_mlp_keeps_its_input_gate_and_up_alone() -> None:
    module = nn.Sequential(type(model_of("llama", PAIR).model.norm)(32), mlp())
    assert keep_less(module) == 2
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Any:
        packed = pack(tensor)
        kept.extend([packed] if isinstance(packed, Tensor) else [])
        return packed

    x = drawn(1, 9, 32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, unpack):
        module(x)
    weights = {weight.data_ptr() for weight in module.parameters()}
    sizes = {tensor.data_ptr(): tensor.numel() for tensor in kept if tensor.data_ptr() not in weights}
    assert sorted(sizes.values()) == [9, 9 * 32, 9 * 48, 9 * 48]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapted", [(), ("gate_proj", "up_proj", "down_proj"), ("down_proj",)])
def test_what_is_remade_gives_the_gradients_of_what_is_kept(adapted: tuple[str, ...], dtype: torch.dtype) -> None:
    module = nn.Sequential(type(model_of("llama", PAIR).model.norm)(32), mlp()).to(dtype)
    if adapted:
        module.requires_grad_(False)
    for target in adapted:
        linear = module[1].get_submodule(target)
        lora = LoraLinear(linear, LoraConfig(rank=2), torch.Generator().manual_seed(3))
        nn.init.normal_(lora.lora_B, generator=torch.Generator().manual_seed(4))
        setattr(module[1], target, lora)
    plain = copy.deepcopy(module)
    keep_less(module)
    x = drawn(1, 9, 32, dtype=dtype)
    remade, kept = passed(module, x), passed(module, x, remade=False)
    assert all(torch.equal(remade[key], value) for key, value in kept.items())
    bound = 1e-6 if dtype == torch.float32 else 0.02
    assert all(relative(remade[key], value) < bound for key, value in passed(plain, x, remade=False).items())


def test_a_graph_can_be_walked_twice() -> None:
    module = nn.Sequential(type(model_of("llama", PAIR).model.norm)(32), mlp())
    keep_less(module)
    x = drawn(1, 4, 32).requires_grad_()
    with remaking():
        output = module(x).sum()
    first = torch.autograd.grad(output, [x, *module.parameters()], retain_graph=True)
    again = torch.autograd.grad(output, [x, *module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_an_output_that_is_gone_is_not_taken_for_the_tensor_at_its_address() -> None:
    norm = model_of("llama", PAIR).model.norm
    keep_less(norm)
    output = norm(drawn(1, 4, 32).requires_grad_())
    held, alias = output.detach().clone(), output.detach()
    kept = pack(output.view(4, 32))
    assert not isinstance(kept, Tensor)
    del output
    assert pack(alias) is alias
    assert torch.equal(unpack(kept), held[0])


def test_without_a_gradient_nothing_is_remade() -> None:
    norm = model_of("llama", PAIR).model.norm
    keep_less(norm)
    with torch.no_grad():
        output = norm(drawn(1, 4, 32))
    assert pack(output) is output


class Halved(nn.Module):
    """A norm in name and parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / 2


def test_what_computes_something_else_keeps_its_forward() -> None:
    gated = mlp()
    gated.act_fn = nn.Tanh()
    doubled = type("Doubled", (type(mlp()),), {"forward": lambda self, x: 2 * self.down_proj(self.up_proj(x))})
    other = mlp()
    other.__class__ = doubled
    model = nn.Sequential(Halved(), nn.LayerNorm(8), nn.LayerNorm(8, bias=False), nn.Linear(8, 8), gated, other)
    assert keep_less(model) == 0
    assert [_activation(own) for own in (nn.SiLU(), nn.GELU("tanh"), nn.GELU())] == list(_ACTIVATIONS)
