"""The engine of vLLM, for real: `make test-vllm`. No part of the default suite: it needs an environment of half a GB.

OpenAI's official client judges it by the same contract as the engine of transformers.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from fastapi import FastAPI

from service.serving.catalogue import OneModel
from service.serving.data_plane import create_data_plane
from service.serving.engines.base import EngineBusy, EngineError, Sampling
from service.serving.engines.vllm import VllmEngine
from service.serving.shelf import Shelf, Source
from simpo.checkpoint import save_checkpoint
from simpo.config import LoraConfig, TokenPolicy
from simpo.errors import CheckpointError
from simpo.lora import add_lora
from simpo.model import load_model
from simpo.policy_hash import policy_record
from tests.serving import vllm_venv
from tests.serving.openai_contract import OpenAIContract, chatted, completed, ids_of, text_of
from tests.serving.tiny import EOS, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.vllm

HEAD = {"head_dim": 32}
"""vLLM's attention knows no thinner heads."""


@pytest.fixture(scope="module")
def python() -> str:
    return str(vllm_venv.make())


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(**HEAD)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    """A base as it comes from elsewhere, which adapters can be put beside."""
    directory = tmp_path_factory.mktemp("vllm") / "base"
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def engine(base: Path, python: str) -> Iterator[VllmEngine]:
    engine = VllmEngine.load(base, python=python, max_batch=8, max_adapters=2)
    group = engine._server.pid
    try:
        engine.warm_up()
        yield engine
    finally:
        engine.close()
    assert members(group) == [], "all that it started ended with it"


@pytest.fixture(scope="module")
def app(engine: VllmEngine) -> FastAPI:
    return create_data_plane(OneModel(engine, name="winner", revision=1, created=1))


VERDICT = {
    "type": "object",
    "properties": {"good": {"type": "boolean"}, "why": {"enum": ["short", "polite"]}},
    "required": ["good", "why"],
    "additionalProperties": False,
}


def held(schema: dict[str, Any]) -> Any:
    """What asks for answers by a schema."""
    wish = {"name": "verdict", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": wish}, "logit_bias": bias(), "max_tokens": 60}


def bias() -> dict[str, int]:
    """None of white space, so that random weights do not write it for ever."""
    return {str(token): -100 for char in " \t\n\r" for token in ids_of(char)}


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


async def greedy(engine: VllmEngine, text: str, num_tokens: int = 8) -> str:
    sampling = Sampling(max_new_tokens=num_tokens, temperature=0)
    return "".join([piece.text async for piece in engine.stream(engine.encode_text(text), sampling)])


class TestVllm(OpenAIContract):
    """All of it."""


def test_answers_are_held_to_a_json_schema(app: FastAPI) -> None:
    for seed in range(4):
        choice = chatted(app, **held(VERDICT), seed=seed).choices[0]
        assert choice.finish_reason == "stop"
        told = json.loads(choice.message.content)
        assert told.keys() == {"good", "why"} and isinstance(told["good"], bool) and told["why"] in ("short", "polite")
        chunks = chatted(app, **held(VERDICT), seed=seed, stream=True)
        assert text_of(chunks, 0) == choice.message.content


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_vllm_cannot_read_is_refused(app: FastAPI, stream: bool) -> None:
    for schema in ({"type": "objekt"}, {"type": "object", "properties": 3}):
        with pytest.raises(openai.BadRequestError, match="vllm cannot hold answers to this json_schema") as caught:
            chatted(app, **held(schema), stream=stream)
        assert caught.value.param == "response_format"
    assert chatted(app, **held(VERDICT)).choices[0].finish_reason == "stop", "it answers on"


def test_it_tells_how_full_it_is(app: FastAPI, engine: VllmEngine) -> None:
    before = engine.occupancy().reused_tokens
    for _ in range(2):
        completed(app, "the quick brown fox jumps over the lazy dog", temperature=0, max_tokens=2)
    now = engine.occupancy()
    assert (now.running, now.waiting) == (0, 0)
    assert now.reused_tokens >= before


def test_a_client_that_leaves_ends_the_work(engine: VllmEngine) -> None:
    async def leave() -> None:
        stream = engine.stream(engine.encode_text("hello"), Sampling(max_new_tokens=90, temperature=2.0, seed=3))
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave())
    assert engine._shared.open == 0
    deadline = time.monotonic() + 120
    while (running := _running(engine)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running == 0


def test_more_than_may_wait_is_refused_with_a_time(engine: VllmEngine) -> None:
    engine.admit(8)
    with pytest.raises(EngineBusy, match="ask again in"):
        engine.admit(10_000)


def test_adapters_answer_as_their_merged_weights(app: FastAPI, engine: VllmEngine, base: Path, tmp_path: Path) -> None:
    paths = {name: saved_adapter(tmp_path / name, base, number) for number, name in enumerate(("ann", "bob", "cem"), 1)}
    shelf = Shelf(engine, capacity=2)
    sources = {name: Source(path=str(path)) for name, path in paths.items()}
    shelf.declare({"base": Source(path=None), **sources})
    plane = create_data_plane(shelf)
    said = {}
    for name in ("base", "ann", "bob", "cem", "ann"):
        served = shelf.open(name).engine
        assert isinstance(served, VllmEngine)
        said[name] = asyncio.run(greedy(served, "hello there"))
    assert len(set(said.values())) == 4
    for name, path in paths.items():
        expected = generated(path, "hello there")
        assert said[name] == expected, name
    assert [Path(path).name for path in shelf.loaded] == ["cem", "ann"]
    del served
    listed = {card["id"] for card in _models(engine)}
    assert listed == {"base", "adapter-3", "adapter-4"}, "what was put away is unloaded"
    assert (
        plane is not None and completed(app, "hello there", temperature=0, max_tokens=8).choices[0].text == said["base"]
    )


def test_what_is_no_adapter_of_this_base_is_refused(engine: VllmEngine, base: Path, tmp_path: Path) -> None:
    whole = save_checkpoint(tmp_path / "whole", model=tiny_model(**HEAD), tokenizer=tiny_tokenizer())
    with pytest.raises(CheckpointError, match="holds whole weights, not an adapter"):
        engine.adapted(whole)
    other = tmp_path / "other"
    tiny_model(7, **HEAD).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    with pytest.raises(CheckpointError, match="was trained beside another base"):
        engine.adapted(saved_adapter(tmp_path / "foreign", other, 1))
    with pytest.raises(CheckpointError, match="rank 128, and the engine vllm takes at most 64"):
        engine.adapted(saved_adapter(tmp_path / "wide", base, 1, rank=128))


def test_what_must_not_be_loaded_is_refused_before_vllm_starts(tmp_path: Path) -> None:
    directory = save_checkpoint(tmp_path / "bad", model=tiny_model(**HEAD), tokenizer=tiny_tokenizer())
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        VllmEngine.load(directory, python="/nowhere/python")
    (directory / "pytorch_model.bin").unlink()
    with pytest.raises(EngineError, match="there is no program /nowhere/python on this node: SIMPO_VLLM_PYTHON"):
        VllmEngine.load(directory, python="/nowhere/python")


def test_a_vllm_that_dies_is_noticed_and_says_so(base: Path, python: str) -> None:
    engine = VllmEngine.load(base, python=python, max_batch=2)
    try:
        engine.check_health()

        async def follow(begun: asyncio.Event) -> None:
            long = Sampling(max_new_tokens=90, temperature=2.0, seed=3, logit_bias={EOS: -100})
            async for _ in engine.stream(engine.encode_text("hello"), long):
                begun.set()

        async def ask() -> list[BaseException | None]:
            begun, everybody = asyncio.Event(), members(engine._server.pid)
            streams = [asyncio.ensure_future(follow(begun)) for _ in range(64)]  # two at a time: most of them wait
            await begun.wait()
            for pid in everybody:
                os.kill(pid, signal.SIGKILL)
            return await asyncio.gather(*streams, return_exceptions=True)

        ends = asyncio.run(ask())
        broken = [end for end in ends if end is not None]  # a quick one may be whole
        assert len(broken) >= 8 and all(isinstance(end, EngineError) and "vLLM" in str(end) for end in broken), ends
        with pytest.raises(EngineError, match="vLLM has ended"):
            engine.check_health()
        with pytest.raises(EngineBusy, match="is being replaced"):
            engine.admit(1)
        with pytest.raises(EngineError, match="vLLM has ended"):
            engine.stream([1], Sampling(max_new_tokens=1))
    finally:
        engine.close()


def saved_adapter(directory: Path, base: Path, number: int, *, rank: int = 4) -> Path:
    """A checkpoint as a trial leaves it."""
    import torch  # noqa: PLC0415  # lazy: the default suite collects this file

    model: Any = load_model(base)
    adapter = add_lora(model, LoraConfig(rank=rank, alpha=4 * rank, seed=number))
    draw = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for name, weight in adapter.model.named_parameters():
            if name.endswith("lora_B"):
                weight.normal_(0.0, 0.2, generator=draw)
    manifest = policy_record(tiny_tokenizer(), TokenPolicy())
    return save_checkpoint(directory, model=model, tokenizer=tiny_tokenizer(), manifest=manifest)


def generated(checkpoint: Path, text: str) -> str:
    """What the merged weights say, by the trainer's own code."""
    from simpo.generate import generate  # noqa: PLC0415  # lazy: as above
    from simpo.tokenize import stop_token_ids  # noqa: PLC0415  # lazy: as above

    stop_ids = stop_token_ids(tiny_tokenizer(), TokenPolicy())
    ids = [list(tiny_tokenizer()(text)["input_ids"])]
    (answer,) = generate(
        load_model(checkpoint), tiny_tokenizer(), ids, max_new_tokens=8, stop_ids=stop_ids, temperature=0
    )
    return answer.text


def _models(engine: VllmEngine) -> list[dict[str, Any]]:
    with engine._server._sync() as client:
        found: list[dict[str, Any]] = client.get("/v1/models").json()["data"]
    return found


def _running(engine: VllmEngine) -> int:
    """Requests that vLLM works on."""
    with engine._server._sync() as client:
        lines = client.get("/metrics").text.splitlines()
    values = [line.rsplit(" ", 1)[1] for line in lines if line.startswith("vllm:num_requests_running{")]
    return int(sum(map(float, values)))
