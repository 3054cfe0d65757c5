"""One face for all engines that the serving benches ask. It imports no torch: an engine may live in another process."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from service.serving.engines.base import Engine, Sampling

Part = tuple[int, str]
"""New tokens, and their text: as it comes, or all of it at the end."""


class Arm(Protocol):
    """An engine under one face."""

    def answer(self, prompt_ids: Sequence[int], num_tokens: int) -> AsyncIterator[Part]:
        """The greedy answer, in parts."""

    def close(self) -> None:
        """Stop it."""


class Ours:
    """An engine of the service, as the data plane asks it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def answer(self, prompt_ids: Sequence[int], num_tokens: int) -> AsyncIterator[Part]:
        async for piece in self._engine.stream(prompt_ids, Sampling(max_new_tokens=num_tokens, temperature=0)):
            yield piece.num_tokens, piece.text

    def close(self) -> None:
        self._engine.close()
