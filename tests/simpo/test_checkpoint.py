"""A checkpoint is whole or it is refused; what wrote it can be read by anybody."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from simpo.checkpoint import MANIFEST, newest_valid, read_manifest, restore, save_checkpoint
from simpo.config import OptimConfig
from simpo.errors import CheckpointError, ModelError, StorageError
from simpo.fit import TrainState
from simpo.generate import generate
from simpo.model import check_supported, load_model, load_tokenizer, num_parameters

pytestmark = pytest.mark.quick
Build = Callable[..., Any]


class Digits:
    """Stands in for a tokenizer: decodes ids as numbers."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(map(str, ids))


@pytest.fixture
def saved(tiny_model: Build, tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "model", model=tiny_model(), manifest={"method": {"name": "sft"}})


def test_the_manifest_names_every_file_and_keeps_what_it_was_given(saved: Path) -> None:
    manifest = read_manifest(saved)
    assert set(manifest["files"]) == {path.name for path in saved.iterdir()} - {MANIFEST}
    assert manifest["method"] == {"name": "sft"}
    assert not list(saved.parent.glob(".*partial*"))


def test_transformers_alone_reads_the_weights(saved: Path, tiny_model: Build) -> None:
    again = AutoModelForCausalLM.from_pretrained(saved)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), tiny_model().parameters(), strict=True))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / MANIFEST).unlink(), "not a finished checkpoint"),
        (lambda d: (d / MANIFEST).write_text("{"), "not JSON"),
        (lambda d: (d / MANIFEST).write_text(json.dumps({"format": "other"})), "format 'other'"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x"), "model.safetensors is missing or differs"),
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "pytorch_model.bin").write_bytes(b"pickle"), "does not know: pytorch_model.bin"),
    ],
)
def test_a_damaged_one_is_refused_and_passed_over(saved: Path, tiny_model: Build, damage: Any, words: str) -> None:
    newer = save_checkpoint(saved.parent / "newer", model=tiny_model(), manifest={"step": 5})
    assert newest_valid(saved.parent) == newer
    damage(newer)
    with pytest.raises(CheckpointError, match=words):
        read_manifest(newer)
    assert newest_valid(saved.parent) == saved


def test_a_disk_that_cannot_be_written_is_named_and_nothing_half_written_stays(
    tmp_path: Path, tiny_model: Build
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="check space and permissions"):
        save_checkpoint(tmp_path / "file" / "newest", model=tiny_model())
    taken = tmp_path / "taken"
    taken.touch()  # a file, where the finished directory is to go
    with pytest.raises(StorageError, match="taken: cannot be written"):
        save_checkpoint(taken, model=tiny_model())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


def test_no_directory_means_no_checkpoint(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "nothing") is None


def test_a_checkpoint_without_optimiser_state_is_not_resumed(saved: Path, tiny_model: Build) -> None:
    with pytest.raises(CheckpointError, match="served, not resumed"):
        restore(saved, tiny_model(), OptimConfig(learning_rate=1e-3), 4)


def test_saving_again_replaces_the_older_one(saved: Path, tiny_model: Build) -> None:
    state = TrainState.fresh(tiny_model(), OptimConfig(learning_rate=1e-3), 4)
    state.step = 2
    save_checkpoint(saved, model=state.model, state=state)
    assert read_manifest(saved)["step"] == 2


@pytest.mark.parametrize("source", ["/no/such/model", "./missing", "a/b/c", "plainword"])
def test_a_missing_model_is_one_sentence_without_a_network_call(source: str) -> None:
    with pytest.raises(ModelError, match="no model directory") as caught:
        load_model(source)
    assert caught.value.field == "base_model"
    with pytest.raises(ModelError, match="no model directory"):
        load_tokenizer(source)


def test_a_directory_without_a_model_or_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model can be read"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="no tokenizer can be read"):
        load_tokenizer(tmp_path)


def test_pickled_weights_are_refused(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(ModelError, match="weights"):
        load_model(saved)


def test_architectures_and_terms_outside_the_step_are_refused_by_name(tiny_model: Build) -> None:
    with pytest.raises(ModelError, match="gpt2"):
        check_supported(GPT2Config())
    config = tiny_model().config
    config.final_logit_softcapping = 30.0
    with pytest.raises(ModelError, match="final_logit_softcapping"):
        check_supported(config)


def test_tied_parameters_count_once(tiny_model: Build) -> None:
    assert num_parameters(tiny_model(tied=False)) - num_parameters(tiny_model(tied=True)) == 97 * 32


def test_generation_is_seeded_ordered_and_leaves_the_model_as_it_was(tiny_model: Build) -> None:
    model = tiny_model()
    prompts = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14]]
    settings: Any = {"max_new_tokens": 12, "stop_ids": [1, 2], "seed": 4}
    answers = generate(model, Digits(), prompts, **settings)
    assert answers == generate(model, Digits(), prompts, **settings)
    assert answers != generate(model, Digits(), prompts, **{**settings, "seed": 5})
    assert model.training
    assert model.config._attn_implementation == "simpo_pair"
    for answer in answers:
        ended = answer.token_ids[-1] in (1, 2)
        assert answer.finish_reason == ("stop" if ended else "length")
        assert len(answer.text.split()) == len(answer.token_ids) - ended


def test_greedy_generation_does_not_depend_on_the_batch(tiny_model: Build) -> None:
    model, prompts = tiny_model(), [[5, 6, 7], [8], [9, 10]]
    together = generate(model, Digits(), prompts, max_new_tokens=8, stop_ids=[1], temperature=0.0)
    alone = [generate(model, Digits(), [p], max_new_tokens=8, stop_ids=[1], temperature=0.0)[0] for p in prompts]
    assert together == alone
