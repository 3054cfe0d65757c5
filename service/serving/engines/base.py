"""What an engine is: a loaded model that turns token ids into text, for many requests at a time.

Light: the HTTP side (`openai.py`, `data_plane.py`) knows engines by this file alone.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
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
    """Most tokens to generate, the end token included. 0, with `echo`: score the prompt and generate nothing."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probability reaches this."""
    seed: int | None = None
    """Same seed, same request: same tokens. None: fresh randomness."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token that the answer holds already."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit once for each time that the answer holds it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> what is added to its logit."""
    top_logprobs: int | None = None
    """None: no log-probabilities. Else those of the tokens taken, and of this many of the likeliest in each place."""
    json_object: bool = False
    """The answer is one JSON object."""
    json_schema: str | None = None
    """The answer is JSON that this schema allows, where the engine took it (`check_schema`)."""
    echo: bool = False
    """The prompt's own text comes first, with its log-probabilities where `top_logprobs` asks for them."""


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """One token and its log-probability: nats, under the softmax before temperature, bias and penalties."""

    token_id: int
    """Its id."""
    text: str
    """Its text alone; a token that is no whole character shows U+FFFD."""
    bytes: bytes | None
    """Its bytes; None for a mark that stands for no text."""
    logprob: float | None
    """None for the first token of a prompt, which nothing precedes."""
    top: tuple["TokenScore", ...] = ()
    """The likeliest tokens in its place, best first."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of an answer, in order. The last one carries `finish_reason`."""

    text: str
    """New text; whole characters only, may be empty."""
    num_tokens: int
    """Tokens sampled for this piece, the end token included."""
    finish_reason: FinishReason | None = None
    """stop: end token or stop text; length: max_new_tokens reached. None: more to come."""
    scores: tuple[TokenScore, ...] = ()
    """Of the tokens that begin in the text so far and were not told before, where they were asked for. The end token
    and what a stop text cut off are not among them."""


class EngineError(RuntimeError):
    """The engine failed at a request that was in order; the cause is in the server's log."""


class SchemaRefused(ValueError):
    """An engine cannot hold answers to this JSON schema: the sentence says why, and what to do instead."""


class EngineBusy(EngineError):
    """It cannot be asked now: as many requests wait as may wait. `retry_after_s`: when to ask again."""

    def __init__(self, reason: str, retry_after_s: int) -> None:
        super().__init__(reason, retry_after_s)
        self.reason = reason
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """How full an engine is."""

    running: int
    """Answers that are being written."""
    waiting: int
    """Answers that wait for a place in the batch."""
    reused_tokens: int
    """Prompt tokens since the start that were not read again, because an earlier prompt began so."""


class Pieces(Protocol):
    """The pieces of one answer, in order."""

    def __aiter__(self) -> AsyncIterator[Piece]:
        """Itself."""

    async def __anext__(self) -> Piece:
        """The next piece. Raises EngineError: the engine failed."""

    async def aclose(self) -> None:
        """Abandon the answer, where it goes on: its work stops within one forward pass."""


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

    def check_schema(self, schema: str) -> None:
        """Whether answers can be held to this JSON schema; called outside the event loop.

        Raises:
            SchemaRefused: they cannot.
            EngineError: the engine does not answer.
        """

    def admit(self, num_requests: int) -> None:
        """Whether this many more requests may come now. Raises EngineBusy: too many wait, or it has ended."""

    def stream(self, prompt_ids: Sequence[int], sampling: Sampling) -> Pieces:
        """The answer, on its way from now on; whoever does not want it any more closes it.

        Raises:
            EngineError: the engine is closed.
        """

    def warm_up(self) -> None:
        """Generate one token, and wait for it. Raises EngineError: such a model must not be called ready."""

    def check_health(self) -> None:
        """Raises EngineError when no token comes out any more: neither for those who ask nor for this question."""

    def occupancy(self) -> Occupancy:
        """How full it is now; called outside the event loop. Raises EngineError: it does not say."""

    def close(self) -> None:
        """Stop the engine's threads; open requests end with EngineError."""
