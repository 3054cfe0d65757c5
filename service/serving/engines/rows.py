"""One answer in the making: the request, and its row in the running batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from service.serving.engines.adapters import LoadedAdapter
from service.serving.engines.base import EngineError, FinishReason, Piece, Sampling, TokenScore
from service.serving.engines.sampling import Sampler, scored
from service.serving.engines.text import TextStream
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
        self._text = TextStream(voice.vocabulary.decode, request.sampling.stop)
        self._num_tokens = 0
        self._reported = 0
        self._scores: list[tuple[int, TokenScore]] = []  # not told yet, with the character where each begins

    def open(self, prompt_scores: Sequence[TokenScore]) -> None:
        """Give the prompt back, where it was asked for; that may be all."""
        if not self.request.sampling.echo:
            return
        text = self.request.voice.vocabulary.decode(self.request.prompt_ids)
        reason: FinishReason | None = None if self.request.sampling.max_new_tokens else "length"
        self.give(Piece(text=text, num_tokens=0, finish_reason=reason, scores=tuple(prompt_scores)))

    def take(self, logits_V: Tensor) -> None:
        """Sample a token and emit the text it makes certain. Raises EngineError: the model has diverged."""
        token_id = self.last_id = self._sampler.choose(logits_V)
        self._num_tokens += 1
        ended = token_id in self.request.voice.stop_ids
        if not ended:
            self._note_score(logits_V, token_id)
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
            self.give(Piece(text=text, num_tokens=new, finish_reason=reason, scores=self._told(reason)))

    def give(self, item: Piece | EngineError) -> None:
        """Hand something to the client; one that cannot take it any more has gone away."""
        self.done = isinstance(item, EngineError) or item.finish_reason is not None
        try:
            self.request.emit(item)
        except RuntimeError:  # its event loop is closed
            self.done = self.request.abandoned = True

    def _note_score(self, logits_V: Tensor, token_id: int) -> None:
        num_top = self.request.sampling.top_logprobs
        if num_top is not None:
            score = scored(logits_V, token_id, num_top, self.request.voice.vocabulary)
            self._scores.append((self._text.seen, score))

    def _told(self, reason: FinishReason | None) -> tuple[TokenScore, ...]:
        """Scores of tokens that begin in the text given out; at the end all, but for what a stop text cut off."""
        everything = reason is not None and not self._text.stopped
        told = [score for at, score in self._scores if everything or at < self._text.released]
        self._scores = self._scores[len(told) :]
        return tuple(told)
