"""One worker, two workers, two that share the weights: the same losses, the same weights, the same checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simpo.checkpoint import newest_valid, read_manifest, restore, save_checkpoint
from simpo.config import LoraConfig, OptimConfig
from simpo.fit import TrainState, fit
from simpo.lora import add_lora
from simpo.memory import apply_checkpointing
from simpo.methods import KTO, SimPO
from simpo.packing import build_plan
from simpo.reference import reference_of
from simpo.scores import score_pairs
from simpo.sharding import gathered, is_sharded, own_part, shard_model
from tests.simpo.groups import in_group
from tests.simpo.tiny import random_token_pairs, two_layer_llama

STEPS = 6
OPTIM = OptimConfig(learning_rate=2e-3, weight_decay=0.01, max_grad_norm=0.05)
"""The clip is always at work."""
METHODS = {"simpo": SimPO(beta=2.0, gamma_beta_ratio=0.5), "kto": KTO()}


def trained(
    directory: Path,
    sharding: Any,
    *,
    method: str = "simpo",
    tied: bool = True,
    lora: bool = False,
    token_budget: int = 60,
    batch_pairs: int = 8,
    checkpointing: bool = False,
    dtype: torch.dtype = torch.float32,
    resume: bool = False,
) -> dict[str, Any]:
    """A run that saves itself in the middle and at its end, or one that goes on from the middle."""
    pairs = random_token_pairs(16)
    plan = build_plan(pairs, batch_pairs=batch_pairs, steps=STEPS, token_budget=token_budget, seed=1)
    model = two_layer_llama(seed=9 if resume and not lora else 0, tied=tied).to(dtype)
    reference = reference_of(two_layer_llama(tied=tied), plan, mismatched=True)
    if lora:
        add_lora(model, LoraConfig(rank=4))
    divided = shard_model(model, sharding)
    assert divided == is_sharded(model)
    apply_checkpointing(model, plan, "on" if checkpointing else "off")
    state = TrainState.fresh(model, OPTIM, STEPS)
    if resume:
        newest = newest_valid(directory)
        assert newest is not None
        state = restore(newest, model, OPTIM, STEPS)
    reports = []
    for report in fit(state, plan, METHODS[method], reference=reference):
        reports.append((report.loss, report.margin, report.grad_norm))
        if report.step == STEPS // 2:
            save_checkpoint(directory / "middle", model=model, state=state, servable=False)
    save_checkpoint(directory / "end" / "resumable", model=model, state=state)
    save_checkpoint(directory / "end" / "served", model=model)
    with gathered(model):
        margin = score_pairs(model, plan.pairs.evaluation_batches(token_budget)).chosen_sum_B.tolist()
    weights = list(model.parameters()) if lora else state.weights
    held = sum(own_part(weight).numel() for weight in weights) / sum(weight.numel() for weight in weights)
    return {"reports": reports, "scores": margin, "divided": divided, "held": held}


def files(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of both checkpoints at the end."""
    found = sorted(path for path in (directory / "end").rglob("*.safetensors"))
    return {f"{path.relative_to(directory)}:{key}": value for path in found for key, value in load_file(path).items()}


def assert_same(ours: Path, theirs: Path, atol: float = 1e-6) -> None:
    for name in ("resumable", "served"):
        manifests = [read_manifest(where / "end" / name) for where in (ours, theirs)]
        assert list(manifests[0]["files"]) == list(manifests[1]["files"])
        assert manifests[0].get("base") == manifests[1].get("base")
        configs = [(where / "end" / name / "config.json") for where in (ours, theirs)]
        assert configs[0].read_text() == configs[1].read_text()
    one, other = files(ours), files(theirs)
    assert list(one) == list(other)
    for key, value in one.items():
        assert (value.dtype, value.shape) == (other[key].dtype, other[key].shape), key
        assert torch.allclose(value.float(), other[key].float(), rtol=0, atol=atol), key


def steps_of(result: dict[str, Any]) -> list[float]:
    return [value for report in result["reports"] for value in report]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tied": False, "checkpointing": True},
    "kto": {"method": "kto"},
    "lora": {"lora": True, "checkpointing": True},
    # 3 micro-batches of 3 pairs: a worker is idle in the second round; one of all: idle in the whole step.
    "odd": {"batch_pairs": 3, "token_budget": 1, "method": "kto"},
    "idle": {"token_budget": 10_000, "method": "kto"},
}


def every_case(directory: Path) -> dict[str, dict[str, Any]]:
    """All of them in one group: starting processes is what costs."""
    results = {}
    for sharding in ("none", "full"):
        for name, case in CASES.items():
            results[f"{name}-{sharding}"] = trained(directory / f"{name}-{sharding}", sharding, **case)
        half = trained(directory / f"half-{sharding}", sharding, dtype=torch.bfloat16)
        results[f"half-{sharding}"] = half
        # From a checkpoint of one worker.
        resumed = trained(directory / f"onward-{sharding}", sharding, resume=True)
        results[f"onward-{sharding}"] = resumed
    return results


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    directory = tmp_path_factory.mktemp("group")
    for sharding in ("none", "full"):
        alone = trained(directory / "alone", "none")
        assert not alone["divided"]
        (directory / f"onward-{sharding}").mkdir()
        (directory / "alone" / "middle").rename(directory / f"onward-{sharding}" / "middle")
    ranks = in_group(every_case, directory)
    for name, result in ranks[0].items():
        assert result == {**ranks[1][name], "held": result["held"]}, name
        assert result["divided"] == name.endswith("full")
    return directory, ranks[0]


@pytest.mark.parametrize("sharding", ["none", "full"])
@pytest.mark.parametrize("name", CASES)
def test_two_workers_train_as_one(
    group: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, name: str, sharding: str
) -> None:
    directory, results = group
    alone = trained(tmp_path, "none", **CASES[name])
    ours = results[f"{name}-{sharding}"]
    assert steps_of(ours) == pytest.approx(steps_of(alone), rel=1e-6, abs=1e-6)
    assert ours["scores"] == pytest.approx(alone["scores"], rel=1e-5)
    assert_same(directory / f"{name}-{sharding}", tmp_path)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_checkpoint_of_one_is_resumed_by_two_and_the_other_way_round(
    group: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, sharding: str
) -> None:
    directory, results = group
    alone = trained(tmp_path / "alone", "none")
    later = steps_of(alone)[3 * STEPS // 2 :]
    assert steps_of(results[f"onward-{sharding}"]) == pytest.approx(later, rel=1e-6, abs=1e-6)
    assert_same(directory / f"onward-{sharding}", tmp_path / "alone")
    back = tmp_path / "back"
    back.mkdir()
    (directory / f"plain-{sharding}" / "middle").rename(back / "middle")
    assert steps_of(trained(back, "none", resume=True)) == pytest.approx(later, rel=1e-6, abs=1e-6)
    assert_same(back, tmp_path / "alone")


def test_float32_shares_of_a_bfloat16_model(
    group: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    directory, results = group
    alone = trained(tmp_path, "none", dtype=torch.bfloat16)
    for sharding in ("none", "full"):
        losses = [report[0] for report in results[f"half-{sharding}"]["reports"]]
        assert losses == pytest.approx([report[0] for report in alone["reports"]], abs=2e-3)
        assert_same(directory / f"half-{sharding}", tmp_path, atol=5e-3)


def test_a_worker_holds_its_share(group: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    _, results = group
    held = {name: result["held"] for name, result in results.items()}
    assert {share for name, share in held.items() if name.endswith("none")} == {1.0}
    # Every master, moment and gradient; of a model with adapters the layers, beside its embedding and the adapters.
    assert {name: share for name, share in held.items() if name.endswith("full") and not 0.49 < share < 0.51} == {
        "lora-full": pytest.approx(0.66, abs=0.05)
    }
