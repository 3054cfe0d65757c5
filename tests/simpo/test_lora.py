"""The adapter step equals PEFT's own model; its files are PEFT's; its runs resume; merged it computes the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from simpo.checkpoint import ADAPTER, newest_valid, read_manifest, restore, save_checkpoint
from simpo.config import LoraConfig, OptimConfig, TrainConfig
from simpo.errors import CheckpointError, ConfigError
from simpo.fit import StepContext, TrainState, accumulate, fit
from simpo.lora import add_lora
from simpo.methods import DPO, SimPO
from simpo.packing import PackedPlan, PairStore, build_plan
from simpo.reference import reference_of
from simpo.scores import score_pairs

Build = Callable[..., Any]
# PEFT 0.21 asks transformers 5.23 for a name that it has deprecated.
oracle = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
METHOD = SimPO(beta=2.0, gamma_beta_ratio=0.5)
OPTIM = OptimConfig(learning_rate=1e-2)
LORA = LoraConfig(rank=4, alpha=6.0)


def adapted(tiny_model: Build, config: LoraConfig = LORA, *, seed: int = 0, moved: bool = True) -> Any:
    """A tiny model with an adapter; `moved` gives its B values other than 0."""
    model = tiny_model(seed)
    add_lora(model, config)
    if moved:
        torch.manual_seed(7)
        for name, weight in model.named_parameters():
            if name.endswith("lora_B"):
                torch.nn.init.normal_(weight.data, std=0.3)
    return model


def plan_of(random_pairs: Build, budget: int = 60) -> PackedPlan:
    return build_plan(random_pairs(16), batch_pairs=8, steps=6, token_budget=budget, seed=1)


def losses(state: TrainState, plan: PackedPlan, method: Any = METHOD, **kwargs: Any) -> list[float]:
    return [report.loss for report in fit(state, plan, method, **kwargs)]


@oracle
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj", "down_proj")])
def test_loss_and_every_adapter_gradient_equal_pefts(tiny_model: Build, random_pairs: Build, targets: Any) -> None:
    pairs = random_pairs(8)
    config = LoraConfig(rank=4, alpha=6.0, targets=targets)
    ours = adapted(tiny_model, config)
    names = targets if isinstance(targets, str) else list(targets)
    plain = tiny_model(attention="eager")
    theirs = get_peft_model(plain, PeftConfig(r=4, lora_alpha=6.0, target_modules=names, task_type="CAUSAL_LM"))
    own = {f"base_model.model.{name}": weight for name, weight in ours.named_parameters() if weight.requires_grad}
    learning = ((name, weight) for name, weight in theirs.named_parameters() if weight.requires_grad)
    peft = {name.removesuffix(".default.weight"): weight for name, weight in learning}
    assert set(own) == set(peft)
    for name, weight in peft.items():
        weight.data.copy_(own[name])

    ratios = []
    for prompt, chosen, rejected in pairs:
        means = []
        for response in (chosen, rejected):
            logp = theirs(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            picked = [logp[len(prompt) - 1 + i, token] for i, token in enumerate(response)]
            means.append(torch.stack(picked).mean())
        ratios.append(METHOD.beta * (means[0] - means[1]) - METHOD.margin)
    expected = -logsigmoid(torch.stack(ratios)).mean()
    expected.backward()

    state = TrainState.fresh(ours, OPTIM, 1)
    store = PairStore.of(pairs)
    context = StepContext(method=METHOD, global_pairs=8, mean_chosen_len=1.0)
    parts = [accumulate(state, store.micro_batch(ids), context)[0] for ids in store.bins(range(8), 60)]
    assert sum(float(loss.per_pair_B.sum()) for loss in parts) / 8 == pytest.approx(expected.item(), abs=1e-6)
    for name, weight in own.items():
        assert weight.grad is not None
        assert float((weight.grad - peft[name].grad).abs().max()) <= 1e-6, name


def test_only_the_adapter_learns(tiny_model: Build, random_pairs: Build) -> None:
    model = adapted(tiny_model, moved=False)
    base = {name: value.clone() for name, value in tiny_model().named_parameters()}
    state = TrainState.fresh(model, OPTIM, 6)
    assert set(state.named_weights()) == {name for name, _ in model.named_parameters() if "lora_" in name}
    seen = losses(state, plan_of(random_pairs))
    assert seen[-1] < seen[0]
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in base.items())
    assert all(after[name].grad is None for name in base)
    assert all(not torch.equal(weight, torch.zeros_like(weight)) for weight in state.weights)


def test_a_new_adapter_changes_nothing_and_follows_its_seed(tiny_model: Build, random_pairs: Build) -> None:
    batches = PairStore.of(random_pairs(4)).evaluation_batches(60)
    before = score_pairs(tiny_model(), batches)
    first, again = adapted(tiny_model, moved=False), adapted(tiny_model, moved=False)
    other = adapted(tiny_model, LoraConfig(rank=4, alpha=6.0, seed=1), moved=False)
    assert torch.equal(score_pairs(first, batches).chosen_sum_B, before.chosen_sum_B)
    drawn = [dict(model.named_parameters())["model.layers.0.mlp.up_proj.lora_A"] for model in (first, again, other)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_redrawn_adapter_is_a_new_one_of_that_seed(tiny_model: Build) -> None:
    model, other = adapted(tiny_model), adapted(tiny_model, LoraConfig(rank=4, alpha=6.0, seed=9), moved=False)
    model.simpo_adapter.redraw(9)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, other.get_parameter(name)), name


def test_other_micro_batches_and_a_reference_method(tiny_model: Build, random_pairs: Build) -> None:
    whole, parts = plan_of(random_pairs, 10_000), plan_of(random_pairs, 30)
    reference = reference_of(tiny_model(), whole)
    seen = [
        losses(TrainState.fresh(adapted(tiny_model), OPTIM, 6), plan, DPO(), reference=reference)
        for plan in (whole, parts)
    ]
    assert seen[0] == pytest.approx(seen[1], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_equals_an_undisturbed_one(
    tiny_model: Build, random_pairs: Build, tmp_path: Path, dtype: torch.dtype
) -> None:
    def model(seed: int) -> Any:
        made = tiny_model().to(dtype)
        add_lora(made, LORA)
        torch.manual_seed(seed)
        return made

    plan, whole = plan_of(random_pairs), []
    state = TrainState.fresh(model(0), OPTIM, 6)
    assert {weight.dtype for weight in state.weights} == {torch.float32}
    for report in fit(state, plan, METHOD):
        whole.append(report.loss)
        if report.step == 3:
            save_checkpoint(tmp_path / "step-3", model=state.model, state=state, servable=False)
    assert not list((tmp_path / "step-3").glob("model*"))
    resumed = restore(tmp_path / "step-3", model(1), OPTIM, 6)
    assert losses(resumed, plan) == whole[3:]
    assert newest_valid(tmp_path) == tmp_path / "step-3"


@oracle
def test_a_servable_checkpoint_is_an_ordinary_model_and_a_peft_adapter(
    tiny_model: Build, random_pairs: Build, tmp_path: Path
) -> None:
    model = adapted(tiny_model)
    base = save_checkpoint(tmp_path / "base", model=tiny_model())
    where = save_checkpoint(tmp_path / "final", model=model)
    manifest = read_manifest(where)
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(manifest["files"])
    assert manifest["lora"]["rank"] == 4
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    model.set_attn_implementation("eager")
    expected = model(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(where)
    assert torch.allclose(merged(ids).logits, expected, atol=1e-6)
    assert set(merged.state_dict()) == set(tiny_model().state_dict())
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), where / ADAPTER)
    assert torch.allclose(theirs(ids).logits, expected, atol=1e-6)


@oracle
def test_an_adapter_written_by_peft_is_read(tiny_model: Build, tmp_path: Path) -> None:
    theirs = get_peft_model(
        tiny_model(attention="eager"),
        PeftConfig(r=4, lora_alpha=6.0, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    theirs.save_pretrained(tmp_path)
    ours = tiny_model(attention="eager")
    add_lora(ours, LORA).load(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-6)


def test_what_does_not_belong_together_is_refused(tiny_model: Build, tmp_path: Path) -> None:
    model = adapted(tiny_model)
    state = TrainState.fresh(model, OPTIM, 4)
    where = save_checkpoint(tmp_path / "a", model=model, state=state, servable=False)
    plain = tiny_model()
    whole = save_checkpoint(tmp_path / "b", model=plain, state=TrainState.fresh(plain, OPTIM, 4))
    with pytest.raises(CheckpointError, match="another base"):
        restore(where, adapted(tiny_model, seed=1), OPTIM, 4)
    with pytest.raises(CheckpointError, match="was trained with lora"):
        restore(where, adapted(tiny_model, LoraConfig(rank=8, alpha=6.0)), OPTIM, 4)
    with pytest.raises(CheckpointError, match="add_lora"):
        restore(where, tiny_model(), OPTIM, 4)
    with pytest.raises(CheckpointError, match="without lora"):
        restore(whole, adapted(tiny_model), OPTIM, 4)
    (where / ADAPTER / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="adapter_model"):
        read_manifest(where)


def test_the_base_is_known_by_its_content_whatever_its_precision(tiny_model: Build) -> None:
    full, half, other = tiny_model(), tiny_model().to(torch.bfloat16), tiny_model(1)
    hashes = [add_lora(model, LORA).base_hash for model in (full, half, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_settings_that_cannot_be_honoured_are_refused(tiny_model: Build) -> None:
    with pytest.raises(ConfigError, match=r"no linear layer named c_attn: use all-linear or some of down_proj"):
        add_lora(tiny_model(), LoraConfig(targets=("q_proj", "c_attn")))
    with pytest.raises(ConfigError, match="an adapter already"):
        add_lora(adapted(tiny_model), LORA)
    for faulty, field in (
        ({"dropout": 0.1}, "dropout"),
        ({"rank": 0}, "rank"),
        ({"alpha": 0.0}, "alpha"),
        ({"targets": ()}, "targets"),
        ({"targets": "q_proj"}, "targets"),
    ):
        with pytest.raises(ConfigError) as caught:
            LoraConfig(**faulty)  # type: ignore[arg-type]
        assert caught.value.field == field
    assert TrainConfig(steps=1, lora=LORA).lora == LORA
