"""Several LoRA adapters on one base, in one batch: each row of a forward pass has the weights that its request named.

    y_b = x_b W^T + s_a (x_b A_a^T) B_a^T,   a = the adapter of row b   (Hu et al. 2021; Punica, Chen et al. 2023)

W is multiplied once for all rows. An adapter is loaded whole and never changed afterwards, and a row holds the one it
began with: a version that rolls, or an adapter that is put away, cannot change an answer in the making.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from simpo.checkpoint import ADAPTER
from simpo.config import LoraConfig
from simpo.errors import CheckpointError, ConfigError
from simpo.lora import WEIGHTS, peft_name, weights_hash


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedAdapter:
    """The weights of one adapter, on the base's device and in its dtype."""

    layers: Mapping[str, tuple[Tensor, Tensor]]
    """Layer -> A^T (in, rank) and s B^T (rank, out)."""
    owner: object
    """Stands for this adapter where its weights need not be kept alive."""


class Routing:
    """Which adapter each row of the next forward pass has. One forward pass at a time."""

    def __init__(self, model: Any) -> None:
        """Make room for adapters beside every linear layer of a base, in place; the head never has one."""
        self.base_hash = weights_hash(model.named_parameters())
        self.groups: list[tuple[Tensor | None, LoadedAdapter]] = []
        self._device = model.device
        head = model.get_output_embeddings()
        linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
        self._shapes = {name: (m.in_features, m.out_features, m.weight.dtype) for name, m in linears.items()}
        for name, linear in linears.items():
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _RoutedLinear(linear, name, self))

    def route(self, adapters: Sequence[LoadedAdapter | None]) -> None:
        """Rows -> adapters, for the next forward pass."""
        if len(set(map(id, adapters))) == 1:
            self.groups = [] if adapters[0] is None else [(None, adapters[0])]
            return
        rows: dict[int, list[int]] = {}
        for row, adapter in enumerate(adapters):
            rows.setdefault(id(adapter), []).append(row)
        self.groups = [
            (torch.tensor(of_one, device=self._device), adapter)
            for of_one in rows.values()
            if (adapter := adapters[of_one[0]]) is not None
        ]

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
        layers: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (width_in, width_out, dtype) in self._shapes.items():
            down, up = (saved.pop(peft_name(f"{name}.{part}"), None) for part in ("lora_A", "lora_B"))
            if down is None and up is None:
                continue
            if down is None or up is None or down.shape[1] != width_in or up.shape != (width_out, len(down)):
                raise CheckpointError(f"{directory / ADAPTER / WEIGHTS}: {name} does not fit the base")
            scale = config.alpha / config.rank
            layers[name] = (down.t().to(self._device, dtype), (scale * up.t()).to(self._device, dtype))
        if saved or not layers:
            raise CheckpointError(
                f"{directory / ADAPTER / WEIGHTS} has layers that the base lacks: {sorted(saved)[:3]}"
            )
        return LoadedAdapter(layers=layers, owner=object())


Route = Callable[[Sequence[LoadedAdapter | None]], None]
"""Tells the model's layers which adapter each row of the next forward pass has."""


class _RoutedLinear(nn.Module):
    """A linear layer of the base, and what the adapters of the rows add to it."""

    def __init__(self, base: nn.Linear, name: str, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self._name = name
        self._routing = routing

    def forward(self, x_BTi: Tensor) -> Tensor:
        """(B, T, in) -> (B, T, out)."""
        y_BTo: Tensor = self.base(x_BTi)
        for rows, adapter in self._routing.groups:
            pair = adapter.layers.get(self._name)
            if pair is None:
                continue
            down, up = pair
            if rows is None:
                y_BTo.view(-1, y_BTo.shape[-1]).addmm_(x_BTi.flatten(0, -2) @ down, up)
            else:
                y_BTo.index_add_(0, rows, x_BTi[rows] @ down @ up)
        return y_BTo
