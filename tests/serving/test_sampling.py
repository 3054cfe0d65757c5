"""Tokens are drawn by their weights, from the nucleus alone, whichever way it is found."""

import pytest
import torch

from service.serving.engines.base import Sampling
from service.serving.engines.sampling import _NUCLEUS, Sampler, _drawn, looks_at
from service.serving.engines.vocabulary import Vocabulary
from tests.serving.tiny import tiny_tokenizer

pytestmark = pytest.mark.quick


def test_draws_follow_the_weights_and_never_hit_a_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    weights_K = torch.tensor([0.0, 0.1, 0.2, 0.0, 0.7, 0.0])
    counts_K = torch.bincount(torch.tensor([_drawn(weights_K, generator) for _ in range(4000)]), minlength=6)
    assert counts_K[weights_K == 0].sum() == 0
    assert (counts_K / 4000 - weights_K).abs().max() < 0.03


@pytest.mark.parametrize("scale", [0.0, 3.0], ids=["flat: all are sorted", "peaked: the likeliest will do"])
def test_the_nucleus_is_the_smallest_set_of_enough_mass(scale: float) -> None:
    size, top_p = 3 * _NUCLEUS, 0.6
    logits_V = scale * torch.randn(size, generator=torch.Generator().manual_seed(1)) + torch.arange(size) * 1e-4
    sorted_V, order_V = torch.softmax(logits_V, dim=-1).sort(descending=True)
    nucleus = set(order_V[sorted_V.cumsum(-1) - sorted_V < top_p].tolist())
    assert (len(nucleus) > _NUCLEUS) == (scale == 0)
    sampler = Sampler(Sampling(max_new_tokens=1, top_p=top_p, seed=1), Vocabulary(tiny_tokenizer()), frozenset())
    [look] = looks_at(logits_V[None])
    drawn = {sampler.choose(logits_V, look) for _ in range(300)}
    assert drawn <= nucleus and len(drawn) > 20
