"""What makes the engine of transformers fast changes no answer: packed weights, a cache in place, grouped attention."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from service.serving.engines.grouped import attend
from service.serving.engines.growing import new_cache
from service.serving.engines.packed import PackedLinear, pack
from tests.serving.tiny import tiny_model

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_layers_give_the_same_products(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40, bias=bias, dtype=dtype), nn.ReLU())
    x = torch.randn(3, 5, 24, dtype=dtype)
    with torch.inference_mode():
        expected = model(x)
        pack(model)
        assert isinstance(model[0], PackedLinear)
        got = model(x)
    assert got.dtype == dtype and got.shape == expected.shape
    assert torch.allclose(got, expected, atol=1e-5 if dtype == torch.float32 else 1e-2)
    assert list(model.parameters()) == [], "the row-major weights are gone"


def test_a_kind_that_cannot_be_packed_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64))
    pack(model)
    assert type(model[0]) is nn.Linear


def test_a_whole_model_says_the_same_packed() -> None:
    model, ids = tiny_model(), torch.arange(20)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        pack(model)
        assert (model(ids).logits - expected).abs().max() < 1e-4


def states(width: int, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 2, width, 4)


def test_a_growing_cache_holds_what_a_copying_one_holds() -> None:
    torch.manual_seed(0)
    mine, plain = new_cache(), DynamicCache()
    for width in (7, 1, 1, 100, 1, 1, 300):
        keys, values = states(width), states(width)
        expected = plain.update(keys, values, 0)
        got = mine.update(keys, values, 0)
        assert all(map(torch.equal, got, expected))
        assert mine.get_seq_length() == plain.get_seq_length()


def test_what_was_read_of_a_growing_cache_stays_and_may_be_replaced() -> None:
    torch.manual_seed(0)
    cache = new_cache()
    cache.update(states(5), states(5), 0)
    cache.update(states(1), states(1), 0)
    layer = cache.layers[0]
    kept, copy = layer.keys, layer.keys.clone()
    other = new_cache()
    other.update(kept[:, :, :4], kept[:, :, :4], 0)
    for one in (cache, other):
        one.update(states(1), states(1), 0)
    assert torch.equal(kept, copy), "two go on from one beginning"
    layer.keys, layer.values = layer.keys[1:, :, 2:], layer.values[1:, :, 2:]  # a row left
    left = layer.keys.clone()
    new = states(1, rows=1)
    keys, _ = cache.update(new, new, 0)
    assert torch.equal(keys, torch.cat((left, new), dim=-2))


class Heads(nn.Module):
    """What transformers' attention asks of its layer."""

    num_key_value_groups = 3
    is_causal = True


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [1, 4])
def test_grouped_attention_is_attention(masked: bool, tokens: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, tokens, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    mask: Any = None
    if masked:
        mask = torch.ones(2, 1, tokens, 9, dtype=torch.bool)
        mask[1, ..., :4] = False
    expected, _ = sdpa_attention_forward(Heads(), query, key, value, mask, scaling=0.3)
    got, _ = attend(Heads(), query, key, value, mask, scaling=0.3)
    assert got.shape == (2, tokens, 6, 8)
    assert torch.allclose(got, expected, atol=1e-6)
