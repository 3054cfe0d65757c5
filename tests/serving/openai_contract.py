"""What the official client gets from OpenAI's endpoints, over any engine: what the model itself would say."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import openai
import pytest
import torch
from fastapi import FastAPI

from service.serving.engines.base import Engine, Turn
from tests.serving.tiny import EOS, tiny_tokenizer

HELLO: Any = [{"role": "user", "content": "hello"}]


@asynccontextmanager
async def official(app: FastAPI) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=http, max_retries=0) as client,
    ):
        yield client


def asked(app: FastAPI, ask: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, Any]]) -> Any:
    async def talk() -> Any:
        async with official(app) as client:
            return await ask(client)

    return asyncio.run(talk())


def chatted(app: FastAPI, **options: Any) -> Any:
    """A chat's answer; with `stream`, its chunks."""

    async def ask(client: openai.AsyncOpenAI) -> Any:
        answer: Any = await client.chat.completions.create(model="winner", messages=HELLO, **options)
        return [chunk async for chunk in answer] if options.get("stream") else answer

    return asked(app, ask)


def completed(app: FastAPI, prompt: Any, **options: Any) -> Any:
    async def ask(client: openai.AsyncOpenAI) -> Any:
        answer: Any = await client.completions.create(model="winner", prompt=prompt, **options)
        return [chunk async for chunk in answer] if options.get("stream") else answer

    return asked(app, ask)


def ids_of(text: str) -> list[int]:
    """One token per byte."""
    return list(tiny_tokenizer()(text)["input_ids"])


@torch.inference_mode()
def log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    """(T, V): what follows each token of a sequence."""
    return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)


def text_of(chunks: list[Any], index: int) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)


class OpenAIContract:
    """Subclasses give the fixtures `model` (of transformers), `engine` (over its weights) and `app` (over that)."""

    def test_n_choices_are_what_their_seeds_give_alone(self, app: FastAPI) -> None:
        many = chatted(app, n=3, seed=7, max_tokens=9)
        assert [choice.index for choice in many.choices] == [0, 1, 2]
        alone = [chatted(app, seed=7 + i, max_tokens=9).choices[0] for i in range(3)]
        assert [c.message.content for c in many.choices] == [c.message.content for c in alone]
        assert len({c.message.content for c in many.choices}) == 3
        assert [c.finish_reason for c in many.choices] == [c.finish_reason for c in alone]
        assert many.usage.prompt_tokens == chatted(app, max_tokens=1).usage.prompt_tokens

    def test_streamed_choices_come_interleaved_and_whole(self, app: FastAPI) -> None:
        options: dict[str, Any] = {"n": 3, "seed": 7, "max_tokens": 9}
        whole = chatted(app, **options)
        *chunks, last = chatted(app, **options, stream=True, stream_options={"include_usage": True})
        assert [text_of(chunks, i) for i in range(3)] == [c.message.content for c in whole.choices]
        ends = {c.index: c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason}
        assert ends == {c.index: c.finish_reason for c in whole.choices}
        assert last.choices == [] and last.usage == whole.usage

    def test_log_probabilities_are_the_models(self, app: FastAPI, engine: Engine, model: Any) -> None:
        answer = chatted(app, temperature=0, max_tokens=6, logprobs=True, top_logprobs=2)
        content = answer.choices[0].logprobs.content
        ids: list[int] = []
        prompt = engine.encode_chat([Turn(role="user", content="hello")])
        raw = b"".join(bytes(token.bytes or []) for token in content)
        assert raw.decode(errors="replace") == answer.choices[0].message.content
        for token in content:
            expected_V = log_probabilities(model, prompt + ids)[-1]
            best = expected_V.topk(2)
            assert token.logprob == pytest.approx(float(best.values[0]), abs=1e-4)
            assert [top.logprob for top in token.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert token.top_logprobs[0].token == token.token
            ids = [*ids, int(best.indices[0])]
        chunks = chatted(app, temperature=0, max_tokens=6, logprobs=True, top_logprobs=2, stream=True)
        streamed = [t for chunk in chunks for c in chunk.choices if c.logprobs for t in c.logprobs.content]
        assert streamed == content

    def test_scores_end_where_a_stop_text_cut(self, app: FastAPI) -> None:
        whole = completed(app, "x" * 20, temperature=0, max_tokens=12, logprobs=1).choices[0]
        stop = whole.text[4:6]
        for options in ({}, {"stream": True}):
            answer = completed(app, "x" * 20, temperature=0, max_tokens=12, logprobs=1, stop=stop, **options)
            chunks = answer if isinstance(answer, list) else [answer]
            choices = [choice for chunk in chunks for choice in chunk.choices]
            text = "".join(choice.text for choice in choices)
            tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.tokens]
            offsets = [at for choice in choices if choice.logprobs for at in choice.logprobs.text_offset]
            assert text == whole.text[: whole.text.index(stop)] == "".join(tokens)
            assert offsets == whole.logprobs.text_offset[: len(offsets)]
            assert choices[-1].finish_reason == "stop"

    def test_penalties_are_taken_off_the_logits(self, app: FastAPI, model: Any) -> None:
        def expected(presence: float, frequency: float) -> list[int]:
            ids, prompt = list[int](), ids_of("aaaa")
            for _ in range(10):
                logits_V = log_probabilities(model, prompt + ids)[-1].clone()
                for token in set(ids):
                    logits_V[token] -= presence + frequency * ids.count(token)
                ids.append(int(logits_V.argmax()))
                if ids[-1] == EOS:
                    break
            return ids

        prompt = ids_of("aaaa")
        texts = {}
        for presence, frequency in ((0.0, 0.0), (2.0, 0.0), (0.0, 2.0), (1.0, -2.0)):
            answer = completed(
                app, prompt, temperature=0, max_tokens=10, presence_penalty=presence, frequency_penalty=frequency
            )
            assert answer.usage.completion_tokens == len(expected(presence, frequency))
            texts[presence, frequency] = answer.choices[0].text
            ids = [token for token in expected(presence, frequency) if token != EOS]
            assert texts[presence, frequency] == str(tiny_tokenizer().decode(ids, skip_special_tokens=True))
        assert len(set(texts.values())) > 1

    def test_a_bias_forces_and_forbids(self, app: FastAPI) -> None:
        forced = completed(app, "once", max_tokens=5, logit_bias={str(ids_of("A")[0]): 100}).choices[0].text
        assert forced == "AAAAA"
        banned = {str(token): -100 for token in range(256) if token != ids_of("B")[0]}
        text = completed(app, "once", max_tokens=5, logit_bias={**banned, str(EOS): -100, "258": -100}).choices[0].text
        assert set(text) <= {"B"}

    def test_echo_scores_a_prompt_and_generates_nothing(self, app: FastAPI, model: Any) -> None:
        choice = completed(app, "once upon", max_tokens=0, echo=True, logprobs=2).choices[0]
        assert (choice.text, choice.finish_reason) == ("once upon", "length")
        logp = log_probabilities(model, ids_of("once upon"))
        expected = [float(logp[i, token]) for i, token in enumerate(ids_of("nce upon"))]
        assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.top_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
        assert choice.logprobs.tokens == list("once upon") and choice.logprobs.text_offset == list(range(9))

    def test_several_prompts_are_answered_in_order(self, app: FastAPI) -> None:
        prompts = ["once", "twice", "x" * 30]
        many = completed(app, prompts, n=2, temperature=0, max_tokens=5, echo=True)
        alone = [completed(app, prompt, temperature=0, max_tokens=5, echo=True) for prompt in prompts]
        assert [c.text for c in many.choices] == [one.choices[0].text for one in alone for _ in range(2)]
        assert many.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
        ids = completed(app, [ids_of("once"), ids_of("twice")], temperature=0, max_tokens=5)
        answers = [one.choices[0].text.removeprefix(prompt) for one, prompt in zip(alone, prompts, strict=True)]
        assert [c.text for c in ids.choices] == answers[:2]

    def test_a_bias_on_a_token_that_is_none_is_refused(self, app: FastAPI) -> None:
        with pytest.raises(openai.BadRequestError, match="999 is no token id") as caught:
            completed(app, "x", logit_bias={"999": 1})
        assert caught.value.param == "logit_bias"

    def test_a_json_object_is_one(self, app: FastAPI) -> None:
        brackets = {str(ids_of(char)[0]): bias for char, bias in (("}", 6), ('"', 4), (":", 4), ("]", 6))}
        whole = 0
        for seed in range(12):
            options: dict[str, Any] = {"seed": seed, "max_tokens": 60, "logit_bias": brackets}
            choice = chatted(app, response_format={"type": "json_object"}, **options).choices[0]
            if choice.finish_reason == "stop":
                whole += 1
                assert isinstance(json.loads(choice.message.content), dict)
            else:
                assert choice.message.content.lstrip()[:1] == "{"
        assert whole >= 3, "the example comes to an end"

    def test_an_empty_prompt_is_refused_where_no_bos_stands_before_it(self, app: FastAPI) -> None:
        with pytest.raises(openai.BadRequestError, match="has no token") as caught:
            completed(app, "")
        assert caught.value.param == "prompt"
