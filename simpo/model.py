"""Load a policy and its tokenizer, ready for packed training; refuse by name what the packed step cannot compute."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from simpo.attention import PAIR, register_pair_attention
from simpo.errors import ModelError

SUPPORTED: Mapping[str, tuple[str, ...]] = {
    "llama": (),
    "mistral": (),
    "qwen2": (),
    "qwen3": (),
    "gemma2": ("final_logit_softcapping", "attn_logit_softcapping"),
    "gemma3_text": ("final_logit_softcapping",),
}
"""Architecture -> terms of its config beyond embedding, layers, norm and linear head that its forward has, and ours."""

_TERMS = ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling")
_GROWING_ROPE = ("dynamic", "longrope")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(source: str | Path, *, dtype: str = "float32") -> Any:
    """Load a causal language model from a directory or a hub id, with pair attention and without dropout.

    It lies on the GPU where there is one (the first that this process may see).

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
    return without_dropout(model.to("cuda" if torch.cuda.is_available() else "cpu"))


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
    name = config.model_type
    if name == "gemma3":
        raise ModelError("this Gemma 3 reads images too: give its text part, saved as Gemma3ForCausalLM", "base_model")
    if name not in SUPPORTED:
        raise ModelError(
            f"architecture {name!r} is not supported yet: use one of {', '.join(SUPPORTED)}", "base_model"
        )
    for term in _TERMS:
        if getattr(config, term, None) and term not in SUPPORTED[name]:
            raise ModelError(f"the model's config sets {term}, which the packed step does not compute", "base_model")
    if getattr(config, "use_bidirectional_attention", None):
        raise ModelError("the model attends in both directions: only causal models can be trained", "base_model")
    if growing := sorted(_rope_types(config) & {*_GROWING_ROPE}):
        raise ModelError(
            f"rotary positions of type {growing[0]} depend on the longest sequence of a batch, so that packing would "
            "change them: use a model with another type",
            "base_model",
        )


def plain_attention(config: Any) -> str:
    """transformers' own attention for generation: sdpa, or eager for a soft cap, which sdpa cannot compute."""
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


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


def _rope_types(config: Any) -> set[str]:
    """Kinds of rotary positions in use; the config holds one set of settings, or one for each kind of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    several = [value for value in settings.values() if isinstance(value, Mapping)] or [settings]
    return {str(one.get("rope_type", "default")) for one in several}


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
