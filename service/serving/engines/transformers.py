"""The default engine: a checkpoint of ours behind transformers, tokenised exactly as it was trained."""

import asyncio
import copy
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from service.serving.engines.adapters import LoadedAdapter, Routing
from service.serving.engines.base import EngineError, Occupancy, Piece, Sampling, SchemaRefused, Turn
from service.serving.engines.batching import Decoder
from service.serving.engines.packed import pack
from service.serving.engines.passes import prepare
from service.serving.engines.rows import Request, Voice
from service.serving.engines.vocabulary import Vocabulary
from simpo.checkpoint import MANIFEST, read_manifest
from simpo.config import TokenPolicy
from simpo.errors import CheckpointError
from simpo.model import load_model, load_tokenizer
from simpo.policy_hash import honoured_policy
from simpo.records import Message
from simpo.tokenize import encode_prompt, stop_token_ids

MAX_WAITING = 128
"""Requests that wait while a batch is full."""
_FRESH_S = 10.0  # a forward pass no longer ago than this is health enough
_HUNG_S = 20.0  # Serve gives a health check 30 s
_PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})


class TransformersEngine:
    """Engine over a model and tokenizer of transformers."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        policy: TokenPolicy,
        *,
        max_batch: int = 64,
        max_waiting: int = MAX_WAITING,
        routing: Routing | None = None,
    ) -> None:
        """Take a loaded model.

        Args:
            model: of transformers; it is set up for generation.
            tokenizer: its tokenizer.
            policy: the one it was trained with.
            max_batch: requests decoded together.
            max_waiting: requests that may wait besides; one more is refused with EngineBusy.
            routing: what was made of the model for adapters; None: it answers alone.
        """
        self._model = model.eval()
        prepare(self._model)
        pack(self._model)
        route = None if routing is None else routing.route
        self._decoder = Decoder(self._model, max_batch=max_batch, max_waiting=max_waiting, route=route)
        self._routing = routing
        self._tokens = Tokens(tokenizer, policy)
        self._voice = self._tokens.voice()

    @classmethod
    def load(
        cls, directory: str | Path, *, dtype: str = "float32", max_batch: int = 64, adapters: bool = False
    ) -> Self:
        """Load a checkpoint, every file checked against its manifest; or a base model from elsewhere, which has none.

        `adapters`: it is to be a base that adapters can be put beside (`adapted`).

        Raises:
            CheckpointError: a file that is missing, altered or unknown to the manifest; a pickle; no directory; a token
                policy that cannot be honoured.
            ModelError: the architecture is unknown, or the files are no model.
        """
        manifest = checked_manifest(Path(directory))
        tokenizer = load_tokenizer(directory)
        policy = honoured_policy(manifest, tokenizer)
        model = load_model(directory, dtype=dtype)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model, tokenizer, policy, max_batch=max_batch, routing=Routing(model) if adapters else None)

    def adapted(self, directory: str | Path) -> Self:
        """The same base with the adapter of a checkpoint, which shares the batch with the base and the other adapters.

        Only the adapter and the tokenizer are read, and checked against the manifest. Raises CheckpointError: damaged,
        of another base, or not an adapter at all.
        """
        assert self._routing is not None, "a base for adapters is loaded with adapters=True"
        where = Path(directory)
        manifest = checked_manifest(where, unread=is_whole_weights)
        adapter = self._routing.load(where, manifest)
        tokenizer = load_tokenizer(where)
        view = copy.copy(self)
        view._tokens = Tokens(tokenizer, honoured_policy(manifest, tokenizer))
        view._voice = view._tokens.voice(adapter)
        return view

    @property
    def context_length(self) -> int:
        return int(self._model.config.max_position_embeddings)

    @property
    def vocab_size(self) -> int:
        return int(self._model.config.vocab_size)

    def encode_chat(self, turns: Sequence[Turn]) -> list[int]:
        return self._tokens.encode_chat(turns)

    def encode_text(self, text: str) -> list[int]:
        return self._tokens.encode_text(text)

    def check_schema(self, schema: str) -> None:
        raise SchemaRefused(
            "a json_schema is not supported by the engine transformers; ask for json_object and describe it, or deploy "
            "the model with the engine vllm"
        )

    def admit(self, num_requests: int) -> None:
        self._decoder.admit(num_requests)

    def stream(self, prompt_ids: Sequence[int], sampling: Sampling) -> "AnswerStream":
        return AnswerStream(self._decoder, prompt_ids, sampling, self._voice)

    def warm_up(self) -> None:
        self._ask_itself(None)

    def check_health(self) -> None:
        if not self._decoder.alive:
            raise EngineError("the decoder's thread has ended")
        if self._decoder.silent_s > _FRESH_S:
            self._ask_itself(_HUNG_S)

    def occupancy(self) -> Occupancy:
        return self._decoder.occupancy

    def close(self) -> None:
        self._decoder.close()

    def _ask_itself(self, patience_s: float | None) -> None:
        """One token, waited for as long as forward passes go on."""
        answer: queue.SimpleQueue[Piece | EngineError] = queue.SimpleQueue()
        sampling = Sampling(max_new_tokens=1, temperature=0)
        self._decoder.submit(Request(self.encode_text("a"), sampling, self._voice, answer.put))
        asked_at = time.monotonic()
        while True:
            try:
                item = answer.get(timeout=patience_s and 0.2)
            except queue.Empty:
                waited_s = time.monotonic() - asked_at
                if self._decoder.silent_s < min(_FRESH_S, waited_s):
                    return  # it is busy with others, and gets on
                if patience_s is not None and waited_s > patience_s:
                    raise EngineError(f"no token came out within {patience_s:.0f} s") from None
                continue
            if isinstance(item, EngineError):
                raise item
            return


class AnswerStream:
    """The pieces of one answer. The request is on its way once this exists; `aclose` abandons it."""

    def __init__(self, decoder: Decoder, prompt_ids: Sequence[int], sampling: Sampling, voice: Voice) -> None:
        """Must be made in an event loop. Raises EngineError: the engine is closed."""
        self._pieces = asyncio.Queue[Piece | EngineError]()
        self._over = False
        emit = partial(decoder.outbox().put, self._pieces)
        self._request = Request(prompt_ids, sampling, voice, emit)
        decoder.submit(self._request)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        if self._over:
            raise StopAsyncIteration
        item = await self._pieces.get()
        if isinstance(item, EngineError):
            self._over = True
            raise item
        self._over = item.finish_reason is not None
        return item

    async def aclose(self) -> None:
        """Stop the work for this answer, if it goes on."""
        self._over = self._request.abandoned = True

    def __del__(self) -> None:
        # A response that is cancelled before its first event never gets to its `finally`.
        self._request.abandoned = True


class Tokens:
    """A tokenizer under the token policy of training."""

    def __init__(self, tokenizer: Any, policy: TokenPolicy) -> None:
        self._tokenizer = tokenizer
        # max_length bounds what was trained on; what may be asked is bounded by the model's context alone.
        self._policy = replace(policy, max_length=sys.maxsize)
        # Rust tokenizers refuse to be used by two threads while one of them changes their settings.
        self._lock = threading.Lock()

    def encode_chat(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of a conversation that the model is to continue."""
        messages = [Message(role=turn.role, content=turn.content) for turn in turns]
        with self._lock:
            return list(encode_prompt(messages, self._tokenizer, self._policy))

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text."""
        with self._lock:
            return list(encode_prompt(text, self._tokenizer, self._policy))

    def voice(self, adapter: LoadedAdapter | None = None) -> Voice:
        """The way back, of the base or of one of its adapters."""
        stop_ids = frozenset(stop_token_ids(self._tokenizer, self._policy))
        return Voice(vocabulary=Vocabulary(self._tokenizer), stop_ids=stop_ids, adapter=adapter)


def checked_manifest(directory: Path, *, unread: Callable[[str], bool] = lambda name: False) -> dict[str, Any]:
    """The manifest ({} without one), after refusing what must not be loaded. `unread`: files that will not be opened.

    Raises CheckpointError: no directory, files that differ from the manifest, a pickle.
    """
    if not directory.is_dir():
        raise CheckpointError(f"there is no directory {directory}: its sweep may have been deleted; deploy another one")
    # Our writer renames a directory into place when its manifest is in it, so without one it is not ours.
    manifest = read_manifest(directory, unread=unread) if (directory / MANIFEST).exists() else {}
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(f"{directory} holds {', '.join(pickles)}: pickles are code; keep safetensors only")
    return manifest


def is_whole_weights(name: str) -> bool:
    """Whether a file of a checkpoint holds merged weights: of an adapter's, they need not be read."""
    return "/" not in name and name.endswith(".safetensors")
