"""The choice of one answer's tokens: penalties, bias, temperature, nucleus, seed; and their log-probabilities."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from service.serving.engines.base import EngineError, Sampling, TokenScore
from service.serving.engines.json_text import JsonObject
from service.serving.engines.vocabulary import Vocabulary

_GREEDY_BELOW = 1e-5  # a temperature under this would overflow the division, and means the same as 0

_NUCLEUS = 1024  # tokens that are looked at first for a nucleus: sorting 32,000 takes ten times as long


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is asked of every row's logits, asked of all rows at once."""

    is_finite: bool
    best: int
    """The likeliest token."""


def looks_at(logits_KV: Tensor) -> list[Look]:
    """One for each row."""
    # One pass; a NaN or an infinity among them makes the sum one.
    finite = torch.isfinite(logits_KV.sum(dim=-1)).tolist()
    return [Look(is_finite=f, best=b) for f, b in zip(finite, logits_KV.argmax(dim=-1).tolist(), strict=True)]


class Sampler:
    """Chooses the tokens of one answer, in order."""

    def __init__(self, sampling: Sampling, vocabulary: Vocabulary, stop_ids: frozenset[int]) -> None:
        self._sampling = sampling
        self._constraint = JsonObject(vocabulary, stop_ids) if sampling.json_object else None
        self._generator = _generator(sampling.seed)
        self._counts: Counter[int] = Counter()

    def choose(self, logits_V: Tensor, look: Look) -> int:
        """The next token. Raises EngineError: the model has diverged.

        Nucleus sampling: Holtzman et al. 2020, arXiv:1904.09751. Penalties as OpenAI states them, over the tokens of
        the answer: logit_j - count_j * frequency_penalty - [count_j > 0] * presence_penalty.
        """
        if not look.is_finite:
            raise EngineError("the model's output is not finite: this checkpoint has diverged; deploy another one")
        adjusted_V = self._adjusted(logits_V)
        if self._constraint is not None:
            token_id = self._constraint.choose(adjusted_V, self._chosen)
        elif adjusted_V is logits_V and self._sampling.temperature < _GREEDY_BELOW:
            token_id = look.best
        else:
            token_id = self._chosen(adjusted_V)
        self._counts[token_id] += 1
        return token_id

    def _adjusted(self, logits_V: Tensor) -> Tensor:
        sampling = self._sampling
        added = dict(sampling.logit_bias)
        if sampling.presence_penalty or sampling.frequency_penalty:
            for token, count in self._counts.items():
                penalty = count * sampling.frequency_penalty + sampling.presence_penalty
                added[token] = added.get(token, 0.0) - penalty
        if not added:
            return logits_V
        ids = torch.tensor(list(added), device=logits_V.device)
        return logits_V.index_add(0, ids, torch.tensor(list(added.values()), device=logits_V.device))

    def _chosen(self, logits_V: Tensor) -> int:
        sampling = self._sampling
        if sampling.temperature < _GREEDY_BELOW:
            return int(logits_V.argmax())
        probs_V = torch.softmax(logits_V.cpu() / sampling.temperature, dim=-1)
        if sampling.top_p == 1:
            return _drawn(probs_V, self._generator)
        probs_K, order_K = _likeliest(probs_V, sampling.top_p)
        before_K = probs_K.cumsum(-1, dtype=torch.float64) - probs_K
        nucleus_K = probs_K.masked_fill(before_K >= sampling.top_p, 0.0)  # what comes *before* a token already suffices
        return int(order_K[_drawn(nucleus_K, self._generator)])


def scored(logits_V: Tensor, token_id: int, num_top: int, vocabulary: Vocabulary) -> TokenScore:
    """A token's log-probability under float32 logits, with the likeliest in its place."""
    logp_V = torch.log_softmax(logits_V, dim=-1)
    best = torch.topk(logp_V, min(num_top, len(logp_V))) if num_top else None
    top = () if best is None else zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return vocabulary.score(
        token_id, float(logp_V[token_id]), tuple(vocabulary.score(token, logp) for token, logp in top)
    )


def _likeliest(probs_V: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """(probabilities, tokens), best first, of at least this mass; all are sorted only where they must be."""
    probs_K, order_K = probs_V.topk(min(_NUCLEUS, len(probs_V)))
    if float(probs_K.sum()) < mass and len(probs_V) > _NUCLEUS:
        probs_K, order_K = probs_V.sort(descending=True)
    return probs_K, order_K


def _drawn(weights_K: Tensor, generator: torch.Generator) -> int:
    """An index, by its weight: one uniform number through the inverse of the cumulative distribution."""
    until_K = weights_K.cumsum(-1, dtype=torch.float64)
    place = torch.rand((), dtype=torch.float64, generator=generator) * until_K[-1]
    index = int(torch.searchsorted(until_K, place, right=True))
    return index if index < len(until_K) else int(weights_K.argmax())


def _generator(seed: int | None) -> torch.Generator:
    # On the CPU whatever the model's device: a seed then means the same tokens everywhere.
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
