"""Tiny models and pairs, for fixtures and for the processes of a group."""

import random
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from simpo.attention import PAIR, register_pair_attention
from simpo.packing import TokenPair

VOCABULARY = 97


def two_layer_llama(seed: int = 0, *, tied: bool = True, attention: str = PAIR, longest: int = 256) -> Any:
    """A two-layer Llama with grouped-query attention; the same weights for the same seed."""
    register_pair_attention()
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=longest,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation(attention)
    return model


def random_token_pairs(count: int, seed: int = 0, longest: int = 9) -> list[TokenPair]:
    """Random pairs of varied lengths; the same for the same seed."""
    rng = random.Random(seed)

    def ids() -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, longest))]

    return [TokenPair(ids(), ids(), ids()) for _ in range(count)]
