"""Reference log-probabilities: computed once for a plan's pairs, shared by every trial and method that needs them.

Legend: N pairs of the plan's data, S steps, B pairs a step; the last axis is (chosen, rejected).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from simpo.packing import PackedPlan, PairStore
from simpo.scores import score_pairs


class Reference:
    """R_w and R_l of every pair of a plan's data (N, 2), and of every step's mismatched pairs (S, B, 2) if wanted."""

    def __init__(self, sums_N2: Tensor, mismatched_SB2: Tensor | None = None) -> None:
        self.sums_N2 = sums_N2
        self.mismatched_SB2 = mismatched_SB2

    def sums_of(self, pair_ids: Sequence[int]) -> Tensor:
        """Interleaved sums (2B) of some pairs, in the order of a micro-batch."""
        return self.sums_N2[list(pair_ids)].reshape(-1)

    def save(self, path: str | Path) -> None:
        """Write as one safetensors file."""
        tensors = {"sums_N2": self.sums_N2.contiguous()}
        if self.mismatched_SB2 is not None:
            tensors["mismatched_SB2"] = self.mismatched_SB2.contiguous()
        save_file(tensors, str(path))

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read what `save` wrote."""
        saved = load_file(str(path))
        return cls(saved["sums_N2"], saved.get("mismatched_SB2"))


def reference_of(model: Any, plan: PackedPlan, *, mismatched: bool = False) -> Reference:
    """Score every pair once under the model as it is now (the model before training).

    `mismatched` also scores each step's mismatched pairs: a second pass, for methods with `needs_kl_batch`.
    """
    crossed = None
    if mismatched:
        steps = [_sums(model, plan.mismatched(index), plan.token_budget) for index in range(plan.num_steps)]
        crossed = torch.stack(steps)
    return Reference(_sums(model, plan.pairs, plan.token_budget), crossed)


def _sums(model: Any, pairs: PairStore, token_budget: int) -> Tensor:
    scores = score_pairs(model, pairs.evaluation_batches(token_budget))
    return torch.stack((scores.chosen_sum_B, scores.rejected_sum_B), dim=1)
