"""Batched sampling with transformers' own `generate`; the same prompts and seed give the same answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from simpo.model import plain_attention


@dataclass(frozen=True)
class Generation:
    """One answer. `token_ids` holds the end token if the answer has one; `text` never does."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 128,
) -> list[Generation]:
    """Answer prompts (token ids from `encode_prompt`), in order. temperature 0 is greedy.

    Prompts are batched by length, so that padding is small; `stop_ids` are the ids that end an answer.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Generation] = {}
    with _plain_attention(model), torch.inference_mode(), torch.random.fork_rng(devices=_devices(model)):
        torch.manual_seed(seed)
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            batch = _answer([prompts[i] for i in rows], model, stop_ids, max_new_tokens, temperature, top_p)
            for row, ids in zip(rows, batch, strict=True):
                answers[row] = _generation(ids, tokenizer, stop_ids)
    return [answers[i] for i in range(len(prompts))]


def _answer(
    prompts: Sequence[Sequence[int]],
    model: Any,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> list[list[int]]:
    width = max(map(len, prompts))
    pad = stop_ids[0]
    input_ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    output = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad,
        **sampling,
    )
    return [_until_stop(row, stop_ids) for row in output[:, width:].tolist()]


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in stop_ids:
            return ids[: position + 1]
    return ids


def _generation(ids: list[int], tokenizer: Any, stop_ids: Sequence[int]) -> Generation:
    ended = bool(ids) and ids[-1] in stop_ids
    text = tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
    return Generation(text, tuple(ids), "stop" if ended else "length")


def _devices(model: Any) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []


@contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    """Generation needs ordinary causal attention with a cache; put the training attention back afterwards."""
    before, training = model.config._attn_implementation, model.training
    model.set_attn_implementation(plain_attention(model.config))
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        model.train(training)
