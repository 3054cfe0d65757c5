"""The default engine: a checkpoint of ours behind transformers, tokenised exactly as it was trained."""

import asyncio
import queue
import sys
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from service.serving.engines.base import EngineError, Piece, Sampling, Turn
from service.serving.engines.batching import Decoder, Request
from simpo.checkpoint import MANIFEST, read_manifest
from simpo.config import TokenPolicy
from simpo.errors import CheckpointError
from simpo.model import load_model, load_tokenizer, plain_attention
from simpo.policy_hash import honoured_policy
from simpo.records import Message
from simpo.tokenize import encode_prompt, stop_token_ids

_PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})


class TransformersEngine:
    """Engine over a model and tokenizer of transformers."""

    def __init__(self, model: Any, tokenizer: Any, policy: TokenPolicy, *, max_batch: int = 32) -> None:
        """Take a loaded model. `policy` is the one it was trained with; `max_batch` requests are decoded together."""
        self._model = model.eval()
        self._model.set_attn_implementation(plain_attention(self._model.config))
        self._tokenizer = tokenizer
        # max_length bounds what was trained on; what may be asked is bounded by the model's context alone.
        self._policy = replace(policy, max_length=sys.maxsize)
        # Rust tokenizers refuse to be used by two threads while one of them changes their settings.
        self._tokenizing = threading.Lock()
        self._decoder = Decoder(self._model, self._text, stop_token_ids(tokenizer, policy), max_batch=max_batch)

    @classmethod
    def load(cls, directory: str | Path, *, dtype: str = "float32", max_batch: int = 32) -> Self:
        """Load a checkpoint, every file checked against its manifest; or a base model from elsewhere, which has none.

        Raises:
            CheckpointError: a file that is missing, altered or unknown to the manifest; a pickle; no directory; a token
                policy that cannot be honoured.
            ModelError: the architecture is unknown, or the files are no model.
        """
        manifest = _checked(Path(directory))
        tokenizer = load_tokenizer(directory)
        policy = honoured_policy(manifest, tokenizer)
        model = load_model(directory, dtype=dtype)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model, tokenizer, policy, max_batch=max_batch)

    @property
    def context_length(self) -> int:
        return int(self._model.config.max_position_embeddings)

    @property
    def vocab_size(self) -> int:
        return int(self._model.config.vocab_size)

    def encode_chat(self, turns: Sequence[Turn]) -> list[int]:
        messages = [Message(role=turn.role, content=turn.content) for turn in turns]
        with self._tokenizing:
            return list(encode_prompt(messages, self._tokenizer, self._policy))

    def encode_text(self, text: str) -> list[int]:
        with self._tokenizing:
            return list(encode_prompt(text, self._tokenizer, self._policy))

    async def stream(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Piece]:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | EngineError] = asyncio.Queue()

        def emit(item: Piece | EngineError) -> None:  # in the decoder's thread; RuntimeError when the loop is closed
            loop.call_soon_threadsafe(pieces.put_nowait, item)

        request = Request(prompt_ids, sampling, emit)
        self._decoder.submit(request)
        try:
            while True:
                item = await pieces.get()
                if isinstance(item, EngineError):
                    raise item
                yield item
                if item.finish_reason:
                    return
        finally:
            request.abandoned = True

    def warm_up(self) -> None:
        answer: queue.SimpleQueue[Piece | EngineError] = queue.SimpleQueue()
        self._decoder.submit(Request(self.encode_text("a"), Sampling(max_new_tokens=1, temperature=0), answer.put))
        item = answer.get()
        if isinstance(item, EngineError):
            raise item

    def check_health(self) -> None:
        if not self._decoder.alive:
            raise EngineError("the decoder's thread has ended")

    def close(self) -> None:
        self._decoder.close()

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _checked(directory: Path) -> dict[str, Any]:
    """The manifest ({} without one), after refusing what must not be loaded."""
    if not directory.is_dir():
        raise CheckpointError(f"there is no directory {directory}: its sweep may have been deleted; deploy another one")
    # Our writer renames a directory into place when its manifest is in it, so without one it is not ours.
    manifest = read_manifest(directory) if (directory / MANIFEST).exists() else {}
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(f"{directory} holds {', '.join(pickles)}: pickles are code; keep safetensors only")
    return manifest
