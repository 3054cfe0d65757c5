"""Soups and scaled finalists: weights on disk, recipes in manifests, and finals in which they compete. No Ray."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simpo.checkpoint import read_manifest, save_checkpoint
from simpo.model import load_model, load_tokenizer
from simpo.policy_hash import policy_record
from sweeps.finals import hold_finals
from sweeps.ledger import Ended
from sweeps.mixtures import Mixtures
from sweeps.outcome import Ask, Outcome
from sweeps.prepare import prepare, read_inputs
from sweeps.prepared import Facts
from sweeps.retrainings import Retrained
from sweeps.run_dir import RunDir
from sweeps.spec import SweepSpec
from tests.sweeps.tiny import tiny_base, tiny_spec

NAMES = ("t0", "t1", "t0_r1", "t1_r1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and four models near it: two finalists under two seeds."""
    root = tmp_path_factory.mktemp("mixtures")
    base = tiny_base(root / "base")
    tokenizer = load_tokenizer(base)
    for seed, name in enumerate(NAMES):
        model = load_model(base)
        torch.manual_seed(seed)
        for weight in model.parameters():
            weight.data += 0.02 * torch.randn_like(weight)
        own = {"trial_id": name[:2], "learning_rate": 1e-3, **policy_record(tokenizer, _spec(root).tokens)}
        save_checkpoint(root / name, model=model, tokenizer=tokenizer, manifest=own)
    return root


def _spec(root: Path, **finals: Any) -> SweepSpec:
    return tiny_spec(
        root / "base",
        objective="win_rate",
        constraints={"repetition": "<=1.0"},
        evaluation={"rung_prompts": 6, "max_new_tokens": 4},
        finals={"prompts": 6, **finals},
    )


def _weights(place: str | Path) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in load_model(place).named_parameters()}


def test_mixtures_are_ordinary_checkpoints_with_a_recipe(place: Path, tmp_path: Path) -> None:
    spec = _spec(place, extra=["soup", "scale"], scales=[0.5])
    facts = Facts(spec_hash="", base=str(place / "base"), pairs={}, dropped={}, truncated={}, stop_ids=[])
    first, second = (
        SimpleNamespace(name=f"t{n}", places={0: str(place / f"t{n}"), 1: str(place / f"t{n}_r1")}) for n in (0, 1)
    )
    mixtures = Mixtures(spec, facts, tmp_path / "mixtures")
    made = {name: places for name, _, places in mixtures.made([first, second], second, [0, 1])}
    assert set(made) == {"soup", "scale-0.5"} and set(made["soup"]) == {0, 1}
    base, *tuned = (_weights(place / name) for name in ("base", *NAMES))
    for replicate in (0, 1):
        one, two = tuned[2 * replicate], tuned[2 * replicate + 1]
        for name, weight in _weights(made["soup"][replicate]).items():
            assert torch.allclose(weight, (one[name] + two[name]) / 2, atol=1e-7)
        for name, weight in _weights(made["scale-0.5"][replicate]).items():
            assert torch.allclose(weight, (base[name] + two[name]) / 2, atol=1e-7)
    manifest = read_manifest(made["soup"][1])
    mixture = manifest["mixture"]
    assert (mixture["kind"], mixture["of"], mixture["seed"], len(mixture["sha256"])) == ("soup", ["t0", "t1"], 2, 2)
    assert "tokens" in manifest and "policy_hash" in manifest
    assert not {"trial_id", "learning_rate"} & manifest.keys(), "it is no trial's"
    mixtures.clear(keep=made["scale-0.5"][0])
    assert [path.name for path in (tmp_path / "mixtures").glob("*")] == ["scale-0.5"]
    assert len(list((tmp_path / "mixtures").glob("*/seed-*"))) == 1


def test_a_scoring_judge_chooses_over_seeds_and_mixtures(place: Path) -> None:
    spec = _spec(place, seeds=2, extra=["soup", "scale"], scales=[0.5, 1.25])
    facts = prepare(spec, read_inputs(spec, place / "prepared"), place / "prepared", lambda share, message: None)
    complete = Outcome(state="COMPLETE", step=12, value=0.5)
    finalists = [
        Ended(ask=Ask(number=n, trial_id=f"t{n}", params={}, cutoffs={}), outcome=complete, checkpoint=f"t{n}")
        for n in (0, 1)
    ]
    again = {n: [Retrained(number=n, replicate=1, outcome=complete, checkpoint=f"t{n}_r1")] for n in (0, 1)}
    verdict = hold_finals(
        spec, facts, place / "prepared", RunDir(place), finalists, lambda message, data: None, retrained=again
    )
    assert verdict.contest is not None
    told = verdict.contest.as_dict()
    assert {row["name"] for row in told["rows"]} == {"t0", "t1", "soup", "scale-0.5", "scale-1.25"}
    assert all(row["n"] == 6 and 0.0 <= row["low"] <= row["high"] <= 1.0 for row in told["rows"])
    assert told["winner"] == told["rows"][0]["name"] and verdict.tuned.win_rate is not None
    assert (place / str(verdict.winner.checkpoint) / "manifest.json").exists()
