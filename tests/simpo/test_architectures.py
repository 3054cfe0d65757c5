"""Every architecture: the packed step equals transformers' own eager forward on unshared, unpadded sequences."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM

from simpo.attention import PAIR, register_pair_attention
from simpo.config import LoraConfig, OptimConfig
from simpo.errors import ModelError
from simpo.fit import StepContext, TrainState, accumulate
from simpo.generate import generate
from simpo.lora import add_lora
from simpo.methods import SimPO
from simpo.model import SUPPORTED, check_supported
from simpo.packing import PairStore, TokenPair
from simpo.scores import score_pairs

Build = Callable[..., Any]
METHOD = SimPO(beta=2.0, gamma_beta_ratio=0.5)
SHAPE: Mapping[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 7
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
OWN: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW, "head_dim": 12},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": LAYERS},
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": LAYERS, "head_dim": 12},
    "gemma2": {
        "sliding_window": WINDOW,
        "layer_types": LAYERS,
        "head_dim": 12,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 0.8,  # low caps, so that the small numbers of a random model are bent
        "final_logit_softcapping": 1.5,
    },
    "gemma3_text": {
        "sliding_window": WINDOW,
        "layer_types": LAYERS,
        "head_dim": 12,
        "query_pre_attn_scalar": 20,
        "final_logit_softcapping": 1.5,
    },
}


def model_of(name: str, attention: str) -> Any:
    """A tiny random model of this architecture, the same for every attention."""
    register_pair_attention()
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**SHAPE, **OWN[name]})
    config.initializer_range = 0.15
    check_supported(config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.train()


def unshared(model: Any, pair: TokenPair) -> torch.Tensor:
    """The pair's loss, one sequence at a time by transformers' own forward."""
    means = []
    for response in (pair.chosen, pair.rejected):
        logp = model(torch.tensor([pair.prompt + response])).logits[0].float().log_softmax(-1)
        rows = torch.arange(len(pair.prompt) - 1, len(pair.prompt) + len(response) - 1)
        means.append(logp[rows, response].mean())
    return -logsigmoid(METHOD.beta * (means[0] - means[1]) - METHOD.margin)


def packed_loss(model: Any, pairs: list[TokenPair], budget: int) -> float:
    """The same by the packed step, with its gradients."""
    state = TrainState.fresh(model, OptimConfig(learning_rate=1e-3), 1)
    store = PairStore.of(pairs)
    context = StepContext(method=METHOD, global_pairs=len(pairs), mean_chosen_len=1.0)
    bins = store.bins(range(len(pairs)), budget)
    losses = [accumulate(state, store.micro_batch(ids), context)[0].per_pair_B.sum() for ids in bins]
    return sum(map(float, losses)) / len(pairs)


def test_every_supported_architecture_is_tested() -> None:
    assert set(OWN) == set(SUPPORTED)


@pytest.mark.parametrize("longest", [9, 150])
@pytest.mark.parametrize("name", sorted(OWN))
def test_loss_and_every_gradient_equal_transformers_own(random_pairs: Build, name: str, longest: int) -> None:
    pairs = random_pairs(6, seed=3, longest=longest)
    packed, plain = model_of(name, PAIR), model_of(name, "eager")
    losses = [unshared(plain, pair) for pair in pairs]
    expected = torch.stack(losses).mean()
    expected.backward()
    # A sum of 150 float32 log-probabilities is known to 3e-5, its mean times beta to 4e-7: twice that on both sides.
    assert packed_loss(packed, pairs, 4 * longest) == pytest.approx(expected.item(), abs=1e-6 if longest < 10 else 2e-6)
    theirs = dict(plain.named_parameters())
    for weight, ours in packed.named_parameters():
        assert (ours.grad - theirs[weight].grad).norm() <= 1e-5 * theirs[weight].grad.norm(), weight


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "mistral"])
def test_adapters_on_it_learn_what_pefts_would(random_pairs: Build, name: str) -> None:
    """By the chain rule: dA and dB of W + s B A from the whole weight's gradient."""
    pairs = random_pairs(4)
    whole, adapted = model_of(name, PAIR), model_of(name, PAIR)
    packed_loss(whole, pairs, 40)
    add_lora(adapted, LoraConfig(rank=3, alpha=6.0))
    packed_loss(adapted, pairs, 40)
    gradients = dict(whole.named_parameters())
    for layer, ours in adapted.named_parameters():
        if layer.endswith("lora_B"):
            down = adapted.get_submodule(layer.removesuffix(".lora_B")).lora_A
            expected = 2.0 * gradients[layer.replace("lora_B", "weight")].grad @ down.T
            assert torch.allclose(ours.grad, expected, atol=1e-6), layer


@pytest.mark.parametrize("name", sorted(OWN))
def test_the_windows_and_caps_of_these_models_are_felt(random_pairs: Build, name: str) -> None:
    """The comparison above would be empty if the terms changed nothing."""
    batches = PairStore.of(random_pairs(4, longest=20)).evaluation_batches(200)
    model = model_of(name, PAIR)
    scores = score_pairs(model, batches).chosen_sum_B
    for term in ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping"):
        if OWN[name].get(term):
            other = model_of(name, PAIR)
            setattr(other.config, term, 500 if term == "sliding_window" else None)
            for layer in other.model.layers:
                if getattr(layer.self_attn, term, None) is not None:
                    setattr(layer.self_attn, term, None)
            assert not torch.allclose(score_pairs(other, batches).chosen_sum_B, scores, atol=1e-3), term
    assert name == "llama" or any(OWN[name].get(term) for term in ("sliding_window", "final_logit_softcapping"))


@pytest.mark.parametrize("name", sorted(OWN))
def test_greedy_answers_are_what_scoring_says_is_likeliest(name: str) -> None:
    model = model_of(name, PAIR)

    class Digits:
        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            return " ".join(map(str, ids))

    prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [14, 15]]
    answers = generate(model, Digits(), prompts, max_new_tokens=12, stop_ids=[2], temperature=0.0)
    assert model.config._attn_implementation == PAIR
    model.set_attn_implementation("eager")
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = [*prompt, *answer.token_ids]
        logits = model(torch.tensor([ids])).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == list(answer.token_ids)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gemma3", {}, "text part, saved as Gemma3ForCausalLM"),
        ("gpt2", {}, "'gpt2' is not supported yet: use one of llama, mistral"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "sets attn_logit_softcapping"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "both directions"),
        ("llama", {"final_logit_softcapping": 30.0}, "sets final_logit_softcapping"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "of type dynamic"),
    ],
)
def test_what_the_step_does_not_compute_is_refused_by_name(name: str, changes: dict[str, Any], words: str) -> None:
    config = AutoConfig.for_model(name, **changes)
    with pytest.raises(ModelError, match=words):
        check_supported(config)
