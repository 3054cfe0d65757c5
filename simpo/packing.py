"""The packed plan: pairs share their prompt, nothing is padded, every trial and method sees the same batches.

A micro-batch of B pairs is one row of T = sum of (P + C + R) tokens, blocks [prompt | chosen | rejected] one after
another. Positions of the rejected response restart after the prompt; the head sees only the S = sum of (C + R) rows
that predict a response token.

Legend: P, C, R tokens of prompt, chosen, rejected; T unique tokens; S scored tokens; B pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from simpo.errors import ConfigError, DataError

Ints = NDArray[np.int64]


class TokenPair(NamedTuple):
    """One preference in token ids. Responses end in their end token. `rejected` may be empty in a chosen-only plan."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class Segment(NamedTuple):
    """Where one pair lies in the packed row, and the lengths of its three parts."""

    start: int
    prompt: int
    chosen: int
    rejected: int


@dataclass(frozen=True)
class MicroBatch:
    """One packed row and its tables; see the head of this file for the letters."""

    input_ids_T: Tensor
    position_ids_T: Tensor
    segments: tuple[Segment, ...]
    source_S: Tensor
    """Row of the hidden state that predicts the token. The last prompt row serves both responses."""
    target_S: Tensor
    """The predicted token: chosen tokens of a pair, then its rejected tokens."""
    owner_S: Tensor
    """2j for a chosen token of the micro-batch's pair j, 2j + 1 for a rejected one."""
    lengths_2B: Tensor
    """Response tokens: chosen and rejected of each pair in turn."""
    pair_ids: tuple[int, ...]
    """Positions of the pairs in the plan's data."""

    @property
    def num_pairs(self) -> int:
        """B."""
        return len(self.segments)

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.input_ids_T.numel())

    def to(self, device: torch.device) -> "MicroBatch":
        """The same tables on a device."""
        tensors: dict[str, Any] = {
            key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


class PairStore:
    """Tokenised pairs in two flat arrays, cheap to save, map and share between processes."""

    def __init__(self, tokens: Ints, lengths_N3: Ints) -> None:
        self.tokens = tokens
        self.lengths_N3 = lengths_N3
        self._starts = np.concatenate([[0], np.cumsum(lengths_N3.sum(axis=1))])

    @classmethod
    def of(cls, pairs: Sequence[TokenPair], *, chosen_only: bool = False) -> "PairStore":
        """Flatten pairs; `chosen_only` leaves the rejected side out."""
        kept = [(p.prompt, p.chosen, [] if chosen_only else p.rejected) for p in pairs]
        for index, (prompt, chosen, rejected) in enumerate(kept):
            if not prompt or not chosen or not (rejected or chosen_only):
                raise DataError(f"pair {index} has an empty prompt or response: drop such rows before planning")
        flat = [token for parts in kept for part in parts for token in part]
        return cls(np.asarray(flat, dtype=np.int64), np.asarray([[len(x) for x in parts] for parts in kept], np.int64))

    def __len__(self) -> int:
        return len(self.lengths_N3)

    def micro_batch(self, pair_ids: Sequence[int]) -> MicroBatch:
        """Lay the pairs out in one packed row."""
        ids: list[Ints] = []
        positions: list[Ints] = []
        sources: list[Ints] = []
        segments: list[Segment] = []
        start = 0
        for pair in pair_ids:
            prompt, chosen, rejected = (int(n) for n in self.lengths_N3[pair])
            end = start + prompt + chosen
            ids.append(self.tokens[self._starts[pair] : self._starts[pair + 1]])
            positions += [np.arange(prompt + chosen), np.arange(prompt, prompt + rejected)]
            sources.append(np.arange(start + prompt - 1, end - 1))
            if rejected:
                sources += [np.asarray([start + prompt - 1]), np.arange(end, end + rejected - 1)]
            segments.append(Segment(start, prompt, chosen, rejected))
            start = end + rejected
        lengths_2B = self.lengths_N3[list(pair_ids), 1:].reshape(-1)
        input_ids_T = np.concatenate(ids)
        target_S = np.concatenate([input_ids_T[s.start + s.prompt :][: s.chosen + s.rejected] for s in segments])
        return MicroBatch(
            input_ids_T=torch.from_numpy(input_ids_T),
            position_ids_T=torch.from_numpy(np.concatenate(positions)),
            segments=tuple(segments),
            source_S=torch.from_numpy(np.concatenate(sources)),
            target_S=torch.from_numpy(target_S),
            owner_S=torch.from_numpy(np.repeat(np.arange(len(lengths_2B)), lengths_2B)),
            lengths_2B=torch.from_numpy(lengths_2B.copy()),
            pair_ids=tuple(int(pair) for pair in pair_ids),
        )

    def bins(self, pair_ids: Sequence[int], token_budget: int) -> list[list[int]]:
        """Divide pairs into micro-batches of at most `token_budget` unique tokens: first fit, longest first.

        A pair over the budget gets a bin of its own. The same pairs in the same order always give the same bins.
        """
        totals = self.lengths_N3.sum(axis=1)
        bins: list[list[int]] = []
        room: list[int] = []
        for pair in sorted(pair_ids, key=lambda pair: -int(totals[pair])):
            size = int(totals[pair])
            slot = next((i for i, free in enumerate(room) if free >= size), None)
            if slot is None:
                bins.append([pair])
                room.append(token_budget - size)
            else:
                bins[slot].append(pair)
                room[slot] -= size
        return bins

    def crossed(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> "PairStore":
        """Prompts of some pairs with the responses of others, pair by pair: KTO's mismatched examples."""
        pieces: list[Ints] = []
        lengths = []
        for left, right in zip(prompt_ids, response_ids, strict=True):
            prompt_len, skipped = int(self.lengths_N3[left, 0]), int(self.lengths_N3[right, 0])
            pieces.append(self.tokens[self._starts[left] :][:prompt_len])
            pieces.append(self.tokens[self._starts[right] + skipped : self._starts[right + 1]])
            lengths.append([prompt_len, *self.lengths_N3[right, 1:]])
        return PairStore(np.concatenate(pieces), np.asarray(lengths, dtype=np.int64))

    def parts(self) -> Iterator[tuple[Ints, Ints, Ints]]:
        """(prompt, chosen, rejected) of each pair."""
        for start, (prompt, chosen, rejected) in zip(self._starts, self.lengths_N3, strict=False):
            ends = start + np.cumsum((prompt, chosen, rejected))
            first, second, third = np.split(self.tokens[start : ends[2]], ends[:2] - start)
            yield first, second, third

    def only(self, wanted_N2: NDArray[np.bool_]) -> "PairStore":
        """The same prompts with the marked responses alone; one that is alone stands where the chosen one does.

        Pairs of which none is marked are left out. At least one is.
        """
        pieces: list[Ints] = []
        lengths = []
        for (prompt, *responses), wanted in zip(self.parts(), wanted_N2, strict=True):
            kept = [response for response, is_wanted in zip(responses, wanted, strict=True) if is_wanted]
            if kept:
                pieces += [prompt, *kept]
                lengths.append([len(prompt), len(kept[0]), len(kept[1]) if len(kept) == 2 else 0])
        return PairStore(np.concatenate(pieces), np.asarray(lengths, dtype=np.int64))

    def evaluation_batches(self, token_budget: int) -> list[MicroBatch]:
        """All pairs once, packed; `MicroBatch.pair_ids` says which row is which."""
        return [self.micro_batch(ids) for ids in self.bins(range(len(self)), token_budget)]


class PackedPlan:
    """Which pairs are in which step and micro-batch. Made once; every trial and method follows the same one."""

    def __init__(self, pairs: PairStore, order_SB: Ints, token_budget: int) -> None:
        self.pairs = pairs
        self.order_SB = order_SB
        self.token_budget = token_budget

    @property
    def num_steps(self) -> int:
        """Optimiser steps that the plan covers."""
        return len(self.order_SB)

    @property
    def batch_pairs(self) -> int:
        """Pairs in a step, over all workers."""
        return int(self.order_SB.shape[1])

    def step(self, index: int, *, rank: int = 0, world_size: int = 1) -> list[MicroBatch]:
        """The micro-batches of step `index` (from 0); a worker gets every `world_size`-th of them."""
        return [self.pairs.micro_batch(ids) for ids in self._bins(index)[rank::world_size]]

    def most_batches(self, index: int, world_size: int) -> int:
        """Micro-batches of the worker that has most of them in step `index`."""
        return -(-len(self._bins(index)) // world_size)

    def smallest_batch(self, index: int) -> MicroBatch:
        """One pair of step `index`, for a worker that has to run something when the others do."""
        return self.pairs.micro_batch(self._bins(index)[-1][-1:])

    def mismatched(self, index: int) -> PairStore:
        """The pairs of step `index` with each prompt given the next pair's responses, in the order of the step.

        Made from the whole step, so that it does not depend on micro-batches or workers.
        """
        ids = self.order_SB[index].tolist()
        return self.pairs.crossed(ids, [*ids[1:], ids[0]])

    def replicate(self, seed: int, number: int) -> "PackedPlan":
        """The same pairs in as many batches, in another order: that of replicate `number` (from 1) of a seed.

        It depends on nothing else, so that whoever trains again under it sees the same batches as the others.
        """
        steps, batch_pairs = self.order_SB.shape
        order_SB = _order(np.random.default_rng([seed, number]), len(self.pairs), steps, batch_pairs)
        return PackedPlan(self.pairs, order_SB, self.token_budget)

    def chosen_tokens(self, index: int) -> int:
        """Chosen tokens of the whole step `index`, over all workers."""
        return int(self.pairs.lengths_N3[self.order_SB[index], 1].sum())

    def step_tokens(self) -> Ints:
        """Unique tokens of each whole step, prompts once for both answers; shape (steps,)."""
        tokens: Ints = self.pairs.lengths_N3.sum(axis=1)[self.order_SB].sum(axis=1)
        return tokens

    def save(self, path: str | Path) -> None:
        """Write the plan as one safetensors file."""
        tensors = {
            "tokens": self.pairs.tokens,
            "lengths_N3": self.pairs.lengths_N3,
            "order_SB": self.order_SB,
            "token_budget": np.asarray([self.token_budget]),
        }
        save_file(tensors, str(path))

    @classmethod
    def load(cls, path: str | Path) -> "PackedPlan":
        """Read what `save` wrote."""
        saved = load_file(str(path))
        pairs = PairStore(saved["tokens"], saved["lengths_N3"])
        return cls(pairs, saved["order_SB"], int(saved["token_budget"][0]))

    def _bins(self, index: int) -> list[list[int]]:
        return self.pairs.bins(self.order_SB[index].tolist(), self.token_budget)


def build_plan(
    pairs: Sequence[TokenPair],
    *,
    batch_pairs: int,
    steps: int,
    token_budget: int,
    seed: int,
    chosen_only: bool = False,
) -> PackedPlan:
    """Plan `steps` batches of `batch_pairs`: epoch after epoch in a seeded order, no pair twice in one batch's epoch.

    Raises DataError without pairs, ConfigError when a batch would need a pair twice.
    """
    if not pairs:
        raise DataError("no usable pairs are left to train on: see the counts of dropped rows")
    if batch_pairs > len(pairs):
        raise ConfigError(f"is {batch_pairs}, but only {len(pairs)} pairs are usable: lower it", "train.batch_pairs")
    store = PairStore.of(pairs, chosen_only=chosen_only)
    return PackedPlan(store, _order(np.random.default_rng(seed), len(pairs), steps, batch_pairs), token_budget)


def _order(rng: np.random.Generator, pairs: int, steps: int, batch_pairs: int) -> Ints:
    """(steps, batch_pairs): one permutation of all pairs after another, cut into batches."""
    epochs = -(-steps * batch_pairs // pairs)
    order = np.concatenate([rng.permutation(pairs) for _ in range(epochs)])[: steps * batch_pairs]
    return order.reshape(steps, batch_pairs).astype(np.int64)
