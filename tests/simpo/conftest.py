"""Tiny models and pairs that every test of the step uses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from simpo.packing import TokenPair
from tests.simpo.tiny import random_token_pairs, two_layer_llama


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One thread: sums in one order, and no contention with other tests."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """Build a two-layer Llama with grouped-query attention; the same weights for the same seed."""
    return two_layer_llama


@pytest.fixture
def random_pairs() -> Callable[..., list[TokenPair]]:
    """Random pairs of varied lengths; the same for the same seed."""
    return random_token_pairs
