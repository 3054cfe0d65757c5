"""Models made of other models' weights, without a step of training.

    soup    the uniform average of models trained from one base (Wortsman et al. 2022, arXiv 2203.05482). With merged
            LoRA models that is the base plus the average of their merged changes
    scaled  base + s (tuned - base): s < 1 leads back towards the base (WiSE-FT, Wortsman et al. 2021, arXiv
            2109.01903), s > 1 beyond the tuned model

All arithmetic is in float32. At most three models are in memory at once.
"""

from collections.abc import Iterable
from typing import Any

import torch

from simpo.errors import ModelError


@torch.no_grad()
def soup(models: Iterable[Any]) -> Any:
    """The uniform average, in the first model's place. Load them one by one: each is needed only while it is added.

    Raises ModelError: no model, or other weights than the first one's.
    """
    average, total, count = None, dict[str, torch.Tensor](), 0
    for model in models:
        count += 1
        if average is None:
            average = model
            total = {name: weight.detach().float().clone() for name, weight in model.named_parameters()}
        else:
            for name, weight in _same(total, model).items():
                total[name] += weight.float()
    if average is None:
        raise ModelError("an average of no models is not a model", "soup")
    for name, weight in average.named_parameters():
        weight.copy_(total[name] / count)
    return average


@torch.no_grad()
def scaled(base: Any, tuned: Any, scale: float) -> Any:
    """base + scale * (tuned - base), in the place of `tuned`. Raises ModelError for other weights than the base's."""
    weights = {name: weight.detach() for name, weight in base.named_parameters()}
    for name, weight in _same(weights, tuned).items():
        first = weights[name].float()
        weight.copy_(first + scale * (weight.float() - first))
    return tuned


def _same(expected: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """The model's weights by name, if they are those that are expected."""
    weights = {name: weight.data for name, weight in model.named_parameters()}
    if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in expected.items()}:
        raise ModelError("the models have other weights than each other: average only models of one base", "soup")
    return weights
