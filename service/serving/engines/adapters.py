"""Several LoRA adapters on one base, in one batch: each token of a forward pass has the weights that its request named.

    y_t = x_t W^T + s_a (x_t A_a^T) B_a^T,   a = the adapter of token t   (Hu et al. 2021; Punica, Chen et al. 2023)

W is multiplied once for all tokens. An adapter is loaded whole and never changed afterwards, and a row holds the one it
began with: a version that rolls, or an adapter that is put away, cannot change an answer in the making.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from service.serving.engines.packed import packed_linear
from simpo.checkpoint import ADAPTER
from simpo.config import LoraConfig
from simpo.errors import CheckpointError, ConfigError
from simpo.lora import WEIGHTS, peft_name, weights_hash

_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Linear layers of one parent that are given the same tensor: their ways down are one product."""
_MANY = 128  # tokens from which on a packed layout is the faster one


class _Down:
    """x A^T of one adapter, for linear layers that read the same x."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        """`parts`: (rank, in) each."""
        weight_Ri = torch.cat(list(parts))
        linear = nn.Linear(weight_Ri.shape[1], len(weight_Ri), bias=False, device="meta")
        linear.weight = nn.Parameter(weight_Ri, requires_grad=False)
        self._down_iR, self._packed = weight_Ri.t().contiguous(), packed_linear(linear)

    def __call__(self, x_Ni: Tensor) -> Tensor:
        """(N, in) -> (N, R): the ranks of all of them beside each other."""
        return x_Ni @ self._down_iR if self._packed is None or len(x_Ni) < _MANY else self._packed(x_Ni)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedAdapter:
    """The weights of one adapter, on the base's device and in its dtype."""

    layers: Mapping[str, tuple[_Down, slice, Tensor]]
    """Layer -> the way down, which part of it is this layer's, and s B^T (rank, out)."""
    owner: object
    """Stands for this adapter where its weights need not be kept alive."""


class Routing:
    """Which adapter each token of the next forward pass has. One forward pass at a time."""

    def __init__(self, model: Any) -> None:
        """Make room for adapters beside every linear layer of a base, in place; the head never has one."""
        self.base_hash = weights_hash(model.named_parameters())
        self.groups: list[tuple[slice | Tensor, LoadedAdapter]] = []
        self.lowered: tuple[Tensor | None, dict[_Down, Tensor]] = (None, {})
        """What was given to a layer last, and its products on the ways down, for the layers that are given the same."""
        self._device = model.device
        head = model.get_output_embeddings()
        linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
        self._shapes = {name: (m.in_features, m.out_features, m.weight.dtype) for name, m in linears.items()}
        for name, linear in linears.items():
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _RoutedLinear(linear, name, self))

    def route(self, adapters: Sequence[LoadedAdapter | None], counts: Sequence[int]) -> None:
        """For the next forward pass: so many tokens of each, in their order."""
        if len(set(map(id, adapters))) == 1:
            self.groups = [] if adapters[0] is None else [(slice(None), adapters[0])]
            return
        tokens: dict[LoadedAdapter, list[int]] = {}
        at = 0
        for adapter, count in zip(adapters, counts, strict=True):
            if adapter is not None:
                tokens.setdefault(adapter, []).extend(range(at, at + count))
            at += count
        self.groups = [(_indices(of_one, self._device), adapter) for adapter, of_one in tokens.items()]

    def load(self, directory: Path, manifest: Mapping[str, Any]) -> LoadedAdapter:
        """The adapter of a checkpoint whose manifest has been checked.

        Raises CheckpointError: it has none, belongs to another base, or has other layers than the base.
        """
        if "lora" not in manifest or f"{ADAPTER}/{WEIGHTS}" not in manifest["files"]:
            raise CheckpointError(f"{directory} holds whole weights, not an adapter: deploy it by itself")
        if manifest.get("base", {}).get("hash") != self.base_hash:
            raise CheckpointError(f"{directory} was trained beside another base: deploy it by itself")
        try:
            config = LoraConfig(**manifest["lora"])
        except (TypeError, ConfigError) as error:
            raise CheckpointError(f"{directory}/manifest.json: lora: {error}") from error
        saved = load_file(str(directory / ADAPTER / WEIGHTS))
        downs, ups = dict[str, Tensor](), dict[str, Tensor]()
        for name, (width_in, width_out, dtype) in self._shapes.items():
            down, up = (saved.pop(peft_name(f"{name}.{part}"), None) for part in ("lora_A", "lora_B"))
            if down is None and up is None:
                continue
            if down is None or up is None or down.shape[1] != width_in or up.shape != (width_out, len(down)):
                raise CheckpointError(f"{directory / ADAPTER / WEIGHTS}: {name} does not fit the base")
            scale = config.alpha / config.rank
            downs[name], ups[name] = down.to(self._device, dtype), (scale * up.t()).to(self._device, dtype)
        if saved or not ups:
            raise CheckpointError(
                f"{directory / ADAPTER / WEIGHTS} has layers that the base lacks: {sorted(saved)[:3]}"
            )
        return LoadedAdapter(layers=_layers(downs, ups), owner=object())


Route = Callable[[Sequence[LoadedAdapter | None], Sequence[int]], None]
"""Tells the model's layers which adapters the tokens of the next forward pass have."""


class _RoutedLinear(nn.Module):
    """A linear layer of the base, and what the adapters of the tokens add to it."""

    def __init__(self, base: nn.Linear, name: str, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self._name = name
        self._routing = routing

    def forward(self, x_BTi: Tensor) -> Tensor:
        """(B, T, in) -> (B, T, out)."""
        y_BTo: Tensor = self.base(x_BTi)
        for tokens, adapter in self._routing.groups:
            if self._name not in adapter.layers:
                continue
            down, part, up = adapter.layers[self._name]
            lowered_Nr, y_No = self._lowered(x_BTi, tokens, down)[:, part], y_BTo.flatten(0, -2)
            if isinstance(tokens, slice):
                y_No[tokens].addmm_(lowered_Nr, up)
            else:
                y_No.index_add_(0, tokens, lowered_Nr @ up)
        return y_BTo

    def _lowered(self, x_BTi: Tensor, tokens: slice | Tensor, down: _Down) -> Tensor:
        """(N, R)"""
        if self._routing.lowered[0] is not x_BTi:
            self._routing.lowered = (x_BTi, {})
        known = self._routing.lowered[1]
        if down not in known:
            known[down] = down(x_BTi.flatten(0, -2)[tokens])
        return known[down]


def _layers(downs: Mapping[str, Tensor], ups: Mapping[str, Tensor]) -> dict[str, tuple[_Down, slice, Tensor]]:
    """As LoadedAdapter has them."""
    layers: dict[str, tuple[_Down, slice, Tensor]] = {}
    for name in downs:
        if name in layers:
            continue
        parent, _, leaf = name.rpartition(".")
        leaves = next((leaves for leaves in _SAME_INPUT if leaf in leaves), (leaf,))
        names = [one for other in leaves if (one := f"{parent}.{other}") in downs]
        down, at = _Down([downs[one] for one in names]), 0
        for one in names:
            layers[one] = (down, slice(at, at := at + len(downs[one])), ups[one])
    return layers


def _indices(tokens: list[int], device: torch.device) -> slice | Tensor:
    """A slice, which copies nothing, where they are next to each other."""
    if tokens[-1] - tokens[0] + 1 == len(tokens):
        return slice(tokens[0], tokens[-1] + 1)
    return torch.tensor(tokens, device=device)
