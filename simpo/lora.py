"""LoRA (Hu et al. 2021): a frozen base, and beside each linear layer a product of two thin matrices that learns.

    y = x W^T + s (x A^T) B^T,   s = alpha / rank,   W frozen, A (rank, in) and B (out, rank) in float32

The layer is a subclass of nn.Linear that takes over the base's weight: names of the base stay as they are, and PEFT's
names follow from ours. Files are PEFT's, so that PEFT and vLLM load them; the forward and backward are our own.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from simpo.config import LoraConfig
from simpo.errors import CheckpointError, ConfigError
from simpo.sharding import gather, whole

WEIGHTS = "adapter_model.safetensors"
"""PEFT's file name, beside its adapter_config.json."""
_PEFT_PREFIX = "base_model.model."


def add_lora(model: Any, config: LoraConfig) -> "Adapter":
    """Freeze `model` and put an adapter beside each target, in place. B = 0: the model computes what it did before.

    A starts as in PEFT, from a generator seeded with `config.seed`. Raises ConfigError for a target that the model
    does not have, and for a model that has an adapter.
    """
    if adapter_of(model) is not None:
        raise ConfigError("the model has an adapter already: load the base anew", "train.lora")
    chosen = adapted_layers(model, config)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(config.seed)
    for name, linear in chosen.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, LoraLinear(linear, config, generator))
    model.simpo_adapter = Adapter(model, config)
    return adapter_of(model)  # type: ignore[return-value]


def adapted_layers(model: Any, config: LoraConfig) -> dict[str, nn.Linear]:
    """The linear layers to adapt, by name. The head is never one: its gradient is made without autograd.

    Raises ConfigError for a target that the model does not have.
    """
    head = model.get_output_embeddings()
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if config.targets == "all-linear":
        return linears
    leaves = {name.rpartition(".")[2] for name in linears}
    if unknown := [target for target in config.targets if target not in leaves]:
        raise ConfigError(
            f"the model has no linear layer named {', '.join(unknown)}: use all-linear or some of "
            f"{', '.join(sorted(leaves))}",
            "train.lora.targets",
        )
    return {name: linear for name, linear in linears.items() if name.rpartition(".")[2] in config.targets}


def adapter_of(model: Any) -> "Adapter | None":
    """What `add_lora` made of this model; None for a model without an adapter."""
    return getattr(model, "simpo_adapter", None)


def weights_hash(weights: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 of weights with their names, rounded to bfloat16: the same in whatever precision a model was loaded."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights, key=lambda pair: pair[0]):
        rounded = whole(weight.detach()).to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(rounded.shape)}\n".encode())
        digest.update(rounded.view(torch.int16).numpy().data)
    return digest.hexdigest()


def peft_name(name: str) -> str:
    """What PEFT calls an adapter's weight that we call `layer.lora_A` or `layer.lora_B`."""
    return f"{_PEFT_PREFIX}{name}.weight"


class LoraLinear(nn.Linear):
    """A linear layer with a frozen weight and an adapter."""

    def __init__(self, base: nn.Linear, config: LoraConfig, generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.scale = config.alpha / config.rank
        drawn = _drawn((config.rank, self.in_features), generator)
        self.lora_A = nn.Parameter(drawn.to(base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, config.rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out) in the dtype of x."""
        rows = x.reshape(-1, self.in_features)
        output: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            rows, self.weight, self.bias, self.lora_A, self.lora_B, self.scale
        )
        return output.view(*x.shape[:-1], self.out_features)

    def merged(self) -> Tensor:
        """W + s B A, summed in float32, in the dtype of W (together, where W is divided)."""
        return (whole(self.weight).float() + self.scale * (self.lora_B @ self.lora_A)).to(self.weight.dtype)


class Adapter:
    """All adapter weights of one model."""

    def __init__(self, model: Any, config: LoraConfig) -> None:
        self.model = model
        self.config = config

    @cached_property
    def base_hash(self) -> str:
        """sha256 of the frozen weights, rounded to bfloat16: the same whatever precision the base was loaded in.

        The first call is made together, where they are divided.
        """
        weights = self.model.named_parameters()
        return weights_hash((name, weight) for name, weight in weights if not weight.requires_grad)

    @torch.no_grad()
    def redraw(self, seed: int) -> None:
        """First weights of another seed than `config.seed`, in place: A is drawn anew, B is 0."""
        generator = torch.Generator().manual_seed(seed)
        for _, layer in self._layers():
            layer.lora_A.copy_(_drawn(layer.lora_A.shape, generator))
            layer.lora_B.zero_()

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint must say of it: the settings, and the base that it belongs to."""
        return {"lora": dataclasses.asdict(self.config), "base": {"hash": self.base_hash, "source": self._source}}

    def merged_weights(self) -> dict[str, Tensor]:
        """The state dict of an ordinary model: every base weight under its name, the adapted ones merged.

        Of a divided model: together, and for worker 0 (`simpo.sharding.gather`).
        """
        layers = {f"{name}.weight": layer for name, layer in self._layers()}
        return gather(
            (name, layers[name].merged().detach() if name in layers else value)
            for name, value in self.model.state_dict().items()
            if not _is_adapter(name)
        )

    def save(self, directory: Path) -> None:
        """Write adapter_config.json and adapter_model.safetensors, which PEFT and vLLM load."""
        from peft import LoraConfig as PeftConfig  # noqa: PLC0415  # lazy: a second that full training need not pay

        directory.mkdir(parents=True, exist_ok=True)
        tensors = {peft_name(name): value.detach().cpu().contiguous() for name, value in self._weights().items()}
        save_file(tensors, str(directory / WEIGHTS), metadata={"format": "pt"})
        PeftConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha,
            lora_dropout=0.0,
            target_modules=sorted({name.rpartition(".")[2] for name, _ in self._layers()}),
            task_type="CAUSAL_LM",
            base_model_name_or_path=self._source,
            inference_mode=True,
        ).save_pretrained(str(directory))

    @torch.no_grad()
    def load(self, directory: Path) -> None:
        """Read what `save` wrote, by us or by PEFT. Raises CheckpointError when it belongs to another shape."""
        saved = load_file(str(directory / WEIGHTS))
        own = {peft_name(name): weight for name, weight in self._weights().items()}
        if {name: value.shape for name, value in saved.items()} != {name: w.shape for name, w in own.items()}:
            raise CheckpointError(f"{directory / WEIGHTS} has other layers or another rank than the model's adapter")
        for name, weight in own.items():
            weight.copy_(saved[name])

    @property
    def _source(self) -> str:
        return str(getattr(self.model.config, "_name_or_path", ""))

    def _layers(self) -> Iterator[tuple[str, LoraLinear]]:
        return ((name, layer) for name, layer in self.model.named_modules() if isinstance(layer, LoraLinear))

    def _weights(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self.model.named_parameters() if _is_adapter(name)}


def _drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A, as PEFT starts it."""
    return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)


def _is_adapter(name: str) -> bool:
    return name.endswith((".lora_A", ".lora_B"))


class _Product(torch.autograd.Function):
    """The layer's equation, keeping only x (one tensor for q, k and v, and for gate and up) and x A^T."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_A: Tensor, lora_B: Tensor, scale: float
    ) -> Tensor:
        down, up = lora_A.to(x.dtype), lora_B.to(x.dtype)
        hidden = x @ down.t()
        ctx.save_for_backward(x, weight, hidden, down, up)
        ctx.scale = scale
        return nn.functional.linear(x, weight, bias).addmm_(hidden, up.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        """dX = dY W + s (dY B) A,   dA = s (dY B)^T x,   dB = s dY^T (x A^T)."""
        x, weight, hidden, down, up = ctx.saved_tensors
        grad = grads[0]
        back = grad @ up
        grad_x = (grad @ weight).addmm_(back, down, alpha=ctx.scale) if ctx.needs_input_grad[0] else None
        grad_A = (back.t() @ x).float() * ctx.scale
        grad_B = (hidden.t() @ grad).t().float() * ctx.scale
        return grad_x, None, None, grad_A, grad_B, None
