"""Continuous batching over a transformers model: requests join and leave a running batch between two tokens.

One key-value cache holds all rows, aligned at the right: a row that is shorter than the widest has padding on its left,
which the attention mask hides, and position ids count from each row's own first token. A request is prefilled alone and
its cache is joined on; a finished row's cache is cut out, and padding that all rows share is cut off.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from service.serving.engines.base import EngineError, FinishReason, Piece, Sampling
from service.serving.engines.text import TextStream

_GREEDY_BELOW = 1e-5  # a temperature under this would overflow the division, and means the same as 0
_log = logging.getLogger(__name__)


class Request:
    """One answer in the making. `emit` gets its pieces, or the EngineError that ended it, from the decoder's thread."""

    def __init__(
        self, prompt_ids: Sequence[int], sampling: Sampling, emit: Callable[[Piece | EngineError], object]
    ) -> None:
        self.prompt_ids = list(prompt_ids)
        self.sampling = sampling
        self.emit = emit
        self.abandoned = False


class Decoder:
    """A thread that decodes all open requests together."""

    def __init__(
        self, model: Any, decode: Callable[[Sequence[int]], str], stop_ids: Sequence[int], *, max_batch: int
    ) -> None:
        """`decode` turns ids into text; `stop_ids` end an answer; at most `max_batch` requests share the batch."""
        self._batch = Batch(model, decode, stop_ids)
        self._max_batch = max_batch
        self._waiting: queue.SimpleQueue[Request | None] = queue.SimpleQueue()  # None: close
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are still answered."""
        return self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Queue a request. Raises EngineError after `close`."""
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
        self._batch.fail(EngineError("the engine was stopped"))

    def _admit(self) -> bool:
        """Take waiting requests while there is room; with nothing to decode, wait for one. False: close."""
        while len(self._batch) < self._max_batch:
            try:
                request = self._waiting.get(block=len(self._batch) == 0)
            except queue.Empty:
                return True
            if request is None:
                return False
            if not request.abandoned:
                self._batch.join(request)
        return True


class Batch:
    """The running batch: rows, their common cache, and one step that gives every row its next token."""

    def __init__(self, model: Any, decode: Callable[[Sequence[int]], str], stop_ids: Sequence[int]) -> None:
        self._model = model
        self._decode = decode
        self._stop_ids = frozenset(stop_ids)
        self._rows: list[_Row] = []
        self._cache = DynamicCache()

    def __len__(self) -> int:
        return len(self._rows)

    def join(self, request: Request) -> None:
        """Prefill a request, emit its first token's text, and let it take part from the next step on."""
        row = _Row(request, TextStream(self._decode, request.sampling.stop))
        try:
            cache = DynamicCache()
            ids = torch.tensor([request.prompt_ids], device=self._model.device)
            logits_V = self._forward(cache, input_ids=ids, logits_to_keep=1)[0]
            row.take(_choose(logits_V, row), self._stop_ids)
            if not row.done:
                self._cache = cache if not self._rows else _joined(self._cache, cache)
                self._rows.append(row)
        except Exception as error:
            _log.exception("prefill of %d tokens failed", len(request.prompt_ids))
            row.give(_as_engine_error(error))

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
        self._rows, self._cache = [], DynamicCache()

    def _decode_one(self) -> None:
        device = self._model.device
        width = self._cache.get_seq_length()
        lengths_B1 = torch.tensor([[row.length] for row in self._rows], device=device)
        columns_T = torch.arange(width + 1, device=device)
        logits_BV = self._forward(
            self._cache,
            input_ids=torch.tensor([[row.last_id] for row in self._rows], device=device),
            attention_mask=(columns_T >= width - lengths_B1).long(),
            position_ids=lengths_B1,
        )
        for row, logits_V in zip(self._rows, logits_BV, strict=True):
            row.length += 1
            try:
                row.take(_choose(logits_V, row), self._stop_ids)
            except EngineError as error:
                row.give(error)

    @torch.inference_mode()
    def _forward(self, cache: DynamicCache, **inputs: Tensor | int) -> Tensor:
        """Float32 logits (B, V) of the last position."""
        logits_B1V: Tensor = self._model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1:]
        return logits_B1V[:, 0].float()

    def _keep(self, rows: list[int]) -> None:
        if len(rows) == len(self._rows):
            return
        self._rows = [self._rows[i] for i in rows]
        if not rows:
            self._cache = DynamicCache()
            return
        first = self._cache.get_seq_length() - max(row.length for row in self._rows)
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[rows, :, first:], layer.values[rows, :, first:]


class _Row:
    """A request inside the batch."""

    def __init__(self, request: Request, text: TextStream) -> None:
        self.request = request
        self.length = len(request.prompt_ids)  # tokens in the cache
        self.last_id = -1  # sampled, not yet in the cache
        self.done = False
        self.generator = _generator(request.sampling.seed)
        self._text = text
        self._num_tokens = 0
        self._reported = 0

    def take(self, token_id: int, stop_ids: frozenset[int]) -> None:
        """Account for a sampled token and emit the text it makes certain."""
        self.last_id = token_id
        self._num_tokens += 1
        ended = token_id in stop_ids
        text = "" if ended else self._text.push(token_id)
        reason: FinishReason | None = None
        if ended or self._text.stopped:
            reason = "stop"
        elif self._num_tokens >= self.request.sampling.max_new_tokens:
            reason = "length"
        if reason:
            text += self._text.finish()
            reason = "stop" if self._text.stopped else reason
        if text or reason:
            new, self._reported = self._num_tokens - self._reported, self._num_tokens
            self.give(Piece(text=text, num_tokens=new, finish_reason=reason))

    def give(self, item: Piece | EngineError) -> None:
        """Hand something to the client; one that cannot take it any more has gone away."""
        self.done = isinstance(item, EngineError) or item.finish_reason is not None
        try:
            self.request.emit(item)
        except RuntimeError:  # its event loop is closed
            self.done = self.request.abandoned = True


def _generator(seed: int | None) -> torch.Generator:
    # On the CPU whatever the model's device: a seed then means the same tokens everywhere.
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def _choose(logits_V: Tensor, row: _Row) -> int:
    """Sample the next token. Nucleus sampling: Holtzman et al. 2020, arXiv:1904.09751."""
    sampling = row.request.sampling
    if not torch.isfinite(logits_V).all():
        raise EngineError("the model's output is not finite: this checkpoint has diverged; deploy another one")
    if sampling.temperature < _GREEDY_BELOW:
        return int(logits_V.argmax())
    probs_V = torch.softmax(logits_V.cpu() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        sorted_V, order_V = probs_V.sort(descending=True)
        beyond_V = sorted_V.cumsum(-1) - sorted_V >= sampling.top_p  # probability *before* a token already suffices
        probs_V = probs_V.index_fill(0, order_V[beyond_V], 0.0)
    return int(torch.multinomial(probs_V, 1, generator=row.generator))


def _joined(batch: DynamicCache, one: DynamicCache) -> DynamicCache:
    """Both caches side by side, the shorter one padded on its left."""
    width = max(batch.get_seq_length(), one.get_seq_length())
    for mine, other in zip(batch.layers, one.layers, strict=True):
        mine.keys = torch.cat((_padded(mine.keys, width), _padded(other.keys, width)))
        mine.values = torch.cat((_padded(mine.values, width), _padded(other.values, width)))
    return batch


def _padded(states_BHTD: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(states_BHTD, (0, 0, width - states_BHTD.shape[-2], 0))


def _as_engine_error(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    return EngineError(f"the engine failed ({type(error).__name__}); the server's log has the cause")
