"""A sweep that takes seconds: a thin random Llama on a few rows of the practice task."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from simpo.checkpoint import save_checkpoint
from simpo.practice import build_tokenizer
from sweeps.spec import SweepSpec, parse_spec


def tiny_base(directory: Path) -> Path:
    """One layer of width 32 over bytes, random weights."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return save_checkpoint(directory, model=LlamaForCausalLM(config), tokenizer=tokenizer)


def tiny_spec(base: Path, **changes: Any) -> SweepSpec:
    """Judged, but steered by accuracy: a random model's answers are all wrong."""
    body = {
        "name": "tiny",
        "base_model": str(base),
        "dataset": {"train": "practice", "limit": 200},
        "space": {"learning_rate": {"type": "log_float", "low": 1e-4, "high": 1e-1}},
        "objective": "accuracy",
        "constraints": {"repetition": "<=0.9"},
        "sampler": {"type": "tpe", "startup_trials": 3},
        "scheduler": {"type": "asha", "rungs": [0.34, 0.67], "reduction_factor": 2},
        "budget": {"trials": 8, "steps": 12},
        "train": {"batch_pairs": 8, "token_budget": 1024},
        "tokens": {"max_length": 256},
        "evaluation": {"rung_prompts": 8, "max_new_tokens": 8},
        "finals": {"candidates": 2, "prompts": 16},
    }
    return parse_spec({**body, **changes})
