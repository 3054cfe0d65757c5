"""The practice task made ready: preference files, a byte-level tokenizer, a base model trained on the spot, its judge.

Nothing is downloaded. The base model is trained on an unlabelled mixture of chosen and rejected answers,
so it knows the task and does not yet know what people want of it: there is room for preference tuning both ways.
"""

import dataclasses
import gzip
import hashlib
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from simpo import practice_task
from simpo.attention import PAIR, register_pair_attention
from simpo.checkpoint import read_manifest, save_checkpoint
from simpo.config import OptimConfig, TokenPolicy
from simpo.errors import CheckpointError, DataError
from simpo.fit import TrainState, fit
from simpo.methods import SFT
from simpo.packing import TokenPair, build_plan
from simpo.policy_hash import policy_record
from simpo.practice_task import Example, Split
from simpo.records import Message, Preference
from simpo.tokenize import tokenize_preferences

LONGER_SHARE = 0.2
"""How often the chosen answer is the longer one, unless asked otherwise."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class PracticeData:
    """The three files of `write_data`."""

    train: Path
    validation: Path
    evaluation: Path


@dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    """How the base model is made. Its hash is the cache key: change a figure here and a new base is trained."""

    steps: int = 640
    """Optimiser steps."""
    batch: int = 32
    """Single answers a step, each seen once."""
    chosen_share: float = 0.35
    """How many of them are chosen ones. The fewer, the more is left for preference tuning to win."""
    learning_rate: float = 2e-3
    """Peak rate of a cosine schedule."""
    width: int = 128
    """Hidden size."""
    mlp_width: int = 384
    """Hidden size of the feed-forward layers."""
    layers: int = 4
    """Decoder layers, with 4 query and 2 key-value heads each and tied embeddings: 0.8 million parameters in all."""
    init_std: float = 0.06
    """Spread of the initial weights. Near 1/sqrt(width); transformers' own 0.02 doubles the steps needed."""
    embedding_std: float = 0.18
    """Spread of the initial embedding, which is also the head. Copying letters is learnt sooner than at 0.06."""
    rope_theta: float = 500.0
    """Base of the rotary positions: conversations here are a few dozen tokens long."""
    max_length: int = 512
    """Positions that the model declares."""


class PracticeJudge:
    """The programmatic judge of the practice task: see `practice_task.score`. Implements `evaluation.judge.Judge`."""

    name = "practice"

    def score(self, prompts: list[str], answers: list[str]) -> list[float | None]:
        """Scores in [0, 1]; None for an instruction that is not the task's."""
        return [practice_task.score(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def write_data(
    directory: str | Path,
    *,
    seed: int,
    train: int = 2000,
    validation: int = 256,
    evaluation: int = 600,
    longer_share: float = LONGER_SHARE,
) -> PracticeData:
    """Write train, validation and eval .jsonl.gz (conversational, explicit prompt); the same bytes for the same call.

    Raises ConfigError: a share outside [0, 1], more evaluation rows than there are instructions.
    """
    where = Path(directory)
    where.mkdir(parents=True, exist_ok=True)
    sizes: dict[Split, int] = {"train": train, "validation": validation, "eval": evaluation}
    paths = []
    for split, n in sizes.items():
        rows = practice_task.examples(split, n, seed=seed, longer_share=longer_share)
        lines = [json.dumps(_row(example, f"practice-{split}-{i:05}")) + "\n" for i, example in enumerate(rows)]
        path = where / f"{split}.jsonl.gz"
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
        paths.append(partial.replace(path))
    return PracticeData(train=paths[0], validation=paths[1], evaluation=paths[2])


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte and six control tokens; a turn ends in EOS, and the template writes the only BOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={sign: index for index, sign in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    control = ("<|bos|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
        model_max_length=BaseRecipe.max_length,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_base(
    directory: str | Path,
    *,
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
    recipe: BaseRecipe | None = None,
) -> Path:
    """Train the base model and save it as a checkpoint; where the same recipe and seed lie already, return at once.

    progress: called after each step with (step, steps, loss).
    """
    target, recipe = Path(directory), recipe or BaseRecipe()
    tokenizer = build_tokenizer()
    key = _recipe_hash(recipe, seed, tokenizer)
    try:
        if read_manifest(target).get("recipe") == key:
            return target
    except CheckpointError:
        pass  # nothing there, or nothing whole: make it
    policy = TokenPolicy(max_length=recipe.max_length)
    texts = _mixture(recipe, seed, tokenizer, policy)
    plan = build_plan(
        texts, batch_pairs=recipe.batch, steps=recipe.steps, token_budget=4096, seed=seed, chosen_only=True
    )
    model = _fresh_model(recipe, seed, tokenizer)
    optim = OptimConfig(learning_rate=recipe.learning_rate, schedule="cosine", warmup_fraction=0.05, beta2=0.99)
    for report in fit(TrainState.fresh(model, optim, recipe.steps), plan, SFT()):
        if progress is not None:
            progress(report.step, recipe.steps, report.loss)
    manifest = {
        "recipe": key,
        "method": {"name": SFT.name},
        "seed": seed,
        **policy_record(tokenizer, policy),
    }
    return save_checkpoint(target, model=model, tokenizer=tokenizer, manifest=manifest)


def _row(example: Example, identity: str) -> dict[str, Any]:
    return {
        "id": identity,
        "prompt": [{"role": "user", "content": example.instruction}],
        "chosen": [{"role": "assistant", "content": example.chosen}],
        "rejected": [{"role": "assistant", "content": example.rejected}],
    }


def _mixture(recipe: BaseRecipe, seed: int, tokenizer: PreTrainedTokenizerFast, policy: TokenPolicy) -> list[TokenPair]:
    """Single texts without a label: of each practice pair, one side by the toss of a biased coin."""
    rows = practice_task.examples("train", recipe.steps * recipe.batch, seed=seed, longer_share=LONGER_SHARE)
    preferences = [
        Preference(
            prompt=(Message(role="user", content=row.instruction),), chosen=row.chosen, rejected=row.rejected, id=""
        )
        for row in rows
    ]
    tokenized = tokenize_preferences(preferences, tokenizer, policy)
    if tokenized.dropped:
        raise DataError(f"the practice task made rows that its own tokenizer drops: {tokenized.dropped}")
    coin = random.Random(f"practice/mixture/{seed}")
    return [
        TokenPair(p.prompt, p.chosen if coin.random() < recipe.chosen_share else p.rejected, [])
        for p in tokenized.pairs
    ]


def _fresh_model(recipe: BaseRecipe, seed: int, tokenizer: PreTrainedTokenizerFast) -> Any:
    register_pair_attention()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp_width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=recipe.max_length,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        initializer_range=recipe.init_std,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(recipe.embedding_std / recipe.init_std)
    model.set_attn_implementation(PAIR)
    return model.train()


def _recipe_hash(recipe: BaseRecipe, seed: int, tokenizer: PreTrainedTokenizerFast) -> str:
    """Over all that decides the weights: figures, seed, the task's own text, tokenizer, template."""
    body = {
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "task": hashlib.sha256(Path(practice_task.__file__).read_bytes()).hexdigest(),
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "template": tokenizer.chat_template,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
