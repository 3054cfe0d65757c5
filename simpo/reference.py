"""Reference log-probabilities: computed once for a plan's pairs, shared by every trial and method that needs them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from simpo.packing import MicroBatch, PairStore
from simpo.scores import score_pairs


class Reference:
    """R_w and R_l of every pair of a plan's data: float32 of shape (N, 2)."""

    def __init__(self, sums_N2: Tensor) -> None:
        self.sums_N2 = sums_N2

    def sums_of(self, pair_ids: Sequence[int]) -> Tensor:
        """Interleaved sums (2B) of some pairs, in the order of a micro-batch."""
        return self.sums_N2[list(pair_ids)].reshape(-1)

    def save(self, path: str | Path) -> None:
        """Write as one safetensors file."""
        save_file({"sums_N2": self.sums_N2.contiguous()}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read what `save` wrote."""
        return cls(load_file(str(path))["sums_N2"])


def reference_of(model: Any, pairs: PairStore, token_budget: int) -> Reference:
    """Score every pair once under the model as it is now (the model before training)."""
    batches: list[MicroBatch] = pairs.evaluation_batches(token_budget)
    scores = score_pairs(model, batches)
    return Reference(torch.stack((scores.chosen_sum_B, scores.rejected_sum_B), dim=1))
