"""Several adapters on one base: each request gets the model that it named, in whatever company, whatever rolls."""

import asyncio
import itertools
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import torch

from service.serving.data_plane import create_data_plane
from service.serving.engines.base import Sampling
from service.serving.engines.transformers import TransformersEngine
from service.serving.openai_strict import WireError
from service.serving.shelf import Shelf, Source
from simpo.checkpoint import save_checkpoint
from simpo.config import LoraConfig, TokenPolicy
from simpo.errors import CheckpointError
from simpo.generate import generate
from simpo.lora import add_lora
from simpo.model import load_model
from simpo.packing import PairStore, TokenPair
from simpo.policy_hash import policy_record
from simpo.scores import score_pairs
from simpo.tokenize import stop_token_ids
from tests.serving.tiny import tiny_model, tiny_tokenizer

PROMPTS = ("a", "what is it?", "hello", "x" * 18)
NAMES = ("ann", "bob", "cem", "dot")


class Adapters:
    """A base on disk, and adapters of it as trials leave them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.base = directory / "base"
        tiny_model().save_pretrained(self.base)
        tiny_tokenizer().save_pretrained(self.base)

    def trained(self, number: int, **lora: Any) -> Any:
        """A model with an adapter that differs from every other number's."""
        model = load_model(self.base)
        adapter = add_lora(model, LoraConfig(rank=4, alpha=16, seed=number, **lora))
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, weight in adapter.model.named_parameters():
                if name.endswith("lora_B"):
                    weight.normal_(0.0, 0.2, generator=generator)
        return model

    def saved(self, number: int, **lora: Any) -> Path:
        """Its checkpoint, with the merged weights beside the adapter."""
        directory = self.directory / f"adapter-{number}"
        if not directory.exists():
            manifest = policy_record(tiny_tokenizer(), TokenPolicy())
            save_checkpoint(
                directory, model=self.trained(number, **lora), tokenizer=tiny_tokenizer(), manifest=manifest
            )
        return directory

    def merged_answers(self, number: int, prompts: Sequence[str], num_tokens: int) -> list[str]:
        """What the merged weights say alone, by the trainer's own code."""
        ids = [list(tiny_tokenizer()(text)["input_ids"]) for text in prompts]
        stop_ids = stop_token_ids(tiny_tokenizer(), TokenPolicy())
        model = load_model(self.saved(number))
        answers = generate(model, tiny_tokenizer(), ids, max_new_tokens=num_tokens, stop_ids=stop_ids, temperature=0)
        return [answer.text for answer in answers]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    return Adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def base(adapters: Adapters) -> Iterator[TransformersEngine]:
    engine = TransformersEngine.load(adapters.base, adapters=True)
    yield engine
    engine.close()


async def greedy(engine: TransformersEngine, text: str, num_tokens: int = 8) -> str:
    sampling = Sampling(max_new_tokens=num_tokens, temperature=0)
    return "".join([piece.text async for piece in engine.stream(engine.encode_text(text), sampling)])


def test_rows_of_one_batch_have_their_own_adapters(adapters: Adapters, base: TransformersEngine) -> None:
    engines = [base, *(base.adapted(adapters.saved(number)) for number in (1, 2, 3))]
    asked = [(engine, text) for text in PROMPTS for engine in engines]

    async def crowd() -> list[str]:
        return await asyncio.gather(*(greedy(engine, text) for engine, text in asked))

    answers = asyncio.run(crowd())
    ids = [base.encode_text(text) for text in PROMPTS]
    stop_ids = stop_token_ids(tiny_tokenizer(), TokenPolicy())
    plain = generate(tiny_model(), tiny_tokenizer(), ids, max_new_tokens=8, stop_ids=stop_ids, temperature=0)
    expected = [[answer.text for answer in plain]]
    expected += [adapters.merged_answers(number, PROMPTS, 8) for number in (1, 2, 3)]
    assert answers == [expected[i][p] for p in range(len(PROMPTS)) for i in range(len(engines))]
    assert len(set(answers)) > len(asked) // 2, "the example tells adapters apart"


def test_log_probabilities_of_an_adapter_are_the_trainers(adapters: Adapters, base: TransformersEngine) -> None:
    draw = Random(3)
    pairs = [
        TokenPair(*([draw.randrange(256) for _ in range(draw.randint(2, 20))] for _ in range(3))) for _ in range(50)
    ]
    engine = base.adapted(adapters.saved(4, targets=("q_proj", "down_proj")))

    async def told(prompt: list[int], answer: list[int]) -> float:
        sampling = Sampling(max_new_tokens=0, echo=True, top_logprobs=0)
        (piece,) = [piece async for piece in engine.stream([*prompt, *answer], sampling)]
        return sum(score.logprob or 0.0 for score in piece.scores[len(prompt) :])

    async def crowd() -> list[float]:
        return await asyncio.gather(
            *(told(pair.prompt, side) for pair in pairs for side in (pair.chosen, pair.rejected))
        )

    served = torch.tensor(asyncio.run(crowd())).view(-1, 2)
    model = adapters.trained(4, targets=("q_proj", "down_proj"))
    scores = score_pairs(model, PairStore.of(pairs).evaluation_batches(512))
    trained = torch.stack([scores.chosen_sum_B, scores.rejected_sum_B], dim=1)
    assert (trained - served).abs().max() < 1e-3


def source(path: Path | None, revision: int = 1) -> Source:
    return Source(path=None if path is None else str(path), revision=revision, created=7)


def test_adapters_are_loaded_when_asked_for_and_the_oldest_goes(adapters: Adapters, base: TransformersEngine) -> None:
    shelf = Shelf(base, capacity=2)
    shelf.declare({"base": source(None), **{name: source(adapters.saved(i)) for i, name in enumerate(NAMES, 1)}})
    assert shelf.loaded == ()
    listed = [(card.name, card.parent, card.created) for card in shelf.cards()]
    assert listed == [("base", None, 7), *((name, "base", 7) for name in NAMES)]
    first = shelf.open("ann").engine
    shelf.open("bob")
    assert shelf.open("ann").engine is first
    shelf.open("cem")
    assert [Path(path).name for path in shelf.loaded] == ["adapter-1", "adapter-3"]
    assert shelf.open("base").engine is base
    with pytest.raises(WireError, match="'eve' is not served here; use 'base', 'ann'") as caught:
        shelf.open("eve")
    assert caught.value.status == 404


def damage(directory: Path) -> None:
    path = directory / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


def plant_pickle(directory: Path) -> None:
    (directory / "adapter.bin").write_bytes(b"\x80\x04.")


def swap_base(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["base"]["hash"] = "0" * 64
    (directory / "manifest.json").write_text(json.dumps(manifest))


def forget_adapter(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["lora"]
    (directory / "manifest.json").write_text(json.dumps(manifest))


def mix(directory: Path) -> None:
    """A soup keeps the recipe of its adapters."""
    manifest = json.loads((directory / "manifest.json").read_text())
    for path in (directory / "adapter").iterdir():
        path.unlink()
        del manifest["files"][f"adapter/{path.name}"]
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (damage, "adapter_model.safetensors is missing or differs from its hash"),
        (plant_pickle, "adapter.bin"),
        (swap_base, "was trained beside another base"),
        (forget_adapter, "holds whole weights, not an adapter"),
        (mix, "holds whole weights, not an adapter"),
    ],
)
def test_a_bad_version_is_refused_and_the_one_before_answers_on(
    adapters: Adapters,
    base: TransformersEngine,
    tmp_path: Path,
    spoil: Any,
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = save_checkpoint(tmp_path / "bad", model=adapters.trained(9), tokenizer=tiny_tokenizer())
    spoil(bad)
    with pytest.raises(CheckpointError, match=says):
        base.adapted(bad)
    shelf = Shelf(base)
    shelf.declare({"ann": source(bad)})
    for _ in range(2):
        with pytest.raises(WireError, match=says) as caught:
            shelf.open("ann")
        assert (caught.value.status, caught.value.code) == (503, "model_not_loadable")
    shelf.declare({"ann": source(adapters.saved(1))})
    before = shelf.open("ann")
    shelf.declare({"ann": source(bad, 2)})
    assert shelf.open("ann") == before and before.fingerprint == "rev-1"
    assert says.split()[0] in caplog.text and "1 answers on" in caplog.text
    shelf.declare({"ann": source(adapters.saved(2), 3)})
    assert shelf.open("ann").fingerprint == "rev-3"


REQUESTS, VERSIONS, TOKENS = 2000, 3, 4


def test_no_request_of_2000_gets_another_model_while_versions_roll(
    adapters: Adapters, base: TransformersEngine
) -> None:
    """Revision r of the i-th name is adapter 4 r + i; the shelf holds fewer than are wanted at a time."""
    numbers = {(name, r): 4 * r + i for r in range(1, VERSIONS + 1) for i, name in enumerate(NAMES)}
    expected = {key: adapters.merged_answers(number, PROMPTS, TOKENS) for key, number in numbers.items()}
    shelf = Shelf(base, capacity=3)
    app = create_data_plane(shelf)
    revision = dict.fromkeys(NAMES, 1)

    def declare() -> None:
        shelf.declare({name: source(adapters.saved(numbers[name, r]), r) for name, r in revision.items()})

    declare()
    declared = dict(revision)  # what every request from now on must find, or something newer
    one_roll = asyncio.Lock()
    draw, wrong, seen = Random(0), [], set()
    todo = [(draw.choice(NAMES), draw.randrange(len(PROMPTS))) for _ in range(REQUESTS)]
    rolls = iter([name for _ in range(VERSIONS - 1) for name in NAMES])
    roll_every = REQUESTS // (len(NAMES) * (VERSIONS - 1) + 1)
    done = itertools.count(1)
    due, turned = roll_every, asyncio.Condition()

    def has_room() -> bool:
        """Requests go on while a version rolls, but not past the next roll: each version is to answer some."""
        return REQUESTS - len(todo) < due + roll_every // 2

    async def worker(client: httpx.AsyncClient) -> None:
        nonlocal due
        while todo:
            async with turned:
                await turned.wait_for(has_room)
            if not todo:
                return
            name, which = todo.pop()
            body = {"model": name, "prompt": PROMPTS[which], "temperature": 0, "max_tokens": TOKENS}
            earliest = declared[name]
            answer = (await client.post("/v1/completions", json=body)).json()
            served = int(answer["system_fingerprint"].removeprefix("rev-"))
            text = answer["choices"][0]["text"]
            seen.add((name, served))
            if text != expected[name, served][which] or not earliest <= served <= revision[name]:
                wrong.append((name, served, earliest, text, expected[name, served][which]))
            if next(done) % roll_every == 0 and (rolling := next(rolls, None)) is not None:
                async with one_roll:
                    revision[rolling] += 1
                    await asyncio.get_running_loop().run_in_executor(None, declare)
                    declared[rolling] = revision[rolling]
                async with turned:
                    due += roll_every
                    turned.notify_all()

    async def crowd() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=None) as client:
            await asyncio.gather(*(map(partial(worker), [client] * 16)))

    asyncio.run(crowd())
    assert wrong == []
    assert seen == set(numbers), "every version of every adapter answered"
    told_apart = {tuple(texts) for texts in expected.values()}
    assert len(told_apart) == len(expected)
