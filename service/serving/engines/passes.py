"""One forward pass over tokens of many rows: the next token of each that is being answered, and prompts beside them.

All tokens lie in one line, without padding between rows; what is computed for each token alone (nearly everything)
knows no rows at all. Attention does: it writes the new keys and values into the rows' slots, and each token attends to
its own row's. Rows of which one token is read attend together, where their slots are of one width, and query heads that
share keys (grouped-query attention, Ainslie et al. 2023) are rows of one product over them: on a CPU that takes a third
of the time.

Legend: T tokens of the pass; n rows with one token; L tokens of a longer stretch; S keys; H query heads, G key heads
of width D; V tokens of the vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from service.serving.engines.adapters import LoadedAdapter, Route
from service.serving.engines.sampling import Look, looks_at
from service.serving.engines.slots import Place, Slots

NAME = "simpo_rows"
"""Of this attention, for `set_attn_implementation`."""
_EXACT, _ROUND = 64, 8
"""Matrix kernels of a CPU are made anew for each number of tokens they meet, in 2 ms for a layer's; above the first
number, passes are filled up to a multiple of the second."""
_WORTH_IT = 16
"""Tokens that the last layer leaves out."""


def prepare(model: Any) -> None:
    """Make a model of transformers one whose passes are of the kind below, and nothing else."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _no_mask)
    model.set_attn_implementation(NAME)
    model.get_decoder().layers[-1].register_forward_pre_hook(_ends_alone, with_kwargs=True)


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Consecutive tokens of one row."""

    place: Place
    start: int
    """How many of the row's tokens are in its slot."""
    ids: Sequence[int]
    adapter: LoadedAdapter | None = None
    every: bool = False
    """The logits after each of them are wanted, not after the last alone."""

    @property
    def end(self) -> int:
        return self.start + len(self.ids)

    @property
    def num_wanted(self) -> int:
        """After so many of its last tokens logits are wanted."""
        return len(self.ids) if self.every else 1

    @property
    def wanted(self) -> "Stretch":
        """Those tokens alone."""
        return replace(self, start=self.end - self.num_wanted, ids=self.ids[-self.num_wanted :])


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """What a layer's attention is made of, beside queries, keys and values."""

    scale: float
    window: int | None
    softcap: float | None


class Pass:
    """What one pass reads, and the attention of its tokens."""

    def __init__(self, stretches: Sequence[Stretch], slots: Slots, route: Route, device: torch.device) -> None:
        self.stretches = sorted(stretches, key=_order)
        """In the order of the pass."""
        self._slots, self._route, self._device = slots, route, device
        by_width = groupby(self.stretches, key=lambda stretch: stretch.place.columns)
        self._widths = [_Width(columns, list(those), device) for columns, those in by_width]
        self._num_tokens = sum(len(stretch.ids) for stretch in stretches)
        self._sizes = [width.num_tokens for width in self._widths]
        self._sizes.append(_filled(self._num_tokens) - self._num_tokens)

    def forward(self, model: Any) -> dict[Place, tuple[Tensor, Look]]:
        """Float32 logits (1 or L, V) of each stretch, and a look at its last. The model is `prepare`d."""
        ids = [token for stretch in self.stretches for token in stretch.ids]
        columns = [column for stretch in self.stretches for column in range(stretch.start, stretch.end)]
        filling = [0] * self._sizes[-1]
        self.route()
        logits_KV: Tensor = model(
            input_ids=torch.tensor([ids + filling], device=self._device),
            position_ids=torch.tensor([columns + filling], device=self._device),
            logits_to_keep=self.wanted_K if self.ends is None else 0,
            use_cache=False,
            rows_pass=self,
        ).logits[0]
        return self._by_place(logits_KV.float())

    def _by_place(self, logits_KV: Tensor) -> dict[Place, tuple[Tensor, Look]]:
        told = (self.ends or self).stretches
        counts = [stretch.num_wanted for stretch in told]
        lasts = [last - 1 for last in accumulate(counts)]
        whole = len(lasts) == len(logits_KV)
        looks = looks_at(logits_KV if whole else logits_KV[torch.tensor(lasts, device=self._device)])
        parts = torch.split(logits_KV[: sum(counts)], counts)
        return {stretch.place: (part, look) for stretch, part, look in zip(told, parts, looks, strict=True)}

    def route(self) -> None:
        """The layers that come have these tokens."""
        self._route([stretch.adapter for stretch in self.stretches], [len(stretch.ids) for stretch in self.stretches])

    @cached_property
    def ends(self) -> "Pass | None":
        """The pass of the tokens after which logits are wanted; None: they are nearly all."""
        stretches = [stretch.wanted for stretch in self.stretches]
        if self._num_tokens - sum(len(stretch.ids) for stretch in stretches) < _WORTH_IT:
            return None
        return Pass(stretches, self._slots, self._route, self._device)

    @cached_property
    def wanted_K(self) -> Tensor:
        """The tokens after which logits are wanted, in the order of `ends`, where there are any."""
        ends = dict[Place, int]()
        at = 0
        for stretch in self.stretches:
            ends[stretch.place] = at = at + len(stretch.ids)
        wanted, filling = list[int](), list[int]()
        if self.ends is not None:
            filling = [0] * self.ends._sizes[-1]
        for stretch in (self.ends or self).stretches:
            wanted += range(ends[stretch.place] - stretch.num_wanted, ends[stretch.place])
        return torch.tensor(wanted + filling, device=self._device)

    def fill(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Put a layer's keys and values (1, G, T, D) into the slots."""
        new = torch.stack((key[0], value[0])).transpose(1, 2)
        for width, new_2NGD in zip(self._widths, torch.split(new, self._sizes, dim=1), strict=False):
            width.fill(self._buffer(layer, width, new_2NGD), new_2NGD)

    def attended(self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: _Terms) -> Tensor:
        """(1, H, T, D), (1, G, T, D) twice -> (1, T, H, D); the slots are filled."""
        parts = list[Tensor]()
        *split, (filling, _, _) = zip(
            *(torch.split(states, self._sizes, dim=2) for states in (query, key, value)), strict=True
        )
        for width, (q, k, v) in zip(self._widths, split, strict=True):
            parts += width.attended(self._buffer(layer, width, k.transpose(1, 2)), q, k, v, terms)
        return torch.cat([*parts, filling.transpose(1, 2)], dim=1)

    def _buffer(self, layer: int, width: "_Width", like: Tensor) -> Tensor:
        return self._slots.buffer(layer, width.columns, like, width.num_slots)


class _Width:
    """What is read of rows in slots of one width: of some one token each, which attend together, then longer ones."""

    def __init__(self, columns: int, stretches: Sequence[Stretch], device: torch.device) -> None:
        self.columns = columns
        self._device = device
        self._steps = [stretch for stretch in stretches if len(stretch.ids) == 1]
        self._longer = stretches[len(self._steps) :]
        self._sizes = [len(self._steps), *(len(stretch.ids) for stretch in self._longer)]
        self.num_tokens = sum(self._sizes)
        self.num_slots = 1 + max(stretch.place.number for stretch in stretches)
        firsts = [(s, s.place.number * columns) for s in stretches]
        places = [first + column for s, first in firsts for column in range(s.start, s.end)]
        self._places_N = torch.tensor(places, device=device)  # of each token, the slots one after another
        self._seen: dict[tuple[int, int | None], Tensor] = {}

    def fill(self, kept: Tensor, new_2NGD: Tensor) -> None:
        """Write keys and values into a buffer."""
        kept.flatten(1, 2).index_copy_(1, self._places_N, new_2NGD)

    def attended(self, kept: Tensor, query: Tensor, key: Tensor, value: Tensor, terms: _Terms) -> Iterator[Tensor]:
        """(1, H, N, D), (1, G, N, D) twice -> (1, n, H, D), (1, L, H, D), ...; `kept` has the new keys and values."""
        split = [torch.split(states, self._sizes, dim=2) for states in (query, key, value)]
        (q, *_), *longer = zip(*split, strict=True)
        if self._steps:
            keys, values = kept[:, self._slots, : self._end].transpose(2, 3)
            seen = self._seen_by_steps(terms.window if _cuts(terms.window, self._end) else None)
            yield _attention(q.transpose(0, 2), keys, values, seen, terms).transpose(0, 1)
        for number, (stretch, (q, k, v)) in enumerate(zip(self._longer, longer, strict=True)):
            window = terms.window if _cuts(terms.window, stretch.end) else None
            if stretch.start:
                k, v = kept[:, stretch.place.number, None, : stretch.end].transpose(2, 3)
            is_whole = stretch.start == 0 and window is None and terms.softcap is None
            yield _attention(q, k, v, None if is_whole else self._seen_by(number, window), terms)

    @cached_property
    def _slots(self) -> slice | Tensor:
        """Of the steps; a slice, which copies nothing, where they are next to each other."""
        numbers = [stretch.place.number for stretch in self._steps]
        if numbers[-1] - numbers[0] + 1 == len(numbers):
            return slice(numbers[0], numbers[-1] + 1)
        return torch.tensor(numbers, device=self._device)

    @cached_property
    def _end(self) -> int:
        """Columns that the steps attend to, of the longest of them."""
        return max(stretch.end for stretch in self._steps)

    def _seen_by_steps(self, window: int | None) -> Tensor:
        """(n, 1, 1, S)"""
        if (-1, window) not in self._seen:
            own_n1 = torch.tensor([[stretch.start] for stretch in self._steps], device=self._device)
            self._seen[-1, window] = _seen(own_n1, self._end, window)[:, None, None]
        return self._seen[-1, window]

    def _seen_by(self, number: int, window: int | None) -> Tensor:
        """(L, S)"""
        if (number, window) not in self._seen:
            stretch = self._longer[number]
            own_L1 = torch.arange(stretch.start, stretch.end, device=self._device)[:, None]
            self._seen[number, window] = _seen(own_L1, stretch.end, window)
        return self._seen[number, window]


def _order(stretch: Stretch) -> tuple[int, bool, int]:
    return stretch.place.columns, len(stretch.ids) > 1, stretch.place.number


def _seen(own_N1: Tensor, num_columns: int, window: int | None) -> Tensor:
    """(N, S): the columns up to a token's own; of a window, the last ones of them."""
    columns_S = torch.arange(num_columns, device=own_N1.device)
    seen = columns_S <= own_N1
    return seen if window is None else seen & (columns_S > own_N1 - window)


def _cuts(window: int | None, num_columns: int) -> bool:
    return window is not None and num_columns > window


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    rows_pass: Pass | None = None,
    fill_alone: bool = False,
    **_: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it. `fill_alone`: what it gives is not used."""
    assert rows_pass is not None, "this attention needs the pass whose tokens it is for"
    layer: Any = module.layer_idx
    rows_pass.fill(layer, key, value)
    if fill_alone:
        return query.transpose(1, 2), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    terms = _Terms(scale=scale, window=sliding_window, softcap=softcap)
    return rows_pass.attended(layer, query, key, value, terms), None


def _ends_alone(layer: torch.nn.Module, args: tuple[Tensor], kwargs: dict[str, Any]) -> Any:
    """Before the last layer: of tokens after which no logits are wanted it makes keys and values, and nothing else."""
    whole: Pass = kwargs["rows_pass"]
    if whole.ends is None:
        return None
    own: Any = layer
    own.self_attn(own.input_layernorm(args[0]), **kwargs, fill_alone=True)
    whole.ends.route()
    turned = tuple(part_1TD[:, whole.wanted_K] for part_1TD in kwargs["position_embeddings"])
    return (args[0][:, whole.wanted_K],), {**kwargs, "rows_pass": whole.ends, "position_embeddings": turned}


def _attention(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, terms: _Terms) -> Tensor:
    """(B, H, L, D), (B, G, S, D) twice -> (B, L, H, D). `seen`: (L, S) or (B, 1, 1, S); None: all up to oneself."""
    (b, h, length, d), g = query.shape, keys.shape[1]
    if terms.softcap is not None:
        assert seen is not None, "a soft cap has no kernel that looks back only"
        grouped = query.reshape(b, g, h // g, length, d) @ keys[:, :, None].transpose(-1, -2)
        scores = torch.tanh(grouped * (terms.scale / terms.softcap)) * terms.softcap
        scores = scores.masked_fill(~(seen if seen.dim() == 2 else seen[:, :, None]), float("-inf"))
        probs = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        return (probs @ values[:, :, None]).reshape(b, h, length, d).transpose(1, 2)
    if length == 1 and seen is not None and seen.dim() == 4:
        grouped = query.reshape(b, g, h // g, d)  # its mask is the same for all heads
        out = scaled_dot_product_attention(grouped, keys, values, attn_mask=seen, scale=terms.scale)
        return out.reshape(b, 1, h, d)
    if seen is not None and g != h:  # with a mask the kernels would rather have each head's keys
        keys, values = (states.repeat_interleave(h // g, dim=1) for states in (keys, values))
    out = scaled_dot_product_attention(
        query, keys, values, attn_mask=seen, is_causal=seen is None, scale=terms.scale, enable_gqa=keys.shape[1] != h
    )
    return out.transpose(1, 2)


def _filled(num_tokens: int) -> int:
    return num_tokens if num_tokens <= _EXACT else -(-num_tokens // _ROUND) * _ROUND


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """transformers would make one out of positions that begin anew."""
