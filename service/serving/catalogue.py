"""Which models one process answers for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.serving.engines.base import Engine
from service.serving.openai_answers import ModelCard
from service.serving.openai_strict import WireError

VERSION = "x-simpo-version"
"""Header of an answer: the fingerprint of what gave it, as in `system_fingerprint`."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model that a request has got hold of: it stays this one until the answer is whole, whatever rolls meanwhile."""

    engine: Engine
    """Answers for it."""
    fingerprint: str
    """`system_fingerprint`: answers to one seed may differ between two of them."""


class Catalogue(Protocol):
    """Models by the names that clients put into `model`."""

    def cards(self) -> Sequence[ModelCard]:
        """What GET /v1/models lists."""

    def open(self, name: str) -> Served:
        """The model of this name, loaded where it was not. Called outside the event loop: it may take a while.

        Raises:
            WireError: there is no such model (404), or its checkpoint cannot be loaded (503).
        """


class OneModel:
    """A catalogue with a single entry."""

    def __init__(self, engine: Engine, *, name: str, revision: int, created: int) -> None:
        """`created`: Unix time; `revision` shows as the fingerprint."""
        self._card = ModelCard(name=name, created=created)
        self._served = Served(engine=engine, fingerprint=f"rev-{revision}")

    def cards(self) -> Sequence[ModelCard]:
        return [self._card]

    def open(self, name: str) -> Served:
        if name != self._card.name:
            raise unknown_model(name, [self._card.name])
        return self._served


def unknown_model(wanted: str, served: Sequence[str]) -> WireError:
    """404 in OpenAI's words."""
    names = ", ".join(map(repr, served))
    return WireError(f"model {wanted[:80]!r} is not served here; use {names}", "model", "model_not_found", 404)
