"""Keys and values of the rows of a batch: each row in a slot of its own, its tokens from the first column on.

Slots are of 64 columns, of 128, 256 and so on, and a row lies in the narrowest that it fits into: rows of one width
attend together, and a long one makes no other slow. A pass writes in place. What lies behind a row's last token is read
with the rows beside it, and masked: it must be finite, for 0 times infinity is no 0. So a slot that is left is wiped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

States = Mapping[int, Tensor]
"""Layer -> keys and values (2, T, G, D) of the first T tokens of a row."""

_NARROWEST = 64
_ROOMY = 4  # so many times the slots that are taken are given back


@dataclass(frozen=True, kw_only=True)
class Place:
    """A slot."""

    columns: int
    number: int
    """Among those of so many columns; the taken ones are 0, 1, 2 ... without a gap."""


class Occupant(Protocol):
    """What lies in a slot."""

    place: Place | None
    length: int
    """Tokens that are in the slot."""


class Slots:
    """Buffers (2, S, C, G, D) by layer and width C: keys and values; S slots, G key heads of width D."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, int], Tensor] = {}
        self._rows: dict[int, list[Occupant]] = {}  # columns -> by number

    def take(self, row: Occupant, length: int) -> None:
        """A slot for a row that is to have so many tokens; a row that has a narrower one moves."""
        columns = max(_NARROWEST, 1 << (length - 1).bit_length())
        if row.place is not None and row.place.columns >= columns:
            return
        rows = self._rows.setdefault(columns, [])
        place = Place(columns=columns, number=len(rows))
        if row.place is not None:
            for layer in [layer for layer, width in self._buffers if width == row.place.columns]:
                old = self._buffers[layer, row.place.columns][:, row.place.number, : row.length]
                self.buffer(layer, columns, old, place.number + 1)[:, place.number, : row.length] = old
            self.leave(row)
        rows.append(row)
        row.place = place

    def leave(self, row: Occupant) -> None:
        """The last row of its width takes the slot."""
        if row.place is None:
            return
        columns, number = row.place.columns, row.place.number
        rows = self._rows[columns]
        last, row.place = rows.pop(), None
        for kept in [kept for (_, width), kept in self._buffers.items() if width == columns]:
            there = kept.shape[1]  # where memory was short, less than what was asked for
            if number < min(len(rows), there):
                kept[:, number] = kept[:, len(rows)] if len(rows) < there else 0.0
            if len(rows) < there:
                kept[:, len(rows)] = 0.0
        if last is not row:
            rows[number] = last
            last.place = Place(columns=columns, number=number)
        self._give_back(columns, len(rows))

    def buffer(self, layer: int, columns: int, like: Tensor, num_slots: int) -> Tensor:
        """The buffer of a layer and width, of so many slots at least. `like`: (..., G, D)."""
        kept = self._buffers.get((layer, columns))
        if kept is None or kept.shape[1] < num_slots:
            kept = self._made(layer, columns, like, num_slots)
        return kept

    def states(self, row: Occupant) -> States:
        """A copy of what a row has."""
        assert row.place is not None, "it has a slot"
        columns, number = row.place.columns, row.place.number
        layers = [layer for layer, width in self._buffers if width == columns]
        return {layer: self._buffers[layer, columns][:, number, : row.length].clone() for layer in layers}

    def begin(self, row: Occupant, states: States, length: int) -> None:
        """Put so many tokens of another row into an empty slot."""
        assert row.place is not None, "it has a slot"
        columns, number = row.place.columns, row.place.number
        for layer, state in states.items():
            self.buffer(layer, columns, state, number + 1)[:, number, :length] = state[:, :length]
        row.length = length

    def _give_back(self, columns: int, num_taken: int) -> None:
        for layer, width in list(self._buffers):
            if width == columns and num_taken == 0:
                del self._buffers[layer, width]
            elif width == columns and (kept := self._buffers[layer, width]).shape[1] > _ROOMY * num_taken:
                self._made(layer, columns, kept, num_taken)

    def _made(self, layer: int, columns: int, like: Tensor, num_slots: int) -> Tensor:
        """Doubled as rows come: each time all of them are copied."""
        made = like.new_zeros((2, 1 << (num_slots - 1).bit_length(), columns, *like.shape[-2:]))
        if (kept := self._buffers.get((layer, columns))) is not None:
            both = min(kept.shape[1], made.shape[1])
            made[:, :both] = kept[:, :both]
        self._buffers[layer, columns] = made
        return made
