"""The engine `vllm`: vLLM generates in a process of its own; prompts, texts, stops and scores stay ours.

It is given token ids and gives back token ids, so that template, BOS and stop tokens are those of training, a stop text
cuts where it cuts in the other engine, and log-probabilities have the same form. What differs is told in
service/README.md: seeds give other tokens than those of the other engine.
"""

import copy
import itertools
import json
import logging
import time
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoConfig

from service.serving.engines.base import (
    EngineBusy,
    EngineError,
    Occupancy,
    Piece,
    Sampling,
    SchemaRefused,
    TokenScore,
    Turn,
)
from service.serving.engines.rows import Voice
from service.serving.engines.telling import Telling
from service.serving.engines.transformers import MAX_WAITING, Tokens, checked_manifest, is_whole_weights
from service.serving.engines.vllm_server import START_S, VllmServer
from simpo.checkpoint import ADAPTER
from simpo.errors import CheckpointError
from simpo.lora import WEIGHTS, weights_hash
from simpo.model import load_model, load_tokenizer
from simpo.policy_hash import honoured_policy

MAX_LORA_RANK = 64
"""vLLM reserves room for adapters of this rank."""
_BASE = "base"
_GREEDY_BELOW = 1e-5  # the same as in the other engine; vLLM would raise such a temperature to 0.01
_FRESH_S = 10.0  # an answer's token no longer ago than this is health enough
_HUNG_S = 20.0  # Serve gives a health check 30 s
_RETRY_AFTER_S = 2
_REPLACED_S = 30  # a health check, and a start from what the disk still knows
_MAX_SCHEMAS = 256  # that are remembered
_SLOTS = 8  # adapters in one batch
_TOKEN = "token_id:"  # how vLLM writes ids where OpenAI has texts
_log = logging.getLogger(__name__)


class VllmEngine:
    """Engine over a server of vLLM's that serves one checkpoint, or a base and its adapters."""

    def __init__(
        self, directory: Path, server: VllmServer, tokens: Tokens, *, max_batch: int, max_waiting: int = MAX_WAITING
    ) -> None:
        """Take a server that is ready. `max_batch`: as it was told."""
        config = AutoConfig.from_pretrained(directory)
        self._directory = directory
        self._context_length, self._vocab_size = int(config.max_position_embeddings), int(config.vocab_size)
        self._server = server
        self._tokens = tokens
        self._voice = tokens.voice()
        self._model = _BASE
        self._places = max_batch + max_waiting
        self._shared = _Shared()

    @classmethod
    def load(
        cls, directory: str | Path, *, python: str, dtype: str = "float32", max_batch: int = 64, max_adapters: int = 0
    ) -> Self:
        """Check a checkpoint as the other engine does, and have vLLM load it.

        Args:
            directory: the checkpoint, or a base model from elsewhere.
            python: interpreter that has vLLM.
            dtype: of weights and arithmetic.
            max_batch: requests decoded together.
            max_adapters: of this base that stay loaded; 0: it answers alone.

        Raises:
            CheckpointError: as TransformersEngine.load.
            EngineError: vLLM cannot be started, or does not load it; with its own words.
        """
        where = Path(directory).absolute()
        manifest = checked_manifest(where)
        tokenizer = load_tokenizer(where)
        tokens = Tokens(tokenizer, honoured_policy(manifest, tokenizer))
        arguments = [
            f"--model={where}",
            f"--served-model-name={_BASE}",
            f"--dtype={dtype}",
            "--load-format=safetensors",
        ]
        arguments += [f"--max-num-seqs={max_batch}", "--generation-config=vllm", "--enforce-eager"]
        arguments += ["--logprobs-mode=raw_logprobs", "--max-logprobs=20"]
        if max_adapters:
            # An adapter that was put away is unloaded when its last answer is whole: room for some of these besides.
            arguments += ["--enable-lora", f"--max-loras={min(max_adapters, _SLOTS)}"]
            arguments += [f"--max-cpu-loras={max_adapters + _SLOTS}", f"--max-lora-rank={MAX_LORA_RANK}"]
        server = VllmServer(python, arguments)
        try:
            server.wait_ready()
        except BaseException:
            server.stop()
            raise
        return cls(where, server, tokens, max_batch=max_batch)

    def adapted(self, directory: str | Path) -> Self:
        """The same base with the adapter of a checkpoint; see TransformersEngine.adapted."""
        where = Path(directory).absolute()
        manifest = checked_manifest(where, unread=is_whole_weights)
        self._refuse_foreign(where, manifest)
        tokenizer = load_tokenizer(where)
        name = f"adapter-{next(self._shared.numbers)}"
        answer = self._server.ask(
            "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(where / ADAPTER), "load_inplace": False}
        )
        if answer.status_code != httpx.codes.OK:
            raise CheckpointError(f"{where}: vLLM does not load its adapter: {_fault(answer.content)}")
        view = copy.copy(self)
        view._model = name
        view._tokens = Tokens(tokenizer, honoured_policy(manifest, tokenizer))
        view._voice = view._tokens.voice()
        # Answers in the making hold the view: it goes when the last of them is whole and the shelf has put it away.
        weakref.finalize(view, _unload, self._server, name)
        return view

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def encode_chat(self, turns: Sequence[Turn]) -> list[int]:
        return self._tokens.encode_chat(turns)

    def encode_text(self, text: str) -> list[int]:
        return self._tokens.encode_text(text)

    def check_schema(self, schema: str) -> None:
        if schema in self._shared.schemas:
            return
        # Only vLLM knows what its grammars can say. Asked before the answer: a stream's status cannot be taken back.
        sampling = Sampling(max_new_tokens=1, temperature=0, json_schema=schema)
        body = _body(self._model, self.encode_text("a"), sampling, self._voice)
        answer = self._server.ask("/v1/completions", body | {"stream": False})
        if answer.is_client_error:
            raise SchemaRefused(f"the engine vllm cannot hold answers to this json_schema: {_fault(answer.content)}")
        if answer.status_code != httpx.codes.OK:
            raise EngineError(f"vLLM fails at a json_schema: {_fault(answer.content)}")
        self._shared.schemas[schema] = None
        while len(self._shared.schemas) > _MAX_SCHEMAS:
            self._shared.schemas.pop(next(iter(self._shared.schemas)), None)

    def admit(self, num_requests: int) -> None:
        if not self._server.alive:  # Serve learns it from the next health check, and others may answer meanwhile
            raise EngineBusy(f"vLLM has ended and is being replaced; ask again in {_REPLACED_S} s", _REPLACED_S)
        if num_requests > self._places - self._shared.open:
            raise EngineBusy(
                f"{self._shared.open} answers are being made or wait, and {num_requests} more would be too many; "
                f"ask again in {_RETRY_AFTER_S} s",
                _RETRY_AFTER_S,
            )

    def stream(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Piece]:
        if not self._server.alive:
            raise EngineError(f"vLLM has ended: {self._server.last_words()}")
        return self._pieces(list(prompt_ids), sampling)

    def warm_up(self) -> None:
        self._ask_itself(START_S)  # the first token may take as long as all before it

    def check_health(self) -> None:
        if not self._server.alive:
            raise EngineError(f"vLLM has ended: {self._server.last_words()}")
        if time.monotonic() - self._shared.token_at > _FRESH_S:
            self._ask_itself(_HUNG_S)

    def occupancy(self) -> Occupancy:
        sums: Counter[str] = Counter()
        for family in text_string_to_metric_families(self._server.metrics()):
            for sample in family.samples:
                sums[sample.name] += int(sample.value)
        return Occupancy(
            running=sums["vllm:num_requests_running"],
            waiting=sums["vllm:num_requests_waiting"],
            reused_tokens=sums["vllm:prefix_cache_hits_total"],
        )

    def close(self) -> None:
        self._server.stop()

    def _ask_itself(self, patience_s: float) -> None:
        body = _body(self._model, self.encode_text("a"), Sampling(max_new_tokens=1, temperature=0), self._voice)
        answer = self._server.ask("/v1/completions", body | {"stream": False, "logprobs": 0}, patience_s)
        if answer.status_code != httpx.codes.OK:
            raise EngineError(f"vLLM does not answer: {_fault(answer.content)}")
        for _, score in _told(answer.json()["choices"][0], 0, self._voice):
            _refuse_diverged(score)
        self._shared.token_at = time.monotonic()

    async def _pieces(self, prompt_ids: list[int], sampling: Sampling) -> AsyncGenerator[Piece]:
        telling = Telling(sampling, self._voice.vocabulary, self._voice.stop_ids)
        self._shared.open += 1
        try:
            async with self._server.client() as client:
                scoring = sampling.echo and sampling.top_logprobs is not None
                scores = await self._prompt_scores(client, prompt_ids, sampling) if scoring else []
                opening = telling.opening(prompt_ids, scores)
                if opening is not None:
                    yield opening
                if sampling.max_new_tokens == 0:
                    return
                async for choice in self._chunks(client, prompt_ids, sampling):
                    for token_id, score in _told(choice, sampling.top_logprobs, self._voice):
                        self._shared.token_at = time.monotonic()
                        piece = telling.take(token_id, score)
                        if piece is not None:
                            yield piece
                            if piece.finish_reason:
                                return  # leaving the connection ends vLLM's work, where it would go on
        except httpx.HTTPError as error:
            raise EngineError(f"vLLM broke off ({type(error).__name__}): {self._server.last_words()}") from error
        finally:
            self._shared.open -= 1
        raise EngineError("vLLM ended an answer before its end")

    async def _chunks(
        self, client: httpx.AsyncClient, prompt_ids: list[int], sampling: Sampling
    ) -> AsyncGenerator[dict[str, Any]]:
        body = _body(self._model, prompt_ids, sampling, self._voice)
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != httpx.codes.OK:
                raise EngineError(f"vLLM refuses the request: {_fault(await answer.aread())}")
            async for line in answer.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise EngineError(f"vLLM failed: {_fault(line.removeprefix('data: ').encode())}")
                for choice in event["choices"]:
                    yield choice

    async def _prompt_scores(
        self, client: httpx.AsyncClient, prompt_ids: list[int], sampling: Sampling
    ) -> list[TokenScore]:
        num_top = sampling.top_logprobs or 0
        body = _body(self._model, prompt_ids, Sampling(max_new_tokens=1, temperature=0), self._voice)
        answer = await client.post("/v1/completions", json=body | {"stream": False, "prompt_logprobs": num_top})
        if answer.status_code != httpx.codes.OK:
            raise EngineError(f"vLLM refuses to score the prompt: {_fault(answer.content)}")
        places = answer.json()["choices"][0]["prompt_logprobs"]
        vocabulary = self._voice.vocabulary
        scores = [vocabulary.score(prompt_ids[0], None)]
        for token_id, place in zip(prompt_ids[1:], places[1:], strict=True):
            of_all = {int(other): float(found["logprob"]) for other, found in place.items()}
            scores.append(_score(token_id, of_all[token_id], of_all, num_top, self._voice))
        return scores

    def _refuse_foreign(self, where: Path, manifest: Mapping[str, Any]) -> None:
        if "lora" not in manifest or f"{ADAPTER}/{WEIGHTS}" not in manifest["files"]:
            raise CheckpointError(f"{where} holds whole weights, not an adapter: deploy it by itself")
        if manifest.get("base", {}).get("hash") != self._base_hash:
            raise CheckpointError(f"{where} was trained beside another base: deploy it by itself")
        rank = int(manifest["lora"].get("rank", 0))
        if rank > MAX_LORA_RANK:
            raise CheckpointError(
                f"{where}: its adapter has rank {rank}, and the engine vllm takes at most {MAX_LORA_RANK}: deploy it "
                "with the engine transformers"
            )

    @cached_property
    def _base_hash(self) -> str:
        # Once: of the weights as the trainer reads them, which are then dropped.
        return weights_hash(load_model(self._directory).named_parameters())


class _Shared:
    """What a base and its adapters have in common."""

    def __init__(self) -> None:
        self.open = 0
        self.token_at = time.monotonic()
        self.numbers = itertools.count(1)
        self.schemas: dict[str, None] = {}  # those that it can hold answers to, in the order in which they came


def _body(model: str, prompt_ids: list[int], sampling: Sampling, voice: Voice) -> dict[str, Any]:
    """vLLM's request for one answer. Stop texts are found here, not there."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt_ids,
        "stream": True,
        "max_tokens": sampling.max_new_tokens,
        "temperature": 0.0 if sampling.temperature < _GREEDY_BELOW else sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "ignore_eos": True,
        "stop_token_ids": sorted(voice.stop_ids),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.top_logprobs is not None:
        body["logprobs"] = sampling.top_logprobs
    if sampling.json_object:
        body["response_format"] = {"type": "json_object"}
    if sampling.json_schema is not None:
        body["structured_outputs"] = {"json": json.loads(sampling.json_schema)}
    return body


def _told(choice: Mapping[str, Any], num_top: int | None, voice: Voice) -> list[tuple[int, TokenScore | None]]:
    """(token, its score) of a chunk."""
    ids = choice.get("token_ids") or []
    if num_top is None or not choice.get("logprobs"):
        return [(token_id, None) for token_id in ids]
    found = choice["logprobs"]
    tops = found["top_logprobs"] or [{}] * len(ids)
    told: list[tuple[int, TokenScore | None]] = []
    for token_id, logprob, top in zip(ids, found["token_logprobs"], tops, strict=True):
        of_all = {int(name.removeprefix(_TOKEN)): float(value) for name, value in (top or {}).items()}
        told.append((token_id, _score(token_id, float(logprob), of_all, num_top, voice)))
    return told


def _score(token_id: int, logprob: float, of_all: Mapping[int, float], num_top: int, voice: Voice) -> TokenScore:
    best = sorted(of_all.items(), key=lambda pair: -pair[1])[:num_top]
    return voice.vocabulary.score(token_id, logprob, tuple(voice.vocabulary.score(*pair) for pair in best))


def _refuse_diverged(score: TokenScore | None) -> None:
    # vLLM samples from NaN without a word, and writes its log-probability as -9999.
    if score is not None and not (score.logprob is not None and score.logprob > -9000):
        raise EngineError("the model's output is not finite: this checkpoint has diverged; deploy another one")


def _fault(body: bytes) -> str:
    """What an error answer of vLLM's says."""
    try:
        values = json.loads(body)
        told = values.get("error", values)
        return str(told.get("message", told))[:500]
    except (ValueError, AttributeError):
        return body[:500].decode(errors="replace")


def _unload(server: VllmServer, name: str) -> None:
    try:
        if server.alive:
            server.ask("/v1/unload_lora_adapter", {"lora_name": name})
    except EngineError as error:
        _log.warning("%s stays loaded: %s", name, error)
