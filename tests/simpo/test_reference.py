"""The reference store: the values of a computation in place, found by content, safe to share and to damage."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from simpo.config import LoraConfig
from simpo.lora import add_lora
from simpo.packing import PackedPlan, PairStore, TokenPair, build_plan
from simpo.reference import Reference, reference_of
from simpo.reference_store import ReferenceStore, scorer_hash
from tests.simpo.tiny import VOCABULARY, random_token_pairs, two_layer_llama

quick = pytest.mark.quick
Build = Callable[..., Any]


def plan_of(pairs: list[TokenPair], *, token_budget: int = 60, chosen_only: bool = False) -> PackedPlan:
    return build_plan(pairs, batch_pairs=4, steps=3, token_budget=token_budget, seed=1, chosen_only=chosen_only)


def shards(store: Path, suffix: str = ".safetensors") -> list[Path]:
    return sorted(store.rglob(f"*{suffix}"))


def assert_equal(ours: Reference, theirs: Reference, atol: float = 0.0) -> None:
    assert torch.allclose(ours.sums_N2, theirs.sums_N2, rtol=atol, atol=atol)
    assert (ours.mismatched_SB2 is None) == (theirs.mismatched_SB2 is None)
    if ours.mismatched_SB2 is not None and theirs.mismatched_SB2 is not None:
        assert torch.allclose(ours.mismatched_SB2, theirs.mismatched_SB2, rtol=atol, atol=atol)


@quick
@pytest.mark.parametrize("chosen_only", [False, True])
def test_a_store_gives_what_is_computed_in_place(tmp_path: Path, chosen_only: bool) -> None:
    plan, model = plan_of(random_token_pairs(12), chosen_only=chosen_only), two_layer_llama()
    sides = 12 * (1 if chosen_only else 2)
    in_place = reference_of(model, plan)
    assert (in_place.cost.hits, in_place.cost.misses) == (0, sides)
    first, second = (reference_of(model, plan, store=tmp_path) for _ in range(2))
    assert_equal(first, in_place)
    assert_equal(second, in_place)
    assert (first.cost.hits, first.cost.misses, first.cost.tokens) == (0, sides, in_place.cost.tokens)
    assert (second.cost.hits, second.cost.misses, second.cost.checked) == (sides, 0, 8)
    assert second.cost.tokens < first.cost.tokens
    assert not first.cost.warnings + second.cost.warnings
    assert len(shards(tmp_path)) == 1, "nothing new, nothing written"
    assert set(first.cost.as_dict()) == {"seconds", "cpu_seconds", "tokens", "hits", "misses", "checked"}


@quick
def test_only_what_is_missing_is_computed(tmp_path: Path) -> None:
    """Other rows, another order, other batches, an answer that was chosen and is now rejected; KTO's pairs too."""
    pairs, model = random_token_pairs(20), two_layer_llama()
    reference_of(model, plan_of(pairs[:12]), store=tmp_path)
    turned = [TokenPair(pair.prompt, pair.rejected, pair.chosen) for pair in reversed(pairs[:12])]
    swapped = reference_of(model, plan_of(turned, token_budget=200), store=tmp_path)
    assert (swapped.cost.hits, swapped.cost.misses) == (24, 0)
    assert_equal(swapped, reference_of(model, plan_of(turned)), atol=1e-6)
    mixed = [TokenPair(pairs[0].prompt, pairs[0].chosen, [5, 6]), *pairs[6:], pairs[19]]
    plan = plan_of(mixed)
    more = reference_of(model, plan, mismatched=True, store=tmp_path)
    assert_equal(more, reference_of(model, plan, mismatched=True), atol=1e-6)
    # One new response beside a known one, 8 new pairs, one of them twice; 3 steps of 4 pairs with the next one's.
    assert more.cost.misses == 1 + 16 + 24
    assert more.cost.hits == 1 + 12 + 2
    again = reference_of(model, plan, mismatched=True, store=tmp_path)
    assert_equal(again, more)
    assert again.cost.misses == 0


def changed_weight(model: Any) -> None:
    with torch.no_grad():
        weight = model.get_parameter("model.layers.1.mlp.up_proj.weight")
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(1.0))


def changed_config(model: Any) -> None:
    model.config.rms_norm_eps *= 2


OTHER_MODELS: dict[str, Callable[[Any], Any]] = {
    "weight": changed_weight,
    "config": changed_config,
    "adapter": lambda model: add_lora(model, LoraConfig(rank=2)),
    "precision": lambda model: model.to(torch.bfloat16),
}
OTHER_IDS: dict[str, Callable[[TokenPair], TokenPair]] = {
    "template": lambda pair: pair._replace(prompt=[7, *pair.prompt]),
    "header": lambda pair: TokenPair(pair.prompt[:-1], *([pair.prompt[-1], *response] for response in pair[1:])),
    "end": lambda pair: TokenPair(pair.prompt, [*pair.chosen[:-1], 1], [*pair.rejected[:-1], 1]),
    "token": lambda pair: pair._replace(prompt=[(pair.prompt[0] + 1) % VOCABULARY, *pair.prompt[1:]]),
}


@quick
@pytest.mark.parametrize("change", [*OTHER_MODELS, *OTHER_IDS])
def test_what_changes_a_value_misses(tmp_path: Path, change: str) -> None:
    pairs = [pair for pair in random_token_pairs(20) if len(pair.prompt) > 1][:6]
    reference_of(two_layer_llama(), plan_of(pairs), store=tmp_path)
    model = two_layer_llama()
    if change in OTHER_MODELS:
        OTHER_MODELS[change](model)
    else:
        pairs = [OTHER_IDS[change](pair) for pair in pairs]
    assert reference_of(model, plan_of(pairs), store=tmp_path).cost.hits == 0


@quick
def test_where_a_model_came_from_does_not_matter(tmp_path: Path) -> None:
    model, same = two_layer_llama(), two_layer_llama()
    same.config._name_or_path = "elsewhere"
    assert scorer_hash(model) == scorer_hash(same) != scorer_hash(two_layer_llama(seed=1))


@quick
def test_a_damaged_shard_is_passed_over_and_filled_again(tmp_path: Path) -> None:
    plan, model = plan_of(random_token_pairs(12)), two_layer_llama()
    right = reference_of(model, plan, store=tmp_path)
    (shard,) = shards(tmp_path)
    whole = shard.read_bytes()
    for damaged in (whole[:50], whole[:-9], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], b""):
        shard.write_bytes(damaged)
        again = reference_of(model, plan, store=tmp_path)
        assert_equal(again, right)
        assert again.cost.misses == 24
        (warning,) = again.cost.warnings
        assert shard.name in warning and "computed again" in warning
        (filled,) = set(shards(tmp_path)) - {shard}
        assert reference_of(model, plan, store=tmp_path).cost.misses == 0
        filled.unlink()


@quick
def test_wrong_values_are_found_out_and_refused(tmp_path: Path) -> None:
    plan, model = plan_of(random_token_pairs(12)), two_layer_llama()
    right = reference_of(model, plan, mismatched=True, store=tmp_path)
    (shard,) = shards(tmp_path)
    store = ReferenceStore(tmp_path, scorer_hash(model))
    entries = load_file(shard)
    shard.unlink()
    for key, value, count in zip(entries["keys"], entries["sums"], entries["counts"], strict=True):
        store.put(key.tobytes(), float(value) + 0.01, int(count))
    store.close()
    again = reference_of(model, plan, mismatched=True, store=tmp_path)
    assert_equal(again, right)
    (warning,) = again.cost.warnings
    assert "8 of 8 values" in warning and "by up to 0.01 nats" in warning
    assert len(shards(tmp_path, ".refused")) == 1
    clean = reference_of(model, plan, mismatched=True, store=tmp_path)
    assert_equal(clean, right)
    assert (clean.cost.misses, clean.cost.warnings) == (0, ())


@quick
def test_the_last_digits_of_other_batches_are_no_reason_to_refuse(tmp_path: Path) -> None:
    pairs = random_token_pairs(12, longest=30)
    for dtype in (torch.float32, torch.bfloat16):
        model = two_layer_llama().to(dtype)
        reference_of(model, plan_of(pairs, token_budget=10_000), store=tmp_path)
        for seed in range(2):
            again = reference_of(model, plan_of(pairs, token_budget=1), store=tmp_path, seed=seed)
            assert again.cost.warnings == ()


@quick
def test_a_store_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    plan, model = plan_of(random_token_pairs(6)), two_layer_llama()
    got = reference_of(model, plan, store=tmp_path / "file")
    assert_equal(got, reference_of(model, plan))
    (warning,) = got.cost.warnings
    assert "cannot be written" in warning
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@quick
def test_sums_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, "ab" * 32)
    store.put(b"x" * 32, float("nan"), 3)
    store.close()
    assert shards(tmp_path) == []


@quick
def test_a_count_must_fit(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, "ab" * 32)
    store.put(b"x" * 32, -1.5, 3)
    keys = np.frombuffer(b"x" * 32, dtype=np.uint8).reshape(1, 32)
    for reader in (store, store):
        assert [reader.get(keys, np.asarray([count]))[0][0] for count in (3, 4)] == [True, False]
        store.close()
        store = ReferenceStore(tmp_path, "ab" * 32)


@quick
def test_the_marked_responses_of_a_pair_store() -> None:
    pairs = PairStore.of([TokenPair([1], [2, 3], [4]), TokenPair([5], [6], [7, 8]), TokenPair([9], [10], [11])])
    part = pairs.only(np.asarray([[True, True], [False, True], [False, False]]))
    assert [tuple(each.tolist() for each in parts) for parts in part.parts()] == [([1], [2, 3], [4]), ([5], [7, 8], [])]


def fill(directory: str, seed: int) -> None:
    torch.set_num_threads(1)
    for first in range(0, 12, 2):
        pairs = random_token_pairs(16)[first : first + 4 + seed]
        plan = build_plan(pairs, batch_pairs=2, steps=1, token_budget=60, seed=seed)
        assert reference_of(two_layer_llama(), plan, store=directory).cost.warnings == ()


def test_many_writers_at_once_leave_a_sound_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill, args=(str(tmp_path), seed)) for seed in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    assert list(tmp_path.rglob(".*.partial")) == []
    plan = plan_of(random_token_pairs(16)[:14])
    got = reference_of(two_layer_llama(), plan, store=tmp_path)
    assert (got.cost.misses, got.cost.warnings) == (0, ())
    assert_equal(got, reference_of(two_layer_llama(), plan), atol=1e-6)


@quick
def test_an_entry_of_the_old_hash_is_not_believed(tmp_path: Path) -> None:
    """A shard whose numbers were edited, without its hash."""
    plan, model = plan_of(random_token_pairs(6)), two_layer_llama()
    reference_of(model, plan, store=tmp_path)
    (shard,) = shards(tmp_path)
    save_file(load_file(shard), shard)
    got = reference_of(model, plan, store=tmp_path)
    assert got.cost.misses == 12
    assert "differs from its hash" in got.cost.warnings[0]


@quick
def test_another_order_has_mismatched_pairs_of_its_own() -> None:
    plan, model = plan_of(random_token_pairs(12)), two_layer_llama()
    other = plan.replicate(1, 1)
    known = reference_of(model, plan, mismatched=True)
    assert_equal(known.reordered(model, other), reference_of(model, other, mismatched=True), 1e-5)
    plain = reference_of(model, plan)
    assert plain.reordered(model, other) is plain, "pairs keep their values"
