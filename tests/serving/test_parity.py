"""Served and trained are one model: the server's log-probabilities are those of the trainer's scorer."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from service.serving.engines.base import Sampling, Turn
from service.serving.engines.transformers import TransformersEngine
from simpo.config import TokenPolicy
from simpo.model import load_model
from simpo.packing import PairStore, TokenPair
from simpo.records import Message, Preference
from simpo.scores import score_pairs
from simpo.tokenize import tokenize_preferences
from tests.serving.tiny import tiny_checkpoint, tiny_tokenizer

NUM_PROMPTS = 200
TOLERANCE = 1e-3  # nats in a whole answer, float32


def questions() -> list[str]:
    draw = random.Random(5)
    return ["".join(draw.choices("abcdefgh \u00e4\u20ac?", k=draw.randint(1, 24))) for _ in range(NUM_PROMPTS)]


def trained(directory: Path, pairs: Sequence[TokenPair]) -> torch.Tensor:
    """(N, 2): log-probabilities of both answers, packed as in training."""
    store = PairStore.of(pairs)
    scores = score_pairs(load_model(directory), store.evaluation_batches(512))
    return torch.stack([scores.chosen_sum_B, scores.rejected_sum_B], dim=1)


async def sampled(engine: TransformersEngine, prompt: Sequence[int], seed: int) -> tuple[list[int], float]:
    """Ids of an answer, its end token left out, and their log-probability as served."""
    sampling = Sampling(max_new_tokens=12, seed=seed, temperature=1.3, top_p=0.9, presence_penalty=0.5, top_logprobs=0)
    scores = [score async for piece in engine.stream(prompt, sampling) for score in piece.scores]
    return [score.token_id for score in scores], sum(score.logprob or 0.0 for score in scores)


async def echoed(engine: TransformersEngine, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Log-probability of an answer that somebody else gave."""
    sampling = Sampling(max_new_tokens=0, echo=True, top_logprobs=0)
    (piece,) = [piece async for piece in engine.stream([*prompt, *answer], sampling)]
    return sum(score.logprob or 0.0 for score in piece.scores[len(prompt) :])


@pytest.mark.parametrize("policy", [TokenPolicy(), TokenPolicy(count_assistant_header=True)], ids=["plain", "header"])
def test_the_servers_log_probabilities_are_the_trainers(tmp_path: Path, policy: TokenPolicy) -> None:
    directory = tiny_checkpoint(tmp_path / "trained", policy=policy)
    engine = TransformersEngine.load(directory)
    prompts = [engine.encode_chat([Turn(role="user", content=text)]) for text in questions()]

    async def crowd() -> list[tuple[list[int], float]]:
        return await asyncio.gather(*(sampled(engine, p, seed) for seed in (1, 2) for p in prompts))

    rows = [
        Preference(prompt=(Message(role="user", content=text),), chosen=" it is a fox", rejected=" red cat", id=str(i))
        for i, text in enumerate(questions())
    ]
    preferences = tokenize_preferences(rows, tiny_tokenizer(), policy).pairs

    async def told() -> list[float]:
        sides = [(pair.prompt, side) for pair in preferences for side in (pair.chosen, pair.rejected)]
        return await asyncio.gather(*(echoed(engine, *side) for side in sides))

    try:
        answers = asyncio.run(crowd())
        served = torch.tensor(asyncio.run(told())).view(-1, 2)
    finally:
        engine.close()
    first, second = answers[:NUM_PROMPTS], answers[NUM_PROMPTS:]
    kept = [i for i in range(NUM_PROMPTS) if first[i][0] and second[i][0]]
    assert len(kept) > NUM_PROMPTS // 2, "an answer may be the end token alone"
    pairs = [TokenPair(prompts[i], first[i][0], second[i][0]) for i in kept]
    said = torch.tensor([[first[i][1], second[i][1]] for i in kept])
    assert (trained(directory, pairs) - said).abs().max() < TOLERANCE
    assert len(preferences) == NUM_PROMPTS
    assert (trained(directory, preferences) - served).abs().max() < TOLERANCE
