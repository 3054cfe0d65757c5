"""What the serving bench serves: a random Llama with a tokenizer of made-up pieces, its adapters, and questions.

Weights decide nothing about speed; lengths do: those of AlpacaEval answers (`lengths.LONG`), cut.
"""

import itertools
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from simpo.checkpoint import save_checkpoint
from simpo.config import LoraConfig, TokenPolicy
from simpo.lora import add_lora
from simpo.model import load_model
from simpo.policy_hash import policy_record
from tests.bench.lengths import LONG, Shape

SMALL = Shape(width=576, layers=6, mlp=1536, heads=9, kv_heads=3, vocabulary=32_000)
"""40 million parameters, head and embedding apart."""
TINY = Shape(width=192, layers=4, mlp=512, heads=6, kv_heads=2, vocabulary=4_096)
"""4 million, for many short answers."""
CONTEXT = 1024
TEMPLATE = "<s>{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question, of tokens alone."""

    prompt_ids: list[int]
    """The prompt."""
    num_tokens: int
    """Tokens of the answer, exactly: no end token comes out of these weights."""


def questions(shape: Shape, number: int, *, longest_answer: int, seed: int = 0) -> list[Asked]:
    """So many, with lengths of the long pairs in their order, again and again."""
    draw = random.Random(seed)
    return [
        Asked(
            prompt_ids=[draw.randrange(shape.vocabulary - 2) for _ in range(prompt)],
            num_tokens=min(answer, longest_answer),
        )
        for prompt, answer, _ in itertools.islice(itertools.cycle(LONG), number)
    ]


def saved_model(directory: Path, shape: Shape, *, seed: int = 0) -> Path:
    """A base model as it comes from elsewhere: config, weights, tokenizer, no manifest."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=CONTEXT,
        initializer_range=0.05,
        bos_token_id=shape.vocabulary - 2,
        eos_token_id=shape.vocabulary - 1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[-2:] = 0.0  # a logit of 0 is never the largest of thousands: no answer ends early
    model.save_pretrained(directory)
    tokenizer(shape.vocabulary).save_pretrained(directory)
    return directory


def saved_adapters(directory: Path, base: Path, number: int, *, rank: int = 16) -> list[Path]:
    """Checkpoints as trials leave them: the adapter, and the merged weights beside it."""
    return [_saved_adapter(directory / f"adapter-{seed}", base, rank, seed) for seed in range(1, number + 1)]


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """All bytes, then words, then two marks. It splits text into bytes; the words are what answers are made of."""
    words = itertools.chain.from_iterable(
        map("".join, itertools.product(string.ascii_lowercase, repeat=n)) for n in (2, 3, 4)
    )
    pieces = itertools.islice(itertools.chain(sorted(pre_tokenizers.ByteLevel.alphabet()), words), vocabulary - 2)
    made = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    assert len(fast) == vocabulary
    return fast


def as_json(asked: Sequence[Asked]) -> list[Any]:
    """For a process that answers."""
    return [[one.prompt_ids, one.num_tokens] for one in asked]


def _saved_adapter(directory: Path, base: Path, rank: int, seed: int) -> Path:
    model: Any = load_model(base)
    adapter = add_lora(model, LoraConfig(rank=rank, alpha=rank, seed=seed))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapter.model.named_parameters():
            if name.endswith("lora_B"):
                weight.normal_(0.0, 0.02, generator=draw)
    mine = tokenizer(model.config.vocab_size)
    return save_checkpoint(directory, model=model, tokenizer=mine, manifest=policy_record(mine, TokenPolicy()))
