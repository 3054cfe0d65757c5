"""A Llama of two thin layers with random weights and a byte-level tokenizer, as a checkpoint of ours."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from simpo.checkpoint import save_checkpoint
from simpo.config import TokenPolicy
from simpo.policy_hash import policy_record

CONTEXT = 96
BOS, EOS, TURN = 256, 257, 258
TEMPLATE = (
    "<s>{% for m in messages %}<t>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<t>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, three marks: 259 ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", additional_special_tokens=["<t>"]
    )
    fast.chat_template = TEMPLATE
    return fast


def tiny_model(seed: int = 0, *, vocab_size: int = 259, **overrides: Any) -> LlamaForCausalLM:
    """Random weights, large enough that greedy answers differ between prompts."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.4,
        bos_token_id=BOS,
        eos_token_id=EOS,
        **{"max_position_embeddings": CONTEXT, "num_key_value_heads": 2, **overrides},
    )
    return LlamaForCausalLM(config).eval()


def tiny_checkpoint(directory: Path, seed: int = 0, policy: TokenPolicy | None = None) -> Path:
    """Saved with manifest, ready to deploy; with a token policy, as a trial writes it."""
    tokenizer = tiny_tokenizer()
    manifest = None if policy is None else policy_record(tokenizer, policy)
    return save_checkpoint(directory, model=tiny_model(seed), tokenizer=tokenizer, manifest=manifest)
