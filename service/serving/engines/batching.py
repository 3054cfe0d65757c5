"""Continuous batching over a transformers model: requests join and leave a running batch between two tokens.

A forward pass has one token of each row that is being answered, and beside them as many tokens of prompts as a pass may
read: whole prompts, and pieces of one that is longer. So who comes does not stop the others, and a pass is never small
while somebody waits.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from service.serving.engines.adapters import Route
from service.serving.engines.base import EngineBusy, EngineError, Occupancy
from service.serving.engines.outbox import Outbox
from service.serving.engines.passes import Pass, Stretch
from service.serving.engines.prefixes import Prefixes, begins
from service.serving.engines.rows import Request, Row
from service.serving.engines.sampling import Look
from service.serving.engines.slots import Slots, States

PREFILL_TOKENS = 512
"""Prompt tokens of one forward pass, for which those who are being answered wait; fewer where that takes too long."""
_LEAST_TOKENS = 32
_PATIENCE_S = 2.0  # of a pass
_RETRY_AFTER_S = 2
_log = logging.getLogger(__name__)

_Part = tuple[Row, Stretch]
"""A row, and what the next pass reads of it."""


class Decoder:
    """A thread that decodes all open requests together."""

    def __init__(self, model: Any, *, max_batch: int, max_waiting: int, route: Route | None = None) -> None:
        """At most `max_batch` requests share the batch, and `max_waiting` more may wait for a place in it."""
        self._batch = Batch(model, route or (lambda adapters, counts: None), self._note_progress)
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: queue.SimpleQueue[Request | None] = queue.SimpleQueue()  # None: close
        self._outbox: Outbox | None = None
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

    def outbox(self) -> Outbox:
        """To the running event loop."""
        loop = asyncio.get_running_loop()
        if self._outbox is None or self._outbox.loop is not loop:
            self._outbox = Outbox(loop)
        return self._outbox

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
        try:
            while self._admit():
                self._batch.step()
        except Exception:  # the health check tells of the thread's end
            _log.exception("the decoder failed")
        stopped = EngineError("the engine was stopped")
        while not self._waiting.empty():
            request = self._waiting.get()
            if request is not None:
                Row(request).give(stopped)
        self._batch.fail(stopped)

    def _admit(self) -> bool:
        """Take waiting requests while there is room; with nothing to do, wait for one. False: close."""
        while len(self._batch) < self._max_batch:
            try:
                request = self._waiting.get(block=len(self._batch) == 0)
            except queue.Empty:
                return True
            if request is None:
                return False
            self._note_progress()
            self._batch.add(request)
        return True

    def _note_progress(self) -> None:
        self._progress_at = time.monotonic()


class Pace:
    """How many prompt tokens a pass may read: a model that is slow here reads them in smaller pieces, so that others
    are answered, and whoever looks whether it lives, between them.
    """

    def __init__(self) -> None:
        self.tokens = PREFILL_TOKENS

    def note(self, seconds: float) -> None:
        """So long a pass took that has read about as many as it might."""
        if seconds > _PATIENCE_S:
            self.tokens = max(self.tokens // 2, _LEAST_TOKENS)
        elif seconds < _PATIENCE_S / 4:
            self.tokens = min(self.tokens * 2, PREFILL_TOKENS)


class Batch:
    """The running batch: rows, what is kept of their tokens, and one step that takes each of them further."""

    def __init__(self, model: Any, route: Route, note_progress: Callable[[], None]) -> None:
        self._model = model
        self._route = route
        self._note_progress = note_progress
        self._rows: list[Row] = []  # in the order in which they came
        self._slots = Slots()
        self.pace = Pace()
        self.prefixes = Prefixes()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, request: Request) -> None:
        """Its prompt is read from the next step on."""
        self._rows.append(Row(request))

    @torch.inference_mode()
    def step(self) -> None:
        """One token for every row whose prompt is read, and part of the other prompts; rows that end, or whose client
        went away, leave.
        """
        self._leave(lambda row: row.request.abandoned)
        if self._rows:
            self._read([*self._nexts(), *self._prompts()])
            self._leave(lambda row: row.done)

    @torch.inference_mode()
    def fail(self, error: EngineError) -> None:
        """End every row with this error."""
        for row in self._rows:
            row.give(error)
        self._leave(lambda row: True)

    def _nexts(self) -> list[_Part]:
        answered = [row for row in self._rows if row.is_read and self._has_room(row, row.length + 1)]
        return [(row, row.next()) for row in answered]  # not before: who moves leaves a slot that another takes

    def _prompts(self) -> list[_Part]:
        """What the next pass reads of prompts. One that begins like an earlier one waits until that one is read."""
        parts, room, seen = list[_Part](), self.pace.tokens, set[Any]()
        for row in self._rows:
            if row.is_read or room == 0:
                continue
            ids, owner = row.request.prompt_ids, _owner(row)
            beginning = begins(ids, owner)
            waits = beginning is not None and beginning in seen and not row.is_scored
            seen.add(beginning)
            if waits:
                continue
            is_new = row.length == 0 and not row.is_scored
            states, length = self.prefixes.longest(ids, owner) if is_new else (None, row.length)
            if room < len(ids) - length <= self.pace.tokens:
                continue  # the next pass reads all of it
            if self._has_room(row, len(ids), states, length):
                parts.append((row, row.part(room)))
                room -= len(parts[-1][1].ids)
        return parts

    def _has_room(self, row: Row, length: int, states: States | None = None, num_known: int = 0) -> bool:
        """Give it a slot for so many tokens, with those that are known; False: there is no memory, it has failed."""
        try:
            self._slots.take(row, length)
            if states:
                self._slots.begin(row, states, num_known)
                self.prefixes.reused_tokens += num_known
        except Exception as error:
            _log.exception("no room for %d tokens", length)
            row.give(_as_engine_error(error))
        return not row.done

    def _read(self, parts: Sequence[_Part]) -> None:
        if not parts:
            return
        rows_pass = Pass([stretch for _, stretch in parts], self._slots, self._route, self._model.device)
        began = time.monotonic()
        try:
            read = rows_pass.forward(self._model)
        except Exception as error:
            self._read_apart(parts, error)
            return
        self._note_progress()
        if sum(len(stretch.ids) for row, stretch in parts if not row.is_read) * 2 > self.pace.tokens:
            self.pace.note(time.monotonic() - began)
        for row, stretch in parts:
            try:
                self._taken(row, stretch, *read[stretch.place])
            except Exception as error:  # whatever goes wrong with one row's token is that row's end alone
                if not isinstance(error, EngineError):
                    _log.exception("a token could not be taken")
                row.give(_as_engine_error(error))

    def _read_apart(self, parts: Sequence[_Part], error: Exception) -> None:
        """After a failure: those who are being answered, and each prompt, so that only what cannot be read fails."""
        nexts = [part for part in parts if part[0].is_read]
        apart = [nexts] * bool(nexts) + [[part] for part in parts if not part[0].is_read]
        if len(apart) > 1:
            _log.warning("a pass over %d rows failed (%s): it is made in parts", len(parts), type(error).__name__)
            for some in apart:
                self._read(some)
            return
        _log.error("a pass over %d rows failed", len(parts), exc_info=error)
        for row, _ in parts:
            row.give(_as_engine_error(error))

    def _taken(self, row: Row, stretch: Stretch, logits_LV: Tensor, look: Look) -> None:
        was_read, row.length = row.is_read, stretch.end
        if not was_read:
            row.note_scores(stretch, logits_LV)
            if not row.is_read:
                return
            if self.prefixes.wants(row.request.prompt_ids, _owner(row)):
                self.prefixes.keep(row.request.prompt_ids, _owner(row), self._slots.states(row))
            row.open()
        if not row.done:
            row.take(logits_LV[-1], look)

    def _leave(self, goes: Callable[[Row], bool]) -> None:
        for row in [row for row in self._rows if goes(row)]:
            self._rows.remove(row)
            self._slots.leave(row)


def _owner(row: Row) -> object:
    adapter = row.request.voice.adapter
    return None if adapter is None else adapter.owner


def _as_engine_error(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    return EngineError(f"the engine failed ({type(error).__name__}); the server's log has the cause")
