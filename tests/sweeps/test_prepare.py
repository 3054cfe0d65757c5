"""Splits that do not leak, drops that are counted, the same bytes twice, a base for data of one's own."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from simpo.checkpoint import read_manifest
from simpo.config import TokenPolicy
from simpo.errors import DataError, ModelError
from simpo.records import Message, Preference
from sweeps.prepare import Progress, prepare, read_inputs, read_splits
from sweeps.prepared import Facts, HeldOut, load_facts, load_plan, load_reference, sealed_for
from sweeps.small_base import SmallRecipe, build_small_base
from sweeps.spec import SweepSpec, parse_spec, spec_hash
from tests.sweeps.tiny import tiny_base, tiny_spec


def _silent(share: float, message: str) -> None:
    pass


def _prepare(spec: SweepSpec, directory: Path, progress: Progress = _silent) -> Facts:
    return prepare(spec, read_inputs(spec, directory), directory, progress)


def _rows(n: int, answers: int = 2) -> list[dict[str, Any]]:
    """Every prompt comes `answers` times."""
    return [
        {
            "prompt": [{"role": "user", "content": f"question {i // answers}"}],
            "chosen": [{"role": "assistant", "content": f"good answer {i}"}],
            "rejected": [{"role": "assistant", "content": f"bad {i}"}],
        }
        for i in range(n)
    ]


def _file(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return str(path)


def _own(tmp_path: Path, n: int = 80, **dataset: Any) -> SweepSpec:
    source = _file(tmp_path / "mine.jsonl.gz", _rows(n))
    return parse_spec({"name": "own", "dataset": {"train": source, **dataset}})


def test_no_prompt_is_in_two_splits(tmp_path: Path) -> None:
    splits = read_splits(_own(tmp_path), tmp_path)
    prompts = [{row.prompt for row in rows} for rows in (splits.train, splits.rungs, splits.report)]
    assert sum(map(len, prompts)) == 40
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    assert (len(splits.rungs), len(splits.report)) == (10, 12)
    again = read_splits(_own(tmp_path), tmp_path)
    assert again == splits
    other = read_splits(_own(tmp_path).model_copy(update={"seed": 5}), tmp_path)
    assert other.rungs != splits.rungs


def test_an_evaluation_file_is_used_whole_and_alone(tmp_path: Path) -> None:
    rows = _rows(12)
    rows[3]["chosen"] = rows[3]["rejected"]
    splits = read_splits(_own(tmp_path, eval=_file(tmp_path / "eval.jsonl.gz", rows)), tmp_path)
    assert len(splits.report) == 11
    assert len(splits.train) + len(splits.rungs) == 80
    assert splits.dropped == {"identical_responses": 1}


@pytest.mark.parametrize("n", [2, 4])
def test_too_few_rows_are_refused(tmp_path: Path, n: int) -> None:
    with pytest.raises(DataError, match="too few to set some aside"):
        read_splits(_own(tmp_path, n=n), tmp_path)


def test_everything_is_sealed_and_the_same_twice(tmp_path: Path) -> None:
    spec = tiny_spec(tiny_base(tmp_path / "base"), method="dpo", space={"beta": 0.1})
    told: list[float] = []
    facts = _prepare(spec, tmp_path / "a", lambda share, message: told.append(share))
    _prepare(spec, tmp_path / "b")
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert load_facts(tmp_path / "a") == facts
    assert facts.pairs == {"train": 200, "rungs": 256, "report": 600}
    for name in ("plan.safetensors", "reference.safetensors", "rungs.json", "rungs.safetensors", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    rungs, report = HeldOut.load(tmp_path / "a" / "rungs"), HeldOut.load(tmp_path / "a" / "report")
    assert len(rungs.prompts) == len(rungs.base_scores or []) == len(rungs.reference_lengths) == 8
    assert (len(report.prompts), report.base_scores) == (16, None)
    assert load_plan(tmp_path / "a").num_steps == 12
    assert load_reference(tmp_path / "a") is not None


def test_a_sealed_directory_is_found_by_its_spec(tmp_path: Path) -> None:
    spec = tiny_spec(tiny_base(tmp_path / "base"))
    _prepare(spec, tmp_path / "a")
    (tmp_path / "half").mkdir()
    assert sealed_for(spec_hash(spec), [tmp_path / "none", tmp_path / "half", tmp_path / "a"]) == tmp_path / "a"
    assert sealed_for("other", [tmp_path / "a"]) is None
    assert load_reference(tmp_path / "a") is None, "SimPO needs no reference"


def test_a_policy_that_cuts_keeps_the_pairs_and_counts_them(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    tokens = {"max_length": 32, "truncation": "reference", "max_prompt_length": 20}
    cut = _prepare(tiny_spec(base, tokens=tokens), tmp_path / "cut")
    assert cut.truncated["pairs"] >= cut.truncated["rejected_without_end"] > 0
    assert "too_long" not in cut.dropped
    assert load_facts(tmp_path / "cut") == cut
    assert max(len(prompt) for prompt in HeldOut.load(tmp_path / "cut" / "report").prompts) < 32


def test_what_the_user_must_mend_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model directory at '/nowhere'"):
        read_inputs(tiny_spec(Path("/nowhere")), tmp_path / "a")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt"\n')
    with pytest.raises(DataError, match=r"broken\.jsonl, line 2"):
        read_inputs(parse_spec({"name": "x", "dataset": str(broken)}), tmp_path / "b")
    with pytest.raises(DataError, match="no such file"):
        read_inputs(parse_spec({"name": "x", "dataset": "/nowhere.jsonl"}), tmp_path / "c")


def test_a_small_base_is_made_of_the_chosen_answers(tmp_path: Path) -> None:
    rows = [
        Preference(
            prompt=(Message(role="user", content=f"say {i}"),), chosen=f"well, {i}", rejected=f"no {i}", id=str(i)
        )
        for i in range(40)
    ]
    recipe, losses = SmallRecipe(width=32, mlp_width=64, layers=1, steps=8, batch=8, vocabulary=300), []
    policy = TokenPolicy(max_length=64)

    def build(seed: int = 0) -> Path:
        told = losses.append
        return build_small_base(
            tmp_path / "base",
            rows,
            policy=policy,
            seed=seed,
            recipe=recipe,
            progress=lambda step, total, loss: told(loss),
        )

    first = read_manifest(build())
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert first["tokens"]["max_length"] == 64
    assert read_manifest(build()) == first
    assert len(losses) == 8, "the second call found it made"
    assert read_manifest(build(seed=1))["files"] != first["files"]
