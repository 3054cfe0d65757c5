"""What another training seed changes: the order of the pairs, and the first weights of an adapter.

Nothing else is drawn in training: there is no dropout, and whole weights start as the base. Replicate 0 is what the
search trained; replicate r draws from (seed, r) alone, so that all finalists see the same batches in the same order.
"""

from typing import Any

import numpy as np

from simpo.lora import adapter_of
from simpo.packing import PackedPlan
from simpo.reference import Reference
from simpo.sharding import gathered


class Orders:
    """The plan and the reference of the replicate that a process is training."""

    def __init__(self, seed: int, plan: PackedPlan, reference: Reference | None) -> None:
        self.plan = plan
        self.reference = reference
        self._seed = seed
        self._first = (plan, reference)
        self._current = 0

    def enter(self, replicate: int, model: Any) -> None:
        """Turn to a replicate, together. `model` holds the weights that every trial begins with."""
        adapter = adapter_of(model)
        if replicate and adapter is not None:
            adapter.redraw(int(np.random.SeedSequence([adapter.config.seed, replicate]).generate_state(1)[0]))
        if replicate == self._current:
            return
        self._current = replicate
        self.plan, self.reference = self._first
        if replicate:
            self.plan = self.plan.replicate(self._seed, replicate)
            if self.reference is not None:
                with gathered(model):
                    self.reference = self.reference.reordered(model, self.plan)
