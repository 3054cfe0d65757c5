"""A base model for a person's own preferences when they name none: byte-level BPE and a small Llama, made on the spot.

It has read nothing but the person's training answers, so it writes poorly; but whether a method, a beta and a learning
rate rank held-out answers better is visible in minutes on a laptop.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from simpo.attention import PAIR, register_pair_attention
from simpo.checkpoint import read_manifest, save_checkpoint
from simpo.config import OptimConfig, TokenPolicy
from simpo.errors import CheckpointError
from simpo.fit import TrainState, fit
from simpo.methods import SFT
from simpo.packing import build_plan
from simpo.policy_hash import policy_record
from simpo.practice import CHAT_TEMPLATE
from simpo.records import Preference
from simpo.tokenize import tokenize_preferences

CONTROL = ("<|bos|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True, kw_only=True)
class SmallRecipe:
    """Figures of the small base; about 0.9 million parameters."""

    vocabulary: int = 2048
    """BPE tokens, bytes and control tokens included: English takes a third of the bytes' positions."""
    width: int = 128
    """Hidden size."""
    mlp_width: int = 384
    """Hidden size of the feed-forward layers."""
    layers: int = 3
    """Decoder layers, 4 query and 2 key-value heads each, tied embeddings."""
    steps: int = 240
    """SFT steps on the chosen answers."""
    batch: int = 16
    """Answers a step, at most the number of rows."""
    learning_rate: float = 2e-3
    """Peak rate of a cosine schedule."""


def build_small_base(
    directory: Path,
    rows: Sequence[Preference],
    *,
    policy: TokenPolicy,
    seed: int,
    progress: Callable[[int, int, float], None],
    recipe: SmallRecipe | None = None,
) -> Path:
    """SFT a fresh model on the chosen answers; where the same rows and recipe made one already, return at once.

    progress: called after each step with (step, steps, loss). Raises DataError when no row fits the policy.
    """
    recipe = recipe or SmallRecipe()
    key = _key(recipe, rows, policy, seed)
    try:
        if read_manifest(directory).get("recipe") == key:
            return directory
    except CheckpointError:
        pass  # nothing there, or nothing whole: make it
    tokenizer = train_tokenizer(rows, recipe.vocabulary, policy.max_length)
    pairs = tokenize_preferences(rows, tokenizer, policy).pairs
    plan = build_plan(
        pairs,
        batch_pairs=min(recipe.batch, len(pairs)),
        steps=recipe.steps,
        token_budget=8192,
        seed=seed,
        chosen_only=True,
    )
    model = _fresh_model(recipe, tokenizer, policy, seed)
    optim = OptimConfig(learning_rate=recipe.learning_rate, schedule="cosine", warmup_fraction=0.05, beta2=0.99)
    for report in fit(TrainState.fresh(model, optim, recipe.steps), plan, SFT()):
        progress(report.step, recipe.steps, report.loss)
    manifest = {
        "recipe": key,
        "method": {"name": SFT.name},
        "seed": seed,
        **policy_record(tokenizer, policy),
    }
    return save_checkpoint(directory, model=model, tokenizer=tokenizer, manifest=manifest)


def train_tokenizer(rows: Sequence[Preference], vocabulary: int, max_length: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the rows; every text can be written in it. The chat template is the practice task's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    control = [AddedToken(token, special=True, normalized=False) for token in CONTROL]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(rows), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _texts(rows: Sequence[Preference]) -> Iterator[str]:
    for row in rows:
        turns = [row.prompt] if isinstance(row.prompt, str) else [turn.content for turn in row.prompt]
        yield from (*turns, row.chosen, row.rejected)


def _fresh_model(recipe: SmallRecipe, tokenizer: PreTrainedTokenizerFast, policy: TokenPolicy, seed: int) -> Any:
    register_pair_attention()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp_width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        # Generation goes on after a prompt of full length.
        max_position_embeddings=2 * policy.max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.set_attn_implementation(PAIR)
    return model.train()


def _key(recipe: SmallRecipe, rows: Sequence[Preference], policy: TokenPolicy, seed: int) -> str:
    digest = hashlib.sha256()
    for text in _texts(rows):
        digest.update(text.encode() + b"\0")
    body = {
        "recipe": dataclasses.asdict(recipe),
        "policy": dataclasses.asdict(policy),
        "seed": seed,
        "template": CHAT_TEMPLATE,
        "torch": torch.__version__,
    }
    digest.update(json.dumps(body, sort_keys=True).encode())
    return digest.hexdigest()
