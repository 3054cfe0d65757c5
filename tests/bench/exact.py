"""The packed step against the plain one: same weights, each response alone with its own prompt, nothing padded.

Prints one JSON object: the largest difference of a float32 loss, the largest relative difference of a gradient, and
how far the bfloat16 loss of a micro-batch is from the float32 one.
"""

import json
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from simpo.attention import PAIR, register_pair_attention
from simpo.config import OptimConfig
from simpo.fit import StepContext, TrainState, accumulate
from simpo.methods import SimPO
from simpo.model import without_dropout
from simpo.packing import PairStore, TokenPair
from tests.bench.lengths import LONG, PAIRS_PER_STEP, SHAPES, SHORT, random_pairs
from tests.bench.step import BETA, GAMMA, llama

PAIRS = [*SHORT[:PAIRS_PER_STEP], *LONG[1:3]]
"""A short micro-batch and two long pairs: tiles of every kind."""


def main() -> None:
    """Compare and print."""
    torch.set_num_threads(1)
    register_pair_attention()
    method, shape = SimPO(beta=BETA, gamma=GAMMA), SHAPES["30M"]
    pairs = random_pairs(PAIRS, shape.vocabulary)
    losses, gradients = _plain(llama(shape), pairs, method)
    ours, our_gradients = _packed(llama(shape), pairs, method)
    low, _ = _packed(llama(shape).to(torch.bfloat16), pairs, method)
    figures = {
        "loss_error": float((ours - losses).abs().max()),
        "gradient_error": max(
            float((our_gradients[name] - grad).norm() / grad.norm()) for name, grad in gradients.items()
        ),
        "bfloat16_loss_error": float((low - ours)[:PAIRS_PER_STEP].mean().abs()),
    }
    print(json.dumps(figures))


def _plain(model: Any, pairs: list[TokenPair], method: SimPO) -> tuple[Tensor, dict[str, Tensor]]:
    model.set_attn_implementation("eager")
    losses = []
    for pair in pairs:
        chosen, rejected = (_mean_logp(model, pair.prompt, side) for side in (pair.chosen, pair.rejected))
        loss = -logsigmoid(method.beta * (chosen - rejected) - method.margin)
        (loss / len(pairs)).backward()
        losses.append(loss.detach())
    return torch.stack(losses), {name: weight.grad for name, weight in model.named_parameters()}


def _mean_logp(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).double().mean()


def _packed(model: Any, pairs: list[TokenPair], method: SimPO) -> tuple[Tensor, dict[str, Tensor]]:
    without_dropout(model).set_attn_implementation(PAIR)
    state = TrainState.fresh(model, OptimConfig(learning_rate=1e-6), 1)
    context = StepContext(method=method, global_pairs=len(pairs), mean_chosen_len=1.0)
    store = PairStore.of(pairs)
    ids = range(len(pairs))
    parts = [ids[:PAIRS_PER_STEP], ids[PAIRS_PER_STEP:]]
    losses = [accumulate(state, store.micro_batch(part), context)[0].per_pair_B for part in parts]
    return torch.cat(losses), {name: weight.grad for name, weight in state.named_weights().items()}


if __name__ == "__main__":
    main()
