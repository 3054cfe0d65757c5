"""Averages and scalings of weights, on layers small enough to do by hand."""

import pytest
import torch
from torch import nn

from simpo.errors import ModelError
from simpo.soup import scaled, soup

pytestmark = pytest.mark.quick


def _linear(value: float, dtype: torch.dtype = torch.float32, outputs: int = 2) -> nn.Linear:
    layer = nn.Linear(3, outputs, dtype=dtype)
    for weight in layer.parameters():
        weight.data.fill_(value)
    return layer


def test_a_soup_is_the_mean_of_its_models() -> None:
    made = soup(_linear(value) for value in (1.0, 2.0, 6.0))
    assert {value for weight in made.parameters() for value in weight.flatten().tolist()} == {3.0}


def test_a_scaled_model_lies_on_the_line_through_base_and_tuned() -> None:
    for scale, expected in ((0.0, 1.0), (0.5, 2.0), (1.0, 3.0), (1.25, 3.5)):
        assert scaled(_linear(1.0), _linear(3.0), scale).weight[0, 0].item() == expected


def test_sums_are_made_in_float32() -> None:
    """In bfloat16 256 + 1 is 256."""
    made = soup(_linear(value, torch.bfloat16) for value in (256.0, 1.0, 1.0))
    assert made.weight.dtype == torch.bfloat16
    assert made.weight[0, 0].item() == torch.tensor(258 / 3, dtype=torch.bfloat16).item()


def test_models_of_other_shapes_are_refused() -> None:
    with pytest.raises(ModelError, match="other weights"):
        soup([_linear(1.0), _linear(1.0, outputs=4)])
    with pytest.raises(ModelError, match="other weights"):
        scaled(_linear(1.0), _linear(1.0, outputs=4), 0.5)
    with pytest.raises(ModelError, match="no models"):
        soup([])
