"""One run of a method on fixed weights and pairs: the numbers that should not change."""

import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from simpo.attention import PAIR, register_pair_attention
from simpo.config import OptimConfig
from simpo.fit import TrainState, fit
from simpo.methods import method_from_dict
from simpo.objectives import objective_of
from simpo.packing import TokenPair, build_plan
from simpo.reference import reference_of

STEPS = 30
VOCABULARY = 61
FIELDS = ("loss", "accuracy", "margin", "chosen_logp", "rejected_logp", "grad_norm")


def trajectory(name: str) -> list[dict[str, float]]:
    """FIELDS of 30 steps of the method's defaults, micro-batches of at most 60 tokens."""
    register_pair_attention()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            intermediate_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            tie_word_embeddings=True,
        )
    )
    model.set_attn_implementation(PAIR)
    rng = random.Random(0)

    def ids(longest: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, longest))]

    pairs = [TokenPair(ids(8), ids(8), ids(12)) for _ in range(24)]
    plan = build_plan(pairs, batch_pairs=8, steps=STEPS, token_budget=60, seed=0)
    method = method_from_dict({"name": name})
    objective = objective_of(method)
    reference = reference_of(model, plan, mismatched=objective.needs_kl_batch) if objective.needs_reference else None
    state = TrainState.fresh(model, OptimConfig(learning_rate=1e-3), STEPS)
    reports = [report.metrics() for report in fit(state, plan, method, reference=reference)]
    return [{field: report[field] for field in FIELDS} for report in reports]
