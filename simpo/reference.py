"""Reference log-probabilities: computed once for a plan's pairs, shared by every trial and method that needs them.

Legend: N pairs of the plan's data, S steps, B pairs a step; the last axis is (chosen, rejected).
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from simpo.packing import PackedPlan, PairStore
from simpo.reference_store import ReferenceStore, scorer_hash
from simpo.scores import score_pairs

CHECKED_SHARE, LEAST_CHECKED = 0.01, 8
"""Of the responses found in a store, so many are computed again: this share, and at least so many."""
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.25}
"""Nats by which a sum of one token may differ when computed again, in another batch; of n tokens sqrt(n) times as much,
for errors of rounding add up so. bfloat16: a logit near 32 is rounded to a multiple of 0.25."""


@dataclass(frozen=True, kw_only=True)
class ReferenceCost:
    """What reference log-probabilities took. All zero for a method without a reference: that is its saving."""

    seconds: float = 0.0
    """Wall time, hashing the model and reading the store included."""
    cpu_seconds: float = 0.0
    """Of this process's threads in that time."""
    tokens: int = 0
    """Unique tokens that went through the model."""
    hits: int = 0
    """Responses whose value was known: from the store, or from an equal one of the same plan."""
    misses: int = 0
    """Responses that were computed because nothing was known."""
    checked: int = 0
    """Hits that were computed again, to see whether the store is right."""
    warnings: tuple[str, ...] = ()
    """What was wrong with the store."""

    def as_dict(self) -> dict[str, Any]:
        """JSON form, without the warnings: these are events."""
        figures = {key: value for key, value in dataclasses.asdict(self).items() if key != "warnings"}
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()}

    def __str__(self) -> str:
        checked = f", {self.checked} of them checked" if self.checked else ""
        return f"{self.misses} computed in {self.seconds:.1f} s ({self.tokens} tokens), {self.hits} known{checked}"


class Reference:
    """R_w and R_l of every pair of a plan's data (N, 2), and of every step's mismatched pairs (S, B, 2) if wanted."""

    def __init__(
        self, sums_N2: Tensor, mismatched_SB2: Tensor | None = None, cost: ReferenceCost | None = None
    ) -> None:
        self.sums_N2 = sums_N2
        self.mismatched_SB2 = mismatched_SB2
        self.cost = cost or ReferenceCost()

    def sums_of(self, pair_ids: Sequence[int]) -> Tensor:
        """Interleaved sums (2B) of some pairs, in the order of a micro-batch."""
        return self.sums_N2[list(pair_ids)].reshape(-1)

    def reordered(self, model: Any, plan: PackedPlan) -> "Reference":
        """For the same pairs in another order: mismatched pairs are other ones there, and are scored again.

        `model` is the reference model itself. Nothing is scored for a method that needs no mismatched pairs.
        """
        if self.mismatched_SB2 is None:
            return self
        scorer = _Scorer(model, plan.token_budget, None, 0)
        crossed = [scorer.sums(plan.mismatched(index)) for index in range(plan.num_steps)]
        return Reference(self.sums_N2, torch.stack(crossed), self.cost)

    def save(self, path: str | Path) -> None:
        """Write as one safetensors file, without the cost."""
        tensors = {"sums_N2": self.sums_N2.contiguous()}
        if self.mismatched_SB2 is not None:
            tensors["mismatched_SB2"] = self.mismatched_SB2.contiguous()
        save_file(tensors, str(path))

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read what `save` wrote."""
        saved = load_file(str(path))
        return cls(saved["sums_N2"], saved.get("mismatched_SB2"))


def reference_of(
    model: Any, plan: PackedPlan, *, mismatched: bool = False, store: str | Path | None = None, seed: int = 0
) -> Reference:
    """Score every pair once under the model as it is now (the model before training).

    `mismatched` also scores each step's mismatched pairs: a second pass, for methods with `needs_kl_batch`.
    `store`: a directory of log-probabilities (`simpo.reference_store`); only responses that it does not hold are
    computed, and then it holds them. A sample of the others, drawn with `seed`, is computed as well: where it differs,
    the store's entries for this model are refused and all are computed.
    """
    began, cpu = time.perf_counter(), time.process_time()
    scorer = _Scorer(model, plan.token_budget, store, seed)

    def values() -> tuple[Tensor, Tensor | None]:
        sums_N2 = scorer.sums(plan.pairs)
        steps = [scorer.sums(plan.mismatched(index)) for index in range(plan.num_steps)] if mismatched else []
        return sums_N2, torch.stack(steps) if steps else None

    sums_N2, crossed = values()
    if scorer.refused:  # some were taken from the store before it was found out; what was computed is known by now
        scorer.asked = 0
        sums_N2, crossed = values()
    if scorer.store is not None:
        scorer.store.close()
    cost = ReferenceCost(
        seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu,
        tokens=scorer.tokens,
        hits=scorer.asked - scorer.misses,
        misses=scorer.misses,
        checked=scorer.checked,
        warnings=() if scorer.store is None else tuple(scorer.store.warnings),
    )
    return Reference(sums_N2, crossed, cost)


class _Scorer:
    """Sums of responses under one model, and what they cost."""

    def __init__(self, model: Any, token_budget: int, store: str | Path | None, seed: int) -> None:
        self.store = None if store is None else ReferenceStore(store, scorer_hash(model))
        self.asked = self.misses = self.checked = self.tokens = 0
        self.refused = False
        self._model = model
        self._token_budget = token_budget
        self._rng = np.random.default_rng(seed)

    def sums(self, pairs: PairStore) -> Tensor:
        """(N, 2); 0 for an absent response."""
        counts_N2 = pairs.lengths_N3[:, 1:]
        self.asked += int((counts_N2 > 0).sum())
        if self.store is None:
            self.misses += int((counts_N2 > 0).sum())
            return self._computed(pairs)
        keys_N2 = self.store.keys(pairs)
        found, sums = self.store.get(keys_N2.reshape(-1, 32), counts_N2.reshape(-1))
        found_N2, sums_N2 = found.reshape(-1, 2), sums.reshape(-1, 2)
        if self._differs(pairs, found_N2, sums_N2):
            found_N2[:] = False
        missing = np.argwhere((counts_N2 > 0) & ~found_N2)
        new = {keys_N2[row, side].tobytes(): (row, side) for row, side in missing[::-1]}  # the first of equal ones
        wanted_N2 = np.zeros_like(found_N2)
        for row, side in new.values():
            wanted_N2[row, side] = True
        self.misses += len(new)
        for (row, side), value in zip(np.argwhere(wanted_N2), self._of(pairs, wanted_N2), strict=True):
            sums_N2[row, side] = value
            self.store.put(keys_N2[row, side].tobytes(), float(value), int(counts_N2[row, side]))
        for row, side in missing:
            sums_N2[row, side] = sums_N2[new[keys_N2[row, side].tobytes()]]
        return torch.from_numpy(sums_N2)

    def _differs(self, pairs: PairStore, found_N2: NDArray[np.bool_], sums_N2: NDArray[np.float32]) -> bool:
        """Compute a sample of what was found again. True, and the store refused, when it is not the same."""
        assert self.store is not None
        known = np.argwhere(found_N2)
        number = min(len(known), max(LEAST_CHECKED - self.checked, math.ceil(CHECKED_SHARE * len(known))))
        if number <= 0:
            return False
        self.checked += number
        sample_N2 = np.zeros_like(found_N2)
        sample_N2[tuple(self._rng.choice(known, number, replace=False).T)] = True
        difference = np.abs(self._of(pairs, sample_N2) - sums_N2[sample_N2])
        of_one_token = TOLERANCES.get(self._model.dtype, TOLERANCES[torch.float32])
        allowed = of_one_token * np.sqrt(pairs.lengths_N3[:, 1:][sample_N2])
        wrong = int((~(difference <= allowed)).sum())  # a difference of NaN is one
        if wrong:
            self.refused = True
            self.store.refuse()
            self.store.warnings.append(
                f"{self.store.path}: {wrong} of {number} values that were computed again differ, by up to "
                f"{difference.max():.3g} nats: what it held for this model is refused, all of it is computed"
            )
        return wrong > 0

    def _of(self, pairs: PairStore, wanted_N2: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Sums of the marked responses alone, in their order."""
        if not wanted_N2.any():
            return np.zeros(0, dtype=np.float32)
        part = pairs.only(wanted_N2)
        return self._computed(part).numpy()[part.lengths_N3[:, 1:] > 0]

    def _computed(self, pairs: PairStore) -> Tensor:
        batches = pairs.evaluation_batches(self._token_budget)
        self.tokens += sum(batch.num_tokens for batch in batches)
        scores = score_pairs(self._model, batches)
        return torch.stack((scores.chosen_sum_B, scores.rejected_sum_B), dim=1)
