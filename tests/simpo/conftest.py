"""Tiny models and pairs that every test of the step uses."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from simpo.attention import PAIR, register_pair_attention
from simpo.packing import TokenPair

VOCABULARY = 97


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One thread: sums in one order, and no contention with other tests."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """Build a two-layer Llama with grouped-query attention; the same weights for the same seed."""

    def build(seed: int = 0, *, tied: bool = True, attention: str = PAIR, longest: int = 256) -> Any:
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

    return build


@pytest.fixture
def random_pairs() -> Callable[..., list[TokenPair]]:
    """Random pairs of varied lengths; the same for the same seed."""

    def make(count: int, seed: int = 0, longest: int = 9) -> list[TokenPair]:
        rng = random.Random(seed)
        ids = lambda: [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, longest))]  # noqa: E731
        return [TokenPair(ids(), ids(), ids()) for _ in range(count)]

    return make
