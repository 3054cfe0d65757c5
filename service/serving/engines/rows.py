"""One answer in the making: the request, and its row in the running batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from service.serving.engines.adapters import LoadedAdapter
from service.serving.engines.base import EngineError, Piece, Sampling, TokenScore
from service.serving.engines.passes import Stretch
from service.serving.engines.sampling import Look, Sampler, scored
from service.serving.engines.slots import Place
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
        self.place: Place | None = None
        self.length = 0  # tokens in the slot
        self.last_id = -1  # sampled, not yet in the slot
        self.done = False
        sampling, voice = request.sampling, request.voice
        self.is_scored = sampling.echo and sampling.top_logprobs is not None
        """Whether its prompt is to be given back with scores."""
        self._scores: list[TokenScore] = []  # of the prompt
        self._sampler = Sampler(sampling, voice.vocabulary, voice.stop_ids)
        self._telling = Telling(sampling, voice.vocabulary, voice.stop_ids)

    @property
    def is_read(self) -> bool:
        """Whether the whole prompt is in the slot."""
        return self.length >= len(self.request.prompt_ids)

    def next(self) -> Stretch:
        """The token that was sampled last."""
        assert self.place is not None, "it has a slot"
        return Stretch(place=self.place, start=self.length, ids=[self.last_id], adapter=self.request.voice.adapter)

    def part(self, most: int) -> Stretch:
        """What is left of the prompt, `most` tokens of it."""
        assert self.place is not None, "it has a slot"
        ids, adapter = self.request.prompt_ids[self.length : self.length + most], self.request.voice.adapter
        return Stretch(place=self.place, start=self.length, ids=ids, adapter=adapter, every=self.is_scored)

    def note_scores(self, stretch: Stretch, logits_LV: Tensor) -> None:
        """Where scores of the prompt are wanted: those of the tokens that follow the ones of this part of it."""
        if not self.is_scored:
            return
        ids, vocabulary = self.request.prompt_ids, self.request.voice.vocabulary
        if stretch.start == 0:
            self._scores.append(vocabulary.score(ids[0], None))
        num_top = self.request.sampling.top_logprobs or 0
        self._scores += [
            scored(logits_V, token, num_top, vocabulary)
            for logits_V, token in zip(logits_LV, ids[stretch.start + 1 : stretch.end + 1], strict=False)
        ]

    def open(self) -> None:
        """Give the prompt back, where it was asked for; that may be all."""
        piece = self._telling.opening(self.request.prompt_ids, self._scores)
        if piece is not None:
            self.give(piece)

    def take(self, logits_V: Tensor, look: Look) -> None:
        """Sample a token and emit the text it makes certain. Raises EngineError: the model has diverged."""
        token_id = self.last_id = self._sampler.choose(logits_V, look)
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
