"""The packed step equals an unshared, unpadded reference; equivalent runs give equal trajectories."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from simpo.attention import PairLayout
from simpo.checkpoint import restore, save_checkpoint
from simpo.config import OptimConfig
from simpo.errors import ConfigError, DataError, NonFiniteStep
from simpo.fit import StepContext, TrainState, accumulate, fit
from simpo.methods import DPO, KTO, METHODS, SFT, SimPO, method_from_dict
from simpo.optim import learning_rate
from simpo.packing import PackedPlan, PairStore, TokenPair, build_plan
from simpo.reference import Reference, reference_of
from simpo.scores import score_pairs

pytestmark = pytest.mark.quick
OPTIM = OptimConfig(learning_rate=2e-3)
METHOD = SimPO(beta=2.0, gamma_beta_ratio=0.5)
Build = Callable[..., Any]


def unshared_sum(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Sum of a response's log-probabilities, one sequence at a time, no packing, no tiles."""
    logp = model(torch.tensor([prompt + response])).logits[0].float().log_softmax(-1)
    return torch.stack([logp[len(prompt) - 1 + i, token] for i, token in enumerate(response)]).sum()


def run(model: Any, plan: PackedPlan, method: Any = METHOD, **kwargs: Any) -> list[float]:
    state = TrainState.fresh(model, OPTIM, plan.num_steps)
    return [report.loss for report in fit(state, plan, method, **kwargs)]


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_every_gradient_equal_the_unshared_reference(
    tiny_model: Build, random_pairs: Build, tied: bool
) -> None:
    pairs = random_pairs(10)
    packed, plain = tiny_model(tied=tied), tiny_model(tied=tied, attention="eager")
    ratios = []
    for pair in pairs:
        chosen = unshared_sum(plain, pair.prompt, pair.chosen) / len(pair.chosen)
        rejected = unshared_sum(plain, pair.prompt, pair.rejected) / len(pair.rejected)
        ratios.append(METHOD.beta * (chosen - rejected) - METHOD.margin)
    expected = -logsigmoid(torch.stack(ratios)).mean()
    expected.backward()
    state = TrainState.fresh(packed, OPTIM, 1)
    store = PairStore.of(pairs)
    context = StepContext(method=METHOD, global_pairs=10, mean_chosen_len=1.0)
    total = 0.0
    for ids in store.bins(range(10), 40):
        loss, _ = accumulate(state, store.micro_batch(ids), context)
        total += float(loss.per_pair_B.sum()) / 10
    assert total == pytest.approx(expected.item(), abs=1e-6)
    for (name, ours), (_, theirs) in zip(packed.named_parameters(), plain.named_parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm(), name


@pytest.mark.parametrize(
    ("lengths", "tiles"),
    [((20, 30, 10), 1), ((70, 90, 110), 3), ((200, 150, 40), 4), ((9, 330, 340), 6), ((128, 128, 128), 3)],
)
def test_every_way_to_compute_a_pair_gives_the_same_gradients(
    tiny_model: Build, lengths: tuple[int, int, int], tiles: int
) -> None:
    rng = np.random.default_rng(0)
    pair = TokenPair(*(rng.integers(3, 97, n).tolist() for n in lengths))
    packed, plain = tiny_model(longest=1024), tiny_model(longest=1024, attention="eager")
    batch = PairStore.of([pair]).micro_batch([0])
    assert len(PairLayout.of(batch, torch.device("cpu")).tiles) == tiles
    state = TrainState.fresh(packed, OPTIM, 1)
    loss, sums_2B = accumulate(state, batch, StepContext(method=METHOD, global_pairs=1, mean_chosen_len=1.0))
    chosen, rejected = unshared_sum(plain, pair.prompt, pair.chosen), unshared_sum(plain, pair.prompt, pair.rejected)
    expected = -logsigmoid(METHOD.beta * (chosen / lengths[1] - rejected / lengths[2]) - METHOD.margin)
    expected.backward()
    assert sums_2B.tolist() == pytest.approx([chosen.item(), rejected.item()], rel=1e-6)
    assert loss.per_pair_B.item() == pytest.approx(expected.item(), rel=5e-6)
    for (name, ours), (_, theirs) in zip(packed.named_parameters(), plain.named_parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm(), name


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1000), st.integers(1, 60))
def test_packing_never_changes_a_score(tiny_model: Build, random_pairs: Build, seed: int, budget: int) -> None:
    pairs, model = random_pairs(6, seed), tiny_model()
    scores = score_pairs(model, PairStore.of(pairs).evaluation_batches(budget))
    plain = tiny_model(attention="eager")
    with torch.no_grad():
        for i, pair in enumerate(pairs):
            assert float(scores.chosen_sum_B[i]) == pytest.approx(
                float(unshared_sum(plain, pair.prompt, pair.chosen)), abs=2e-5
            )
            assert float(scores.rejected_sum_B[i]) == pytest.approx(
                float(unshared_sum(plain, pair.prompt, pair.rejected)), abs=2e-5
            )
    assert scores.chosen_len_B.tolist() == [len(pair.chosen) for pair in pairs]


def test_log_probabilities_are_float32_even_when_the_model_is_bfloat16(tiny_model: Build, random_pairs: Build) -> None:
    batches = PairStore.of(random_pairs(20)).evaluation_batches(100)
    half = tiny_model().to(torch.bfloat16)
    exact = score_pairs(tiny_model(), batches)
    ours = score_pairs(half, batches)
    assert ours.chosen_sum_B.dtype == torch.float32
    assert float((ours.chosen_mean_B - exact.chosen_mean_B).abs().max()) < 0.02
    assert abs(float((ours.chosen_mean_B - exact.chosen_mean_B).mean())) < 2e-3  # no bias


@pytest.mark.parametrize("name", sorted(METHODS))
def test_other_micro_batches_give_the_same_trajectory(tiny_model: Build, random_pairs: Build, name: str) -> None:
    method = method_from_dict({"name": name})
    pairs = random_pairs(16)
    plans = [build_plan(pairs, batch_pairs=8, steps=5, token_budget=budget, seed=1) for budget in (10_000, 50, 1)]
    reference = reference_of(tiny_model(), plans[0], mismatched=True)
    whole, parts, single = (run(tiny_model(), plan, method, reference=reference) for plan in plans)
    assert parts == pytest.approx(whole, rel=1e-6, abs=1e-6)
    assert single == pytest.approx(whole, rel=1e-6, abs=1e-6)
    assert len(set(whole)) == 5


def test_a_chosen_only_plan_trains_sft_to_the_same_loss(tiny_model: Build, random_pairs: Build) -> None:
    pairs = random_pairs(16)
    full, short = (
        build_plan(pairs, batch_pairs=8, steps=4, token_budget=90, seed=1, chosen_only=only) for only in (False, True)
    )
    assert run(tiny_model(), short, SFT()) == pytest.approx(run(tiny_model(), full, SFT()), abs=1e-6)
    assert short.step(0)[0].num_tokens < full.step(0)[0].num_tokens + full.step(0)[0].num_pairs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_equals_an_undisturbed_one(
    tiny_model: Build, random_pairs: Build, tmp_path: Path, dtype: torch.dtype
) -> None:
    plan = build_plan(random_pairs(16), batch_pairs=8, steps=6, token_budget=60, seed=1)
    model = tiny_model().to(dtype)
    state = TrainState.fresh(model, OPTIM, 6)
    losses = []
    for report in fit(state, plan, METHOD):
        losses.append(report.loss)
        if report.step == 3:
            save_checkpoint(tmp_path / "step-3", model=model, state=state)
    again = tiny_model(seed=9).to(dtype)
    resumed = [r.loss for r in fit(restore(tmp_path / "step-3", again, OPTIM, 6), plan, METHOD)]
    assert resumed == losses[3:]


def test_training_raises_the_margin_of_what_it_sees(tiny_model: Build, random_pairs: Build) -> None:
    plan = build_plan(random_pairs(8), batch_pairs=8, steps=30, token_budget=200, seed=0)
    reports = list(fit(TrainState.fresh(tiny_model(), OPTIM, 30), plan, METHOD))
    assert reports[-1].accuracy == 1.0
    assert reports[-1].margin > reports[0].margin + 1.0
    assert reports[-1].loss < reports[0].loss
    assert [report.step for report in reports] == list(range(1, 31))


def test_a_loss_that_is_not_finite_never_moves_the_weights(tiny_model: Build, random_pairs: Build) -> None:
    plan = build_plan(random_pairs(8), batch_pairs=8, steps=2, token_budget=200, seed=0)
    model = tiny_model()
    broken = next(model.parameters())
    with torch.no_grad():
        broken[5, 0] = float("inf")
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(NonFiniteStep, match="step 1"):
        run(model, plan)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_stop_ends_the_run_before_the_next_step(tiny_model: Build, random_pairs: Build) -> None:
    plan = build_plan(random_pairs(8), batch_pairs=4, steps=10, token_budget=200, seed=0)
    answers = iter([False, False, True])
    assert len(run(tiny_model(), plan, stop=lambda: next(answers))) == 2


def test_what_does_not_fit_together_is_refused(tiny_model: Build, random_pairs: Build) -> None:
    plan = build_plan(random_pairs(8), batch_pairs=4, steps=2, token_budget=200, seed=0)
    with pytest.raises(ConfigError, match="reference"):
        run(tiny_model(), plan, DPO())
    with pytest.raises(ConfigError, match="mismatched"):
        run(tiny_model(), plan, KTO(), reference=reference_of(tiny_model(), plan))
    with pytest.raises(ConfigError, match="longer plan"):
        next(fit(TrainState.fresh(tiny_model(), OPTIM, 3), plan, METHOD))
    with pytest.raises(ConfigError, match="only 8 pairs"):
        build_plan(random_pairs(8), batch_pairs=9, steps=1, token_budget=10, seed=0)
    with pytest.raises(DataError, match="no usable pairs"):
        build_plan([], batch_pairs=1, steps=1, token_budget=10, seed=0)
    with pytest.raises(DataError, match="empty"):
        PairStore.of([TokenPair([1], [2], [])])


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.integers(1, 80), st.integers(0, 50))
def test_bins_hold_every_pair_once_within_the_budget(
    random_pairs: Build, count: int, budget: int, seed: int
) -> None:
    store = PairStore.of(random_pairs(count, seed))
    bins = store.bins(range(count), budget)
    assert sorted(pair for ids in bins for pair in ids) == list(range(count))
    totals = store.lengths_N3.sum(axis=1)
    assert all(sum(totals[ids]) <= budget or len(ids) == 1 for ids in bins)
    assert bins == store.bins(range(count), budget)


def test_a_plan_covers_whole_epochs_and_survives_the_disk(random_pairs: Build, tmp_path: Path) -> None:
    plan = build_plan(random_pairs(12), batch_pairs=4, steps=6, token_budget=40, seed=3)
    assert sorted(plan.order_SB[:3].reshape(-1)) == list(range(12))
    plan.save(tmp_path / "plan.safetensors")
    again = PackedPlan.load(tmp_path / "plan.safetensors")
    assert np.array_equal(again.order_SB, plan.order_SB)
    for ours, theirs in zip(again.step(4), plan.step(4), strict=True):
        assert torch.equal(ours.input_ids_T, theirs.input_ids_T)
        assert ours.segments == theirs.segments
    shares = [plan.step(0, rank=rank, world_size=2) for rank in (0, 1)]
    assert sum(batch.num_pairs for share in shares for batch in share) == 4


def test_a_replicate_is_the_same_pairs_in_another_order(random_pairs: Build) -> None:
    plan = build_plan(random_pairs(10), batch_pairs=4, steps=5, token_budget=64, seed=3)
    first, second = plan.replicate(3, 1), plan.replicate(3, 2)
    orders = [each.order_SB.reshape(-1).tolist() for each in (plan, first, second)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert all(sorted(order[:10]) == list(range(10)) == sorted(order[10:]) for order in orders), "epoch after epoch"
    assert first.order_SB.shape == plan.order_SB.shape and first.pairs is plan.pairs
    assert plan.replicate(3, 1).order_SB.tolist() == first.order_SB.tolist() != plan.replicate(4, 1).order_SB.tolist()


def test_the_tables_of_a_micro_batch() -> None:
    batch = PairStore.of([TokenPair([1, 2], [3, 4, 5], [6, 7]), TokenPair([8], [9], [10, 11])]).micro_batch([0, 1])
    assert batch.input_ids_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert batch.position_ids_T.tolist() == [0, 1, 2, 3, 4, 2, 3, 0, 1, 1, 2]
    assert batch.source_S.tolist() == [1, 2, 3, 1, 5, 7, 7, 9]
    assert batch.target_S.tolist() == [3, 4, 5, 6, 7, 9, 10, 11]
    assert batch.owner_S.tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    assert batch.lengths_2B.tolist() == [3, 2, 1, 2]


def test_reference_sums_survive_the_disk(tiny_model: Build, random_pairs: Build, tmp_path: Path) -> None:
    plan = build_plan(random_pairs(5), batch_pairs=4, steps=2, token_budget=30, seed=0)
    reference = reference_of(tiny_model(), plan, mismatched=True)
    reference.save(tmp_path / "reference.safetensors")
    again = Reference.load(tmp_path / "reference.safetensors")
    assert torch.equal(again.sums_of((3, 1)), reference.sums_of((3, 1)))
    assert again.sums_of((3, 1)).shape == (4,)
    assert again.mismatched_SB2 is not None and again.mismatched_SB2.shape == (2, 4, 2)
    assert not torch.equal(again.mismatched_SB2[0, :, 0], reference.sums_N2[plan.order_SB[0], 0])


def test_schedules() -> None:
    wsd = OptimConfig(learning_rate=1.0, schedule="wsd", warmup_fraction=0.2, decay_fraction=0.4)
    assert [round(learning_rate(wsd, step, 10), 4) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    cosine = OptimConfig(learning_rate=1.0, schedule="cosine", warmup_fraction=0.0)
    assert [round(learning_rate(cosine, step, 4), 4) for step in range(4)] == [1.0, 0.8536, 0.5, 0.1464]
    constant = OptimConfig(learning_rate=0.3, schedule="constant", warmup_fraction=0.0)
    assert {learning_rate(constant, step, 4) for step in range(4)} == {0.3}
