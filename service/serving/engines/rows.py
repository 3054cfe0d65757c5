"""One answer in the making: the request, and its row in the running batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from service.serving.engines.adapters import LoadedAdapter
from service.serving.engines.base import EngineError, Piece, Sampling, TokenScore
from service.serving.engines.sampling import Sampler, scored
from service.serving.engines.telling import Telling
from service.serving.engines.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Voice:
    """How a checkpoint's tokens become text, and which of them end an answer."""

    vocabulary: Vocabulary
    """Of its tokenizer."""
    stop_ids: frozenset[int]
    """Of its token policy."""
    adapter: LoadedAdapter | None = None
    """What is added to the base's weights; None: the base itself."""


class Request:
    """What somebody wants. `emit` gets the pieces, or the EngineError that ended it, from the decoder's thread."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        voice: Voice,
        emit: Callable[[Piece | EngineError], object],
    ) -> None:
        self.prompt_ids = list(prompt_ids)
        self.sampling = sampling
        self.voice = voice
        self.emit = emit
        self.abandoned = False


class Row:
    """A request inside the batch."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.length = len(request.prompt_ids)  # tokens in the cache
        self.last_id = -1  # sampled, not yet in the cache
        self.done = False
        voice = request.voice
        self._sampler = Sampler(request.sampling, voice.vocabulary, voice.stop_ids)
        self._telling = Telling(request.sampling, voice.vocabulary, voice.stop_ids)

    def open(self, prompt_scores: Sequence[TokenScore]) -> None:
        """Give the prompt back, where it was asked for; that may be all."""
        piece = self._telling.opening(self.request.prompt_ids, prompt_scores)
        if piece is not None:
            self.give(piece)

    def take(self, logits_V: Tensor) -> None:
        """Sample a token and emit the text it makes certain. Raises EngineError: the model has diverged."""
        token_id = self.last_id = self._sampler.choose(logits_V)
        num_top, score = self.request.sampling.top_logprobs, None
        if num_top is not None:
            score = scored(logits_V, token_id, num_top, self.request.voice.vocabulary)
        piece = self._telling.take(token_id, score)
        if piece is not None:
            self.give(piece)

    def give(self, item: Piece | EngineError) -> None:
        """Hand something to the client; one that cannot take it any more has gone away."""
        self.done = isinstance(item, EngineError) or item.finish_reason is not None
        try:
            self.request.emit(item)
        except RuntimeError:  # its event loop is closed
            self.done = self.request.abandoned = True
