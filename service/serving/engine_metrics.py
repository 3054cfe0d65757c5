"""What Prometheus learns of the engine inside a replica: who waits, what is read again, and how fast tokens come.

Counted where the work is done, and exported by Ray with the metrics of its nodes: a Prometheus that asks those finds
them as `ray_simpo_engine_*`, each with Serve's own labels `application`, `deployment` and `replica`. What the gateway
tells (`watched`) has the way to the replica in it; the difference is what is lost there.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

from service.serving.engines.base import EngineError, Occupancy, Piece, Pieces

PREFIX = "simpo_engine_"
"""Ray puts `ray_` before it."""
_TOKEN_S = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]  # as at the gateway
_MODEL_TAGS = ("engine", "model", "version")
_ENGINE_TAGS = ("engine",)
_MAX_MODELS = 100  # names and versions with figures of their own
_SAMPLE_S = 5.0  # Ray tells its nodes every 10 s
_log = logging.getLogger(__name__)

Tags = dict[str, str]


class Counted(Protocol):
    """A number that grows."""

    def inc(self, value: float, tags: Tags) -> None:
        """By more than 0."""


class Shown(Protocol):
    """A number as it is now."""

    def set(self, value: float, tags: Tags) -> None:
        """Until the next time."""


class Observed(Protocol):
    """Numbers by size."""

    def observe(self, value: float, tags: Tags) -> None:
        """One more."""


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What makes instruments; each is called with name, description and label names (a histogram's buckets before)."""

    counter: Callable[[str, str, tuple[str, ...]], Counted]
    """`ray.serve.metrics.Counter`, inside a replica."""
    gauge: Callable[[str, str, tuple[str, ...]], Shown]
    """Its `Gauge`."""
    histogram: Callable[[str, str, list[float], tuple[str, ...]], Observed]
    """Its `Histogram`."""


class EngineMetrics:
    """Everything that one replica tells of its engine."""

    def __init__(self, kit: Kit, *, engine: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`engine`: the label, transformers or vllm. `clock`: seconds."""
        self._engine = engine
        self._clock = clock
        self._models: set[tuple[str, str]] = set()
        self._reused = 0
        self._running = kit.gauge(f"{PREFIX}requests_running", "Answers that are being written.", _ENGINE_TAGS)
        self._waiting = kit.gauge(f"{PREFIX}requests_waiting", "Answers that wait for a place.", _ENGINE_TAGS)
        self._reused_tokens = kit.counter(
            f"{PREFIX}reused_tokens",
            "Prompt tokens that were not read again: an earlier prompt began so.",
            _ENGINE_TAGS,
        )
        self._prompt_tokens = kit.counter(f"{PREFIX}prompt_tokens", "Prompt tokens of answers begun.", _MODEL_TAGS)
        self._generated = kit.counter(f"{PREFIX}generated_tokens", "Tokens written.", _MODEL_TAGS)
        self._answers = kit.counter(
            f"{PREFIX}answers", "Answers that ended: stop, length, failed, abandoned or refused.", (*_MODEL_TAGS, "end")
        )
        self._first = kit.histogram(f"{PREFIX}first_token_seconds", "To the first token.", _TOKEN_S, _MODEL_TAGS)
        self._next = kit.histogram(f"{PREFIX}next_token_seconds", "From token to token.", _TOKEN_S, _MODEL_TAGS)

    def watch(self, pieces: Pieces, model: str, version: str, num_prompt_tokens: int) -> "WatchedPieces":
        """The same pieces, counted as they come. `n` answers to one prompt count it `n` times: all but one reuse it."""
        tags = self._tags(model, version)
        self._prompt_tokens.inc(num_prompt_tokens, tags)
        return WatchedPieces(self, pieces, tags)

    def refused(self, model: str, version: str, num_requests: int) -> None:
        """So many found no place to wait in."""
        self._answers.inc(num_requests, {**self._tags(model, version), "end": "refused"})

    def sample(self, occupancy: Occupancy) -> None:
        """How full the engine is now."""
        tags = {"engine": self._engine}
        self._running.set(occupancy.running, tags)
        self._waiting.set(occupancy.waiting, tags)
        if (more := occupancy.reused_tokens - self._reused) > 0:
            self._reused_tokens.inc(more, tags)
        self._reused = occupancy.reused_tokens

    def sample_for_ever(self, ask: Callable[[], Occupancy]) -> None:
        """Ask again and again, in a thread that ends with the process. One that is silent shows what it last said."""

        def run() -> None:
            while True:
                try:
                    self.sample(ask())
                except EngineError as error:
                    _log.debug("the engine does not say how full it is: %s", error)
                time.sleep(_SAMPLE_S)

        threading.Thread(target=run, name="engine-metrics", daemon=True).start()

    def _tags(self, model: str, version: str) -> Tags:
        """Labels of a model; beyond a hundred of them in one process all are `other`."""
        one = (model, version)
        if one not in self._models:
            if len(self._models) >= _MAX_MODELS:
                one = ("other", "other")
            else:
                self._models.add(one)
        return {"engine": self._engine, "model": one[0], "version": one[1]}


class WatchedPieces:
    """The pieces of one answer, which are counted on their way."""

    def __init__(self, metrics: EngineMetrics, pieces: Pieces, tags: Tags) -> None:
        """From now on the first token is waited for."""
        self._metrics = metrics
        self._pieces = pieces
        self._tags = tags
        self._at = metrics._clock()
        self._speaks = self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        try:
            piece = await anext(self._pieces)
        except EngineError:
            self._end("failed")
            raise
        self._take(piece)
        return piece

    async def aclose(self) -> None:
        """Abandon the answer, where it goes on."""
        self._end("abandoned")
        await self._pieces.aclose()

    def _take(self, piece: Piece) -> None:
        metrics, tokens = self._metrics, piece.num_tokens
        if tokens:
            now = metrics._clock()
            metrics._generated.inc(tokens, self._tags)
            if self._speaks:
                for _ in range(tokens):  # those that came together share the time
                    metrics._next.observe((now - self._at) / tokens, self._tags)
            else:  # a first character may be several tokens, of which only the last one's time is known
                metrics._first.observe(now - self._at, self._tags)
            self._speaks, self._at = True, now
        if piece.finish_reason:
            self._end(piece.finish_reason)

    def _end(self, end: str) -> None:
        if not self._over:
            self._over = True
            self._metrics._answers.inc(1, {**self._tags, "end": end})
