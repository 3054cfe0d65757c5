"""Checkpointing changes memory, never a gradient; `auto` decides by an estimate that is near what is kept."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simpo.activations import keep_less, pack, unpack
from simpo.config import LoraConfig, OptimConfig, TrainConfig
from simpo.errors import ConfigError
from simpo.fit import StepContext, TrainState, accumulate
from simpo.lora import add_lora
from simpo.memory import (
    USABLE,
    _free_on_host,
    activation_bytes,
    apply_checkpointing,
    free_bytes,
    keep_freed_pages,
)
from simpo.methods import SimPO
from simpo.packing import PackedPlan, build_plan
from simpo.scores import hidden_rows
from tests.simpo.test_architectures import OWN, PAIR, model_of

Build = Callable[..., Any]


def plan_of(pairs: list[Any], budget: int = 4000) -> PackedPlan:
    return build_plan(pairs, batch_pairs=len(pairs), steps=1, token_budget=budget, seed=0)


def gradients(model: Any, plan: PackedPlan) -> dict[str, torch.Tensor]:
    state = TrainState.fresh(model, OptimConfig(learning_rate=1e-3), 1)
    context = StepContext(method=SimPO(), global_pairs=plan.batch_pairs, mean_chosen_len=1.0)
    for batch in plan.step(0):
        accumulate(state, batch, context)
    return {name: weight.grad for name, weight in state.named_weights().items() if weight.grad is not None}


def kept_bytes(model: Any, plan: PackedPlan, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of distinct storages that the forward of the largest micro-batch keeps, weights left out."""
    keep_less(model)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> Any:
        kept = pack(tensor)
        if isinstance(kept, torch.Tensor):
            storage = kept.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
        return kept

    monkeypatch.setattr("simpo.scores.remaking", lambda: torch.autograd.graph.saved_tensors_hooks(keep, unpack))
    largest = max(plan.step(0), key=lambda batch: batch.num_tokens)
    rows = hidden_rows(model, largest)
    assert rows.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("name", sorted(OWN))
@pytest.mark.parametrize("adapters", [False, True])
def test_every_gradient_is_the_same(random_pairs: Build, name: str, adapters: bool) -> None:
    plan = plan_of(random_pairs(6, longest=20))
    grads = []
    for mode in ("off", "on"):
        model = model_of(name, PAIR)
        if adapters:
            add_lora(model, LoraConfig(rank=2))
        assert apply_checkpointing(model, plan, mode) == (mode == "on")  # type: ignore[arg-type]
        grads.append(gradients(model, plan))
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grads[0][key], grads[1][key]) for key in grads[0])


def test_it_keeps_little_and_can_be_switched_off_again(
    tiny_model: Build, random_pairs: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan = tiny_model(), plan_of(random_pairs(6, longest=60))
    before = kept_bytes(model, plan, monkeypatch)
    apply_checkpointing(model, plan, "on")
    assert kept_bytes(model, plan, monkeypatch) < 0.3 * before
    apply_checkpointing(model, plan, "off")
    assert kept_bytes(model, plan, monkeypatch) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_estimate_is_near_what_is_kept(
    random_pairs: Build, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    model, plan = model_of(name, PAIR).to(dtype), plan_of(random_pairs(8, longest=150))
    assert activation_bytes(model, plan) == pytest.approx(kept_bytes(model, plan, monkeypatch), rel=0.3)


def test_auto_asks_for_it_only_when_memory_does(
    tiny_model: Build, random_pairs: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan = tiny_model(), plan_of(random_pairs(6, longest=60))
    needed = activation_bytes(model, plan) / USABLE + 12 * sum(weight.numel() for weight in model.parameters())
    for free, on in ((needed * 1.01, False), (needed * 0.99, True), (None, False)):
        monkeypatch.setattr("simpo.memory.free_bytes", lambda device, free=free: free)
        assert apply_checkpointing(model, plan, "auto") == on
    assert activation_bytes(model, plan_of(random_pairs(6, longest=60), budget=100)) < activation_bytes(model, plan)


def test_what_is_free_on_this_machine_and_in_a_container(tmp_path: Path) -> None:
    assert (free_bytes(torch.device("cpu")) or 0) > 2**20
    proc = tmp_path / "meminfo"
    proc.write_text("MemTotal: 900 kB\nMemAvailable: 500 kB\n")
    assert list(_free_on_host(proc, tmp_path)) == [512_000]
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert list(_free_on_host(proc, tmp_path)) == [512_000]
    (tmp_path / "memory.max").write_text("3000\n")
    assert list(_free_on_host(proc, tmp_path)) == [512_000, 2000]
    assert list(_free_on_host(tmp_path / "absent", tmp_path / "absent")) == []


def test_another_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="checkpointing: must be one of off, on, auto"):
        TrainConfig(steps=1, checkpointing="yes")  # type: ignore[arg-type]


def test_freed_pages_are_used_again() -> None:
    assert keep_freed_pages()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(2**24).fill_(1.0)  # 64 MB, 16,384 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert min(faults() for _ in range(3)) < 1000
