"""A base and its adapters in one process: loaded when first asked for, the least recently used put away.

Never the wrong model: a name leads to one checkpoint at a time, what was loaded from a checkpoint is found by that
checkpoint alone, and a request keeps what it got hold of.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.serving.catalogue import Served, unknown_model
from service.serving.engines.base import Engine
from service.serving.openai_answers import ModelCard
from service.serving.openai_strict import WireError
from simpo.errors import SimPOError

_log = logging.getLogger(__name__)

_RETRY_S = 30.0  # a checkpoint that could not be loaded is not tried again for each request


_Key = tuple[str, int]  # path and revision: a directory that is written anew under a new revision is another model


class Base(Engine, Protocol):
    """An engine that adapters can be put beside."""

    def adapted(self, directory: str) -> Engine:
        """The same base with the adapter of a checkpoint. Raises SimPOError."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a name leads."""

    path: str | None
    """Checkpoint with the adapter, as this node sees it; None: the base itself."""
    revision: int = 1
    """Raised when the name shall mean something else; part of the fingerprint."""
    created: int = 0
    """Unix time, for /v1/models."""


class Shelf:
    """A catalogue of a base and its adapters. All methods may be called from any thread."""

    def __init__(self, base: Base, *, capacity: int = 8, clock: Callable[[], float] = time.monotonic) -> None:
        """`capacity`: adapters that stay loaded; one that is put away at work goes when its answers are whole."""
        self._base = base
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()  # guards the dictionaries, never held while something is loaded
        self._loading = threading.Lock()
        self._wanted: dict[str, Source] = {}
        self._good: dict[str, Source] = {}  # name -> what answered for it last
        self._loaded: OrderedDict[_Key, Engine] = OrderedDict()  # the base with this adapter
        self._failed: dict[_Key, tuple[float, str]] = {}  # when, why

    def declare(self, wanted: Mapping[str, Source]) -> None:
        """Make this the whole set of names. Requests that are being answered are not touched."""
        with self._lock:
            self._wanted = dict(wanted)
            self._good = {name: source for name, source in self._good.items() if name in wanted}
            self._failed.clear()

    def cards(self) -> Sequence[ModelCard]:
        with self._lock:
            wanted = dict(self._wanted)
        base = next((name for name, source in wanted.items() if source.path is None), None)
        return [
            ModelCard(name=name, created=source.created, parent=None if source.path is None else base)
            for name, source in wanted.items()
        ]

    @property
    def loaded(self) -> tuple[str, ...]:
        """Checkpoints of the adapters in memory, the least recently used first."""
        with self._lock:
            return tuple(path for path, _ in self._loaded)

    def open(self, name: str) -> Served:
        """See Catalogue. A checkpoint that cannot be loaded leaves the one before in its place, where there was one."""
        with self._lock:
            source, before = self._wanted.get(name), self._good.get(name)
            names = list(self._wanted)
        if source is None:
            raise unknown_model(name, names)
        try:
            return self._served(name, source)
        except SimPOError as error:
            if before is None or before == source:
                raise WireError(f"model {name!r} cannot be loaded: {error}", None, "model_not_loadable", 503) from error
            _log.error("%s: %d cannot be loaded (%s); %d answers on", name, source.revision, error, before.revision)
        try:
            return self._served(name, before)
        except SimPOError as error:
            raise WireError(f"model {name!r} cannot be loaded: {error}", None, "model_not_loadable", 503) from error

    def _served(self, name: str, source: Source) -> Served:
        engine = self._base if source.path is None else self._engine((source.path, source.revision))
        with self._lock:
            if self._wanted.get(name) == source:
                self._good[name] = source
        return Served(engine=engine, fingerprint=f"rev-{source.revision}")

    def _engine(self, key: _Key) -> Engine:
        if (found := self._found(key)) is not None:
            return found
        with self._loading:
            if (found := self._found(key)) is not None:  # by who loaded it while we waited
                return found
            self._refuse_known_bad(key)
            try:
                engine = self._base.adapted(key[0])
            except SimPOError as error:
                with self._lock:
                    self._failed[key] = (self._clock(), str(error))
                raise
            with self._lock:
                self._loaded[key] = engine
                while len(self._loaded) > self._capacity:
                    self._loaded.popitem(last=False)
            return engine

    def _found(self, key: _Key) -> Engine | None:
        with self._lock:
            engine = self._loaded.get(key)
            if engine is not None:
                self._loaded.move_to_end(key)
            return engine

    def _refuse_known_bad(self, key: _Key) -> None:
        with self._lock:
            at, why = self._failed.get(key, (-_RETRY_S, ""))
        if self._clock() - at < _RETRY_S and why:
            raise SimPOError(why)
