"""Continuous batching over a transformers model: requests join and leave a running batch between two tokens.

One key-value cache holds all rows, aligned at the right: a row that is shorter than the widest has padding on its left,
which the attention mask hides, and position ids count from each row's own first token. Short prompts that come together
are read together; a long one, one that begins like another, and one that is scored are read alone, in pieces. The new
cache is joined on; a finished row's cache is cut out, and padding that all rows share is cut off.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from service.serving.engines.adapters import Route
from service.serving.engines.base import EngineBusy, EngineError, Occupancy, TokenScore
from service.serving.engines.growing import joined, new_cache
from service.serving.engines.prefixes import Prefixes, begins
from service.serving.engines.rows import Request, Row
from service.serving.engines.sampling import scored

PREFILL_TOKENS = 256
"""Prompt tokens of one forward pass: between two passes somebody who left is noticed."""
_TOGETHER = 8  # prompts of one forward pass
_PADDING = 64  # tokens that are computed for nothing in one forward pass, rather than make another
_PREFILL_BUDGET = 1024  # prompt tokens that may be read between two tokens of those who are being answered
_RETRY_AFTER_S = 2
_log = logging.getLogger(__name__)


class Decoder:
    """A thread that decodes all open requests together."""

    def __init__(self, model: Any, *, max_batch: int, max_waiting: int, route: Route | None = None) -> None:
        """At most `max_batch` requests share the batch, and `max_waiting` more may wait for a place in it."""
        self._batch = Batch(model, route or (lambda adapters: None), self._note_progress)
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: queue.SimpleQueue[Request | None] = queue.SimpleQueue()  # None: close
        self._progress_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are still answered."""
        return self._thread.is_alive()

    @property
    def silent_s(self) -> float:
        """Seconds since the last forward pass."""
        return time.monotonic() - self._progress_at

    @property
    def num_open(self) -> int:
        """Requests that are being answered or wait."""
        return len(self._batch) + self._waiting.qsize()

    @property
    def occupancy(self) -> Occupancy:
        """See Engine."""
        reused = self.prefixes.reused_tokens
        return Occupancy(running=len(self._batch), waiting=self._waiting.qsize(), reused_tokens=reused)

    @property
    def prefixes(self) -> Prefixes:
        """What is kept of earlier prompts."""
        return self._batch.prefixes

    def admit(self, num_requests: int) -> None:
        """Raises EngineBusy where this many more may not wait, EngineError after `close`."""
        if not self.alive:
            raise EngineError("the engine is stopped")
        places = self._max_waiting + self._max_batch - self.num_open
        if num_requests > places:
            raise EngineBusy(
                f"{self.num_open} answers are being made or wait, and {num_requests} more would be too many; "
                f"ask again in {_RETRY_AFTER_S} s",
                _RETRY_AFTER_S,
            )

    def submit(self, request: Request) -> None:
        """Queue a request that `admit` let in. Raises EngineError after `close`."""
        if not self.alive:
            raise EngineError("the engine is stopped")
        self._waiting.put(request)

    def close(self) -> None:
        """End the thread; open requests get an EngineError."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while self._admit():
            self._batch.step()
        stopped = EngineError("the engine was stopped")
        self._batch.fail(stopped)
        while not self._waiting.empty():
            request = self._waiting.get()
            if request is not None:
                Row(request).give(stopped)

    def _admit(self) -> bool:
        """Take waiting requests while there is room; with nothing to decode, wait for one. False: close."""
        budget = _PREFILL_BUDGET
        while (room := self._max_batch - len(self._batch)) > 0 and (budget > 0 or len(self._batch) == 0):
            come = self._come(min(room, _TOGETHER))
            if not come:
                return True
            self._note_progress()
            budget -= self._batch.join([request for request in come if request is not None])
            if None in come:
                return False
        return True

    def _come(self, most: int) -> list[Request | None]:
        """Requests that wait, no more than one forward pass may read; with nothing to decode, at least one."""
        come: list[Request | None] = []
        tokens = 0
        while len(come) < most and tokens < PREFILL_TOKENS:
            try:
                request = self._waiting.get(block=len(self._batch) == 0 and not come)
            except queue.Empty:
                break
            come.append(request)
            if request is None:
                break
            tokens += len(request.prompt_ids)
        return come

    def _note_progress(self) -> None:
        self._progress_at = time.monotonic()


class Batch:
    """The running batch: rows, their common cache, and one step that gives every row its next token."""

    def __init__(self, model: Any, route: Route, note_progress: Callable[[], None]) -> None:
        self._model = model
        self._route = route
        self._note_progress = note_progress
        self._rows: list[Row] = []
        self._cache = new_cache()
        self.prefixes = Prefixes()

    def __len__(self) -> int:
        return len(self._rows)

    def join(self, requests: Sequence[Request]) -> int:
        """Prefill requests, emit their first tokens' texts, and let them take part from the next step on.

        Returns how many tokens were read for them.
        """
        before = self.prefixes.reused_tokens
        groups, alone = self._parted([Row(request) for request in requests])
        come: list[tuple[list[Row], DynamicCache]] = []
        for group in groups:
            cache = self._prefill_all(group)
            if cache is None:
                alone = [*group, *alone]
            else:
                come.append((group, cache))
        for row in alone:
            try:
                cache = self._prefill(row)
                if cache is not None:
                    come.append(([row], cache))
            except Exception as error:
                _log.exception("prefill of %d tokens failed", row.length)
                row.give(_as_engine_error(error))
        if come:
            self._take_in(come)
        return sum(len(request.prompt_ids) for request in requests) - (self.prefixes.reused_tokens - before)

    def _take_in(self, come: Sequence[tuple[list[Row], DynamicCache]]) -> None:
        before = [self._cache] if self._rows else []
        self._rows += [row for rows, _ in come for row in rows]
        try:
            self._cache = joined([*before, *(cache for _, cache in come)])
            self._keep([i for i, row in enumerate(self._rows) if not row.done])
        except Exception as error:
            _log.exception("no room for %d rows", len(self._rows))
            self.fail(_as_engine_error(error))

    def step(self) -> None:
        """One token for every row; rows that end, or whose client went away, leave."""
        self._keep([i for i, row in enumerate(self._rows) if not row.request.abandoned])
        if not self._rows:
            return
        try:
            self._decode_one()
        except Exception as error:
            _log.exception("a step of %d rows failed", len(self._rows))
            self.fail(_as_engine_error(error))
            return
        self._keep([i for i, row in enumerate(self._rows) if not row.done])

    def fail(self, error: EngineError) -> None:
        """End every row with this error."""
        for row in self._rows:
            row.give(error)
        self._rows, self._cache = [], new_cache()

    def _parted(self, rows: Sequence[Row]) -> tuple[list[list[Row]], list[Row]]:
        """Groups of which each is read in one forward pass, and those to be read alone after them."""
        groups, alone, seen = list[list[Row]](), list[Row](), set[Any]()
        for row in sorted(rows, key=lambda row: row.length):
            ids, owner = row.request.prompt_ids, _owner(row)
            beginning = begins(ids, owner)
            begun = beginning is not None and (beginning in seen or self.prefixes.helps(ids, owner))
            seen.add(beginning)
            if begun or _is_scored(row) or row.length > PREFILL_TOKENS:
                alone.append(row)
            elif groups and _fits(row, groups[-1]):
                groups[-1].append(row)
            else:
                groups.append([row])
        singles = [row for group in groups if len(group) == 1 for row in group]
        return [group for group in groups if len(group) > 1], [*singles, *alone]

    def _prefill_all(self, rows: list[Row]) -> DynamicCache | None:
        """The cache of them all; None, and nothing has happened: one of them failed, and it is to fail alone."""
        device, width = self._model.device, max(row.length for row in rows)
        first_B1 = torch.tensor([[width - row.length] for row in rows], device=device)
        columns_T = torch.arange(width, device=device)
        padded = [[0] * (width - row.length) + row.request.prompt_ids for row in rows]
        cache = new_cache()
        self._route([row.request.voice.adapter for row in rows])
        try:
            logits_B1V = self._forward(
                cache,
                keep=1,
                input_ids=torch.tensor(padded, device=device),
                attention_mask=(columns_T >= first_B1).long(),
                position_ids=(columns_T - first_B1).clamp(min=0),
            )
            for number, row in enumerate(rows):
                self.prefixes.keep(row.request.prompt_ids, _owner(row), cache, number)
        except Exception as error:
            _log.warning("prefill of %d prompts together failed: %s", len(rows), type(error).__name__)
            return None
        for row, logits_V in zip(rows, logits_B1V[:, 0], strict=True):
            _taken(row, logits_V, opening=True)
        return cache

    def _prefill(self, row: Row) -> DynamicCache | None:
        """Its cache; None: there is nothing to decode."""
        request = row.request
        sampling, adapter = request.sampling, request.voice.adapter
        owner, scoring = _owner(row), _is_scored(row)
        cache, first = (new_cache(), 0) if scoring else self.prefixes.begin(request.prompt_ids, owner)
        scores: list[TokenScore] = [request.voice.vocabulary.score(request.prompt_ids[0], None)] if scoring else []
        self._route([adapter])
        for start in range(first, len(request.prompt_ids), PREFILL_TOKENS):
            if request.abandoned:
                return None
            ids = torch.tensor([request.prompt_ids[start : start + PREFILL_TOKENS]], device=self._model.device)
            logits_TV = self._forward(cache, keep=0 if scoring else 1, input_ids=ids)[0]
            if scoring:
                nexts = request.prompt_ids[start + 1 : start + 1 + PREFILL_TOKENS]
                scores += [
                    scored(logits_V, token, sampling.top_logprobs or 0, request.voice.vocabulary)
                    for logits_V, token in zip(logits_TV, nexts, strict=False)
                ]
        self.prefixes.keep(request.prompt_ids, owner, cache)
        row.open(scores)
        if not row.done:
            row.take(logits_TV[-1])
        return None if row.done else cache

    def _decode_one(self) -> None:
        device = self._model.device
        width = self._cache.get_seq_length()
        lengths_B1 = torch.tensor([[row.length] for row in self._rows], device=device)
        columns_T = torch.arange(width + 1, device=device)
        self._route([row.request.voice.adapter for row in self._rows])
        logits_B1V = self._forward(
            self._cache,
            keep=1,
            input_ids=torch.tensor([[row.last_id] for row in self._rows], device=device),
            attention_mask=(columns_T >= width - lengths_B1).long(),
            position_ids=lengths_B1,
        )
        for row, logits_V in zip(self._rows, logits_B1V[:, 0], strict=True):
            row.length += 1
            _taken(row, logits_V)

    @torch.inference_mode()
    def _forward(self, cache: DynamicCache, *, keep: int, **inputs: Tensor) -> Tensor:
        """Float32 logits (B, T, V) of the last `keep` positions; 0: of all."""
        logits_BTV: Tensor = self._model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits
        self._note_progress()
        return logits_BTV.float()

    def _keep(self, rows: list[int]) -> None:
        if len(rows) == len(self._rows):
            return
        self._rows = [self._rows[i] for i in rows]
        if not rows:
            self._cache = new_cache()
            return
        first = self._cache.get_seq_length() - max(row.length for row in self._rows)
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[rows, :, first:], layer.values[rows, :, first:]


def _fits(row: Row, group: Sequence[Row]) -> bool:
    """Whether a longer row may join: padding is computed too, and is worth a pass's fixed cost and no more."""
    computed = row.length * (len(group) + 1)
    asked = row.length + sum(one.length for one in group)
    return computed <= 2 * PREFILL_TOKENS and computed - asked <= _PADDING


def _taken(row: Row, logits_V: Tensor, *, opening: bool = False) -> None:
    """Whatever goes wrong with one row's token is that row's end alone."""
    try:
        if opening:
            row.open([])
        if not row.done:
            row.take(logits_V)
    except Exception as error:
        if not isinstance(error, EngineError):
            _log.exception("a token could not be taken")
        row.give(_as_engine_error(error))


def _owner(row: Row) -> object:
    adapter = row.request.voice.adapter
    return None if adapter is None else adapter.owner


def _is_scored(row: Row) -> bool:
    sampling = row.request.sampling
    return sampling.echo and sampling.top_logprobs is not None


def _as_engine_error(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    return EngineError(f"the engine failed ({type(error).__name__}); the server's log has the cause")
