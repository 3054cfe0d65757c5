"""Load a policy and its tokenizer, ready for packed training; refuse by name what the packed step cannot compute."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from simpo.attention import PAIR, register_pair_attention
from simpo.errors import ModelError

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures whose forward is: embedding, pre-norm layers, final norm, plain linear head."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(source: str | Path, *, dtype: str = "float32") -> Any:
    """Load a causal language model from a directory or a hub id, with pair attention and without dropout.

    Only safetensors are read, and no code from the model's folder is run. Raises ModelError: a missing path, an
    architecture that the packed step does not know, a config with a term that it would leave out.
    """
    where = _located(source, "base_model")
    try:
        config = AutoConfig.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model can be read from {where!r} ({_first_line(error)})", "base_model") from error
    check_supported(config)
    register_pair_attention()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            where, config=config, dtype=DTYPES[dtype], attn_implementation=PAIR, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"the weights in {where!r} cannot be read ({_first_line(error)})", "base_model") from error
    return without_dropout(model)


def load_tokenizer(source: str | Path, *, chat_template: str | None = None) -> Any:
    """Load the tokenizer that lies beside a model; ModelError if there is none.

    chat_template: of the token policy. It takes the place of the tokenizer's own, so that a checkpoint saved with this
    tokenizer is rendered in the same way by every tool.
    """
    where = _located(source, "base_model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer can be read from {where!r} ({_first_line(error)})", "base_model") from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def check_supported(config: Any) -> None:
    """Refuse a config whose forward is not what the packed step computes; the message names what is missing."""
    if config.model_type not in SUPPORTED:
        raise ModelError(
            f"architecture {config.model_type!r} is not supported yet: use one of {', '.join(SUPPORTED)}", "base_model"
        )
    for term in ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, term, None):
            raise ModelError(f"the model's config sets {term}, which the packed step does not compute", "base_model")


def without_dropout(model: Any) -> Any:
    """Set every dropout to 0, as the authors' trainer does: preference losses compare two forward passes."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model.train()


def num_parameters(model: nn.Module) -> int:
    """Parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _located(source: str | Path, field: str) -> str:
    """A directory as it is; a hub id as it is; anything that was meant as a path and is not there is refused."""
    text = str(source)
    if Path(text).is_dir():
        return text
    if text.startswith((".", "/", "~")) or text.count("/") != 1 or Path(text).exists():
        raise ModelError(
            f"no model directory at {text!r}: give one with config.json and safetensors, or a hub id 'org/name'",
            field,
        )
    return text


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
