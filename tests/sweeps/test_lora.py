"""Trials that train adapters: one frozen base for all, rungs without a copy of it, a winner that anybody can serve."""

import asyncio
from pathlib import Path

import pytest
import torch

from service.serving.engines.base import Sampling, Turn
from service.serving.engines.transformers import TransformersEngine
from service.settings import Settings
from service.winners import shared_base
from simpo.checkpoint import ADAPTER, read_manifest
from simpo.errors import ConfigError
from simpo.model import load_model
from sweeps.faults import SpecError
from sweeps.prepare import RUNG_SEED, measure_on, prepare, read_inputs
from sweeps.run_dir import RunDir
from sweeps.spec import SweepSpec, parse_spec
from sweeps.trial import Assignment, Update, Workbench, train_trial
from tests.sweeps.tiny import tiny_base, tiny_spec

TRAIN = {"batch_pairs": 8, "token_budget": 1024, "checkpointing": "auto"}
LORA = {"train": {**TRAIN, "lora": {"rank": 4, "targets": ["q_proj", "up_proj"]}}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lora")
    spec = tiny_spec(tiny_base(place / "base"), **LORA)
    assert parse_spec(spec.model_dump(mode="json")) == spec
    RunDir(place).write_spec(spec.model_dump(mode="json"))
    prepare(spec, read_inputs(spec, place / "prepared"), place / "prepared", lambda share, message: None)
    return place


@pytest.fixture(scope="module")
def bench(place: Path) -> Workbench:
    return Workbench(str(place), str(place / "prepared"))


def _trial(bench: Workbench, place: Path, directory: Path, rate: float = 3e-2, until: int = 99) -> list[Update]:
    told = Assignment(
        trial_id="trl_0000",
        params={"learning_rate": rate, "beta": 2.0, "gamma_beta_ratio": 0.5},
        cutoffs={},
        run_dir=str(place),
        prepared=str(place / "prepared"),
        directory=str(directory),
        resume=[],
        deadline=None,
    )
    updates = []
    trial = train_trial(bench, told)
    for update in trial:
        updates.append(update)
        if update.step >= until:
            break
    trial.close()
    return updates


def test_trials_share_the_base_and_nothing_else(bench: Workbench, place: Path, tmp_path: Path) -> None:
    base = {name: weight for name, weight in bench.model.named_parameters() if not weight.requires_grad}
    before = {name: (weight.data_ptr(), weight.clone()) for name, weight in base.items()}
    runs = [_trial(bench, place, tmp_path / name, rate) for name, rate in (("a", 3e-2), ("b", 1e-1), ("c", 3e-2))]
    losses = [[update.metrics["loss"] for update in run if update.kind == "progress"] for run in runs]
    assert losses[0] == losses[2] != losses[1]
    assert all(base[name].data_ptr() == at and torch.equal(base[name], value) for name, (at, value) in before.items())


def test_a_rung_holds_the_adapter_and_a_trial_goes_on_from_it(bench: Workbench, place: Path, tmp_path: Path) -> None:
    whole = _trial(bench, place, tmp_path / "whole")
    _trial(bench, place, tmp_path / "dead", until=10)
    rung = tmp_path / "dead" / "rung-000008"
    assert not list(rung.glob("model*"))
    assert read_manifest(rung)["base"]["hash"] == read_manifest(tmp_path / "whole" / "final")["base"]["hash"]
    rest = _trial(bench, place, tmp_path / "dead")
    assert [(update.kind, update.step) for update in rest[:2]] == [("started", 8), ("progress", 9)]
    assert rest[-1].metrics == whole[-1].metrics


def test_a_finalist_is_an_ordinary_model_that_measures_the_same(
    bench: Workbench, place: Path, tmp_path: Path
) -> None:
    last = _trial(bench, place, tmp_path)[-1]
    assert last.checkpoint is not None
    final = Path(last.checkpoint)
    assert sorted(path.name for path in (final / ADAPTER).iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    merged = load_model(final)
    again = measure_on(bench.spec, bench.facts, bench.rungs, merged, bench.tokenizer, seed=bench.spec.seed + RUNG_SEED)
    assert again.metrics() == pytest.approx(last.metrics, rel=1e-5)
    engine = TransformersEngine.load(final)
    engine.warm_up()
    engine.close()


def test_a_finalist_says_the_same_beside_its_base(bench: Workbench, place: Path, tmp_path: Path) -> None:
    final = str(_trial(bench, place, tmp_path)[-1].checkpoint)
    base = read_manifest(final)["base"]["source"]
    assert Path(base).is_absolute() and shared_base(Settings(), final) == base, "its deployment shares the base"
    answers = []
    for engine in (TransformersEngine.load(final), TransformersEngine.load(base, adapters=True)):
        model = engine if not answers else engine.adapted(final)
        answers.append(asyncio.run(_greedy(model)))
        engine.close()
    assert answers[0] == answers[1] != ""


async def _greedy(engine: TransformersEngine) -> str:
    sampling = Sampling(max_new_tokens=12, temperature=0)
    prompt = engine.encode_chat([Turn(role="user", content="Upper case: tiger")])
    return "".join([piece.text async for piece in engine.stream(prompt, sampling)])


def test_a_layer_that_the_model_lacks_is_told_before_the_search(place: Path, tmp_path: Path) -> None:
    spec = tiny_spec(place / "base", train={"batch_pairs": 8, "lora": {"targets": ["c_attn"]}})
    with pytest.raises(ConfigError, match=r"train\.lora\.targets: .* no linear layer named c_attn"):
        prepare(spec, read_inputs(spec, tmp_path), tmp_path, lambda share, message: None)


def test_a_setting_that_cannot_be_honoured_is_named(place: Path) -> None:
    with pytest.raises(SpecError, match=r"train\.lora\.dropout: must be 0"):
        tiny_spec(place / "base", train={"lora": {"dropout": 0.1}})
    with pytest.raises(SpecError, match=r"train\.lora\.r\b"):
        tiny_spec(place / "base", train={"lora": {"r": 8}})


def test_the_default_learning_rates_of_adapters_are_ten_times_higher() -> None:
    def low(**train: object) -> float:
        spec = SweepSpec.model_validate({"name": "a", "base_model": "org/model", "dataset": "x.jsonl", "train": train})
        return float(spec.space["learning_rate"].low)  # type: ignore[union-attr]

    assert low(lora={"rank": 8}) == pytest.approx(10 * low())
