"""One evaluation on real, tiny models and a real judge endpoint; no Ray. Its life as a job is in tests/e2e."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from simpo.checkpoint import save_checkpoint
from simpo.errors import SimPOError
from simpo.model import load_model, load_tokenizer
from sweeps.__main__ import main
from sweeps.evaluate import looks_of, run_evaluation
from sweeps.evaluation_spec import EvaluationSpec, evaluation_hash, parse_evaluation
from sweeps.gates import FIGURES
from sweeps.run_dir import AttemptClaimed, RunDir, read_heartbeat, read_journal, read_result
from sweeps.store import open_store
from sweeps.trees import push_tree
from sweeps.working_copy import open_run
from tests.sweeps.judge_server import judge_server, parts
from tests.sweeps.s3_double import S3Double
from tests.sweeps.test_judged_finals import GOOD, PREFERS_LONGER
from tests.sweeps.tiny import tiny_base, tiny_spec

LOOSE: dict[str, str | None] = {
    "win_rate": ">0.5",
    "capability": ">=-1",
    **dict.fromkeys(("length_ratio", "repetition", "eos_rate", "empty_rate"), None),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base, and two models that differ from it a little."""
    root = tmp_path_factory.mktemp("models")
    base = tiny_base(root / "base")
    for name, seed in (("candidate", 1), ("champion", 2)):
        torch.manual_seed(seed)
        model = load_model(base)
        for weight in model.parameters():
            weight.data += 0.02 * torch.randn_like(weight)
        save_checkpoint(root / name, model=model, tokenizer=load_tokenizer(base))
    return {name: str(root / name) for name in ("base", "candidate", "champion")}


def spec_of(models: dict[str, str], judge: Any, *, champion: bool = True, **gate: Any) -> EvaluationSpec:
    rival = "champion" if champion else "base"
    sweep = tiny_spec(
        Path(models["base"]), judge=judge, constraints={}, evaluation={"rung_prompts": 8, "max_new_tokens": 6}
    )
    body: dict[str, Any] = {name: {"path": models[name], "label": name} for name in ("base", "candidate")}
    body |= {"name": "look", "reference": {"path": models[rival], "label": rival}, "against": rival}
    gate = {"prompts": 20, "max_prompts": 50, "conditions": LOOSE, **gate}
    return parse_evaluation({**body, "sweep": sweep.model_dump(mode="json"), "gate": gate})


def run(spec: EvaluationSpec, root: Path) -> tuple[RunDir, dict[str, Any]]:
    directory = RunDir(root)
    directory.write_spec(spec.model_dump(mode="json"))
    return directory, run_evaluation(directory)


def endpoint(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "openai", "url": url, "model": "judge", "max_requests": 800, "concurrency": 16, **more}


def test_an_open_gate_buys_more_prompts_up_to_the_cap_and_pays_once(models: dict[str, str], tmp_path: Path) -> None:
    with judge_server(GOOD) as server:
        spec = spec_of(models, endpoint(server.url))
        directory, result = run(spec, tmp_path / "run")
        asked = [parts(body) for body in server.bodies]
    evidence, attempt = result["evidence"], directory.attempt(1)
    assert result == read_result(attempt) and result["spec_hash"] == evaluation_hash(spec)
    assert (evidence["state"], evidence["source"], evidence["reference"]) == ("VALID", "evaluation", "champion")
    assert set(evidence["figures"]) == set(FIGURES), "everything is measured, whatever the gate asks"
    looks = [r["data"]["prompts"] for r in read_journal(attempt) if r["type"] == "eval.completed"]
    assert looks == [20, 40, 50] and evidence["prompts"] == 50, "neither model knows anything: it stays open"
    assert result["decision"]["state"] == "INCONCLUSIVE"
    assert evidence["level"] == pytest.approx(1 - 0.05 / 3), "three planned looks share one error"
    assert evidence["figures"]["win_rate"]["n"] == 50 and len(asked) == len(set(asked)), "nothing is asked twice"
    records = read_journal(attempt)
    assert [records[0]["type"], records[-1]["type"]] == ["job.started", "job.finished"]
    assert read_heartbeat(attempt) is not None
    with pytest.raises(AttemptClaimed):
        run_evaluation(directory, number=1)


def test_a_naive_judge_is_found_out_at_the_first_look(models: dict[str, str], tmp_path: Path) -> None:
    with judge_server(PREFERS_LONGER) as server:
        _, result = run(spec_of(models, endpoint(server.url), conditions={**LOOSE, "win_rate": ">0"}), tmp_path / "run")
    assert (result["decision"]["state"], result["evidence"]["looks"]) == ("FAIL", 1)
    assert any("control padded" in reason for reason in result["decision"]["reasons"])
    assert result["evidence"]["figures"]["win_rate"]["n"] == 20, "the figure is kept, and not believed"


def test_without_a_judge_pairs_and_a_capability_set_decide(models: dict[str, str], tmp_path: Path) -> None:
    items = tmp_path / "set.jsonl"
    items.write_text("".join(json.dumps({"prompt": f"Next: {n}", "answer": str(n + 1)}) + "\n" for n in range(12, 20)))
    rules = {**LOOSE, "win_rate": None, "accuracy_gain": ">=-1", "capability": ">=-1"}
    spec = spec_of(models, None, champion=False, conditions=rules, capability=str(items))
    _, result = run(spec, tmp_path / "run")
    evidence = result["evidence"]
    assert result["decision"]["state"] == "PASS", result["decision"]["reasons"]
    assert "win_rate" not in evidence["figures"] and evidence["judge"] is None
    assert evidence["figures"]["capability"]["n"] == 8 and evidence["figures"]["capability"]["estimate"] == 0.0
    assert evidence["looks"] == 1, "what does not depend on prompts buys none"
    again = run(spec, tmp_path / "again")[1]
    assert again["evidence"] == evidence, "the same evaluation, the same evidence"


def test_what_cannot_be_evaluated_is_told_in_the_journal(models: dict[str, str], tmp_path: Path) -> None:
    broken = {**models, "champion": str(tmp_path / "nowhere")}
    directory = RunDir(tmp_path / "run")
    directory.write_spec(spec_of(broken, "practice").model_dump(mode="json"))
    with pytest.raises(SimPOError, match="nowhere"):
        run_evaluation(directory)
    last = read_journal(directory.attempt(1))[-1]
    assert (last["type"], last["data"]["class"]) == ("job.failed", "USER_ERROR")


def test_from_the_command_line(models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_of(models, "practice", champion=False, prompts=20, max_prompts=20)
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(tmp_path / "spec.json"), "--out", str(tmp_path / "out")])
    assert left.value.code == 0
    assert "win_rate" in capsys.readouterr().out
    (tmp_path / "spec.json").write_text(spec.model_dump_json().replace('">0.5"', '"0.5"'))
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(tmp_path / "spec.json"), "--out", str(tmp_path / "other")])
    assert left.value.code == 2 and "gate.conditions.win_rate" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_in_a_bucket_of_what_lies_there(
    models: dict[str, str], s3: S3Double, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, out = f"s3://{s3.bucket()}/sweeps/swp_1", f"s3://{s3.bucket()}/look"
    push_tree(open_store(sweep), "attempts/1/prepared/base", Path(models["base"]))
    push_tree(open_store(sweep), "attempts/1/trials/trl_0001/final", Path(models["candidate"]))
    fetched = {"base": f"{sweep}/attempts/1/prepared/base", "candidate": f"{sweep}/attempts/1/trials/trl_0001/final"}
    rules = {**LOOSE, "win_rate": None, "capability": None, "accuracy_gain": ">=-1"}
    here = spec_of(models, None, champion=False, conditions=rules, prompts=20, max_prompts=20)
    body = here.model_dump(mode="json")
    for name in ("base", "candidate"):
        body[name]["path"] = fetched[name]
    body["reference"]["path"] = fetched["base"]
    (tmp_path / "spec.json").write_text(json.dumps(body))
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(tmp_path / "spec.json"), "--out", out, "--copies", str(tmp_path / "copies")])
    assert left.value.code == 0, capsys.readouterr().err
    result = read_result(open_run(out, tmp_path / "elsewhere").attempt(1))
    assert result is not None and result["evidence"] == run(here, tmp_path / "run")[1]["evidence"]
    body["sweep"]["judge"] = endpoint("http://127.0.0.1:1/v1")
    (tmp_path / "spec.json").write_text(json.dumps(body))
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(tmp_path / "spec.json"), "--out", f"{out}-2", "--copies", str(tmp_path / "copies")])
    assert left.value.code == 2 and "an endpoint's answers are kept in a database file" in capsys.readouterr().err


@pytest.mark.quick
def test_looks_double_until_the_cap() -> None:
    assert looks_of(400, 1600) == [400, 800, 1600]
    assert looks_of(400, 1000) == [400, 800, 1000]
    assert looks_of(400, 100) == [100]
