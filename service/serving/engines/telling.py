"""What the tokens of one answer let an engine tell, one by one: certain text, scores in their place, the end."""

from collections.abc import Sequence

from service.serving.engines.base import FinishReason, Piece, Sampling, TokenScore
from service.serving.engines.text import TextStream
from service.serving.engines.vocabulary import Vocabulary


class Telling:
    """The pieces of one answer, out of its tokens."""

    def __init__(self, sampling: Sampling, vocabulary: Vocabulary, stop_ids: frozenset[int]) -> None:
        """`stop_ids`: tokens that end the answer; they are counted, and not told."""
        self._sampling = sampling
        self._vocabulary = vocabulary
        self._stop_ids = stop_ids
        self._text = TextStream(vocabulary.decode, sampling.stop)
        self._num_tokens = 0
        self._reported = 0
        self._scores: list[tuple[int, TokenScore]] = []  # not told yet, with the character where each begins

    def opening(self, prompt_ids: Sequence[int], prompt_scores: Sequence[TokenScore]) -> Piece | None:
        """The prompt given back, where it was asked for; that may be all."""
        if not self._sampling.echo:
            return None
        text = self._vocabulary.decode(prompt_ids)
        reason: FinishReason | None = None if self._sampling.max_new_tokens else "length"
        return Piece(text=text, num_tokens=0, finish_reason=reason, scores=tuple(prompt_scores))

    def take(self, token_id: int, score: TokenScore | None) -> Piece | None:
        """What this token makes certain, if anything. `score`: its own, where scores were asked for."""
        self._num_tokens += 1
        ended = token_id in self._stop_ids
        if score is not None and not ended:
            self._scores.append((self._text.seen, score))
        text = "" if ended else self._text.push(token_id)
        reason: FinishReason | None = None
        if ended or self._text.stopped:
            reason = "stop"
        elif self._num_tokens >= self._sampling.max_new_tokens:
            reason = "length"
        if reason:
            text += self._text.finish()
            reason = "stop" if self._text.stopped else reason
        if not text and not reason:
            return None
        new, self._reported = self._num_tokens - self._reported, self._num_tokens
        return Piece(text=text, num_tokens=new, finish_reason=reason, scores=self._told(reason))

    def _told(self, reason: FinishReason | None) -> tuple[TokenScore, ...]:
        """Scores of tokens that begin in the text given out; at the end all, but for what a stop text cut off."""
        everything = reason is not None and not self._text.stopped
        told = [score for at, score in self._scores if everything or at < self._text.released]
        self._scores = self._scores[len(told) :]
        return tuple(told)
