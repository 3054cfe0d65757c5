"""What an engine is: a loaded model that turns token ids into text, for many requests at a time.

Light: the HTTP side (`openai.py`, `data_plane.py`) knows engines by this file alone.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """What they say."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one request wants its tokens chosen."""

    max_new_tokens: int
    """Most tokens to generate, the end token included."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probability reaches this."""
    seed: int | None = None
    """Same seed, same request: same tokens. None: fresh randomness."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of an answer, in order. The last one carries `finish_reason`."""

    text: str
    """New text; whole characters only, may be empty."""
    num_tokens: int
    """Tokens sampled for this piece, the end token included."""
    finish_reason: FinishReason | None = None
    """stop: end token or stop text; length: max_new_tokens reached. None: more to come."""


class EngineError(RuntimeError):
    """The engine failed at a request that was in order; the cause is in the server's log."""


class Engine(Protocol):
    """A loaded model. `encode_*` may be called from any thread, `stream` from an event loop."""

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together."""

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 .. vocab_size - 1."""

    def encode_chat(self, turns: Sequence[Turn]) -> list[int]:
        """Prompt ids as in training: chat template, generation prompt, exactly one BOS.

        Raises:
            SimPOError: the template refuses this conversation.
        """

    def encode_text(self, text: str) -> list[int]:
        """Prompt ids of plain text."""

    def stream(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Piece]:
        """The answer, piece by piece. Closing the generator abandons the request: its work stops within one token.

        Raises:
            EngineError: the engine failed.
        """

    def warm_up(self) -> None:
        """Generate one token, and wait for it. Raises EngineError: such a model must not be called ready."""

    def check_health(self) -> None:
        """Raises EngineError when the engine can no longer answer."""

    def close(self) -> None:
        """Stop the engine's threads; open requests end with EngineError."""
