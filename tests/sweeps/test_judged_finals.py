"""Finals under a judge behind an endpoint, on real models and a real server; no Ray."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForSequenceClassification

from simpo.checkpoint import save_checkpoint
from simpo.evaluation.verdicts import Comparison
from simpo.model import load_model, load_tokenizer
from simpo.practice_task import score
from sweeps.finals import hold_finals
from sweeps.gates import decide
from sweeps.judges import RECORD, JudgeAccess, check_judges, pairwise_judge
from sweeps.judges_http import JudgeError
from sweeps.judges_spec import MIN_REQUESTS
from sweeps.ledger import Ended
from sweeps.prepare import prepare, read_inputs
from sweeps.prepared import Facts
from sweeps.run_dir import RunDir
from sweeps.spec import SweepSpec
from sweeps.study import Ask, Outcome
from tests.sweeps.judge_server import JudgeServer, by_score, judge_server
from tests.sweeps.tiny import tiny_base, tiny_spec

SETTINGS: dict[str, Any] = {"type": "openai", "model": "judge", "max_requests": 600, "attempts": 2, "concurrency": 16}


def _taste(instruction: str, answer: str) -> float:
    """Right answers first; of wrong ones, a fixed taste that has nothing to do with length."""
    taste = int.from_bytes(hashlib.sha256(answer.encode()).digest()[:2]) / 2**16
    return 10 * (score(instruction, answer) or 0.0) + taste


GOOD = by_score(_taste)
PREFERS_LONGER = by_score(lambda instruction, answer: len(answer))


class Stage:
    """A prepared tiny sweep with two finalists."""

    def __init__(self, root: Path) -> None:
        self.run = RunDir(root)
        self.base = tiny_base(root / "base")
        self.prepared = root / "prepared"
        self.facts: Facts | None = None
        tokenizer = load_tokenizer(self.base)
        for name, seed in (("first", 1), ("second", 2)):
            torch.manual_seed(seed)
            model = load_model(self.base)
            for weight in model.parameters():
                weight.data += 0.02 * torch.randn_like(weight)
            save_checkpoint(root / name, model=model, tokenizer=tokenizer)
        self.notes: list[tuple[str, dict[str, Any]]] = []

    def spec(self, judge: Any) -> SweepSpec:
        return tiny_spec(
            self.base,
            judge=judge,
            constraints={},
            evaluation={"rung_prompts": 24, "max_new_tokens": 6},
            finals={"prompts": 30},
        )

    def hold(self, judge: Any, finalists: int = 2, access: JudgeAccess | None = None) -> Any:
        spec = self.spec(judge)
        if self.facts is None:
            self.facts = prepare(spec, read_inputs(spec, self.prepared), self.prepared, lambda share, message: None)
        self.notes.clear()
        ended = [_ended(number, name) for number, name in enumerate(("first", "second")[:finalists])]
        return hold_finals(
            spec, self.facts, self.prepared, self.run, ended, lambda m, d: self.notes.append((m, d)), access
        )


def _ended(number: int, checkpoint: str) -> Ended:
    ask = Ask(number=number, trial_id=f"t{number}", params={}, cutoffs={})
    return Ended(ask=ask, outcome=Outcome(state="COMPLETE", step=12, value=0.5 - number / 100), checkpoint=checkpoint)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"))


@pytest.fixture(autouse=True)
def _fresh_record(stage: Stage) -> None:
    (stage.run.root / RECORD).unlink(missing_ok=True)


def _endpoint(server: JudgeServer, **changes: Any) -> dict[str, Any]:
    return {**SETTINGS, "url": server.url, **changes}


def test_a_good_judge_chooses_and_reports_and_is_not_paid_twice(stage: Stage) -> None:
    with judge_server(GOOD) as server:
        verdict = stage.hold(_endpoint(server))
        told = verdict.judgement.as_dict()
        json.dumps(told, allow_nan=False)
        assert (told["state"], told["reasons"], told["choice"]["state"]) == ("VALID", [], "VALID")
        assert told["judge"]["url"] == server.url and len(told["judge"]["template_hash"]) == 64
        rows = told["choice"]["standings"]["rows"]
        assert {row["name"] for row in rows} == {"t0", "t1"}
        assert all(row["judged"] == 24 or row["eliminated"] for row in rows)
        assert verdict.winner.ask.trial_id == rows[0]["name"]
        assert verdict.judged == {row["name"]: row for row in rows}
        assert verdict.win_rate is verdict.judgement.report.win_rate and verdict.win_rate.n == 30
        assert all(each["passed"] for each in told["controls"]) and len(told["controls"]) == 5
        assert told["spent"]["requests"] == len(server.bodies) <= 600
        assert told["counts"]["requests"] + told["control_counts"]["requests"] < len(server.bodies)
        standings = [data["standing"] for _, data in stage.notes if data["what"] == "finalist"]
        assert [row["name"] for row in standings] == [row["name"] for row in rows]
        asked = len(server.bodies)
        again = stage.hold(_endpoint(server))
        assert len(server.bodies) == asked, "a resumed attempt reads what was paid for"
        assert again.winner == verdict.winner and again.win_rate == verdict.win_rate


def test_a_judge_that_prefers_length_is_invalid_and_promotes_nobody(stage: Stage) -> None:
    with judge_server(PREFERS_LONGER) as server:
        verdict = stage.hold(_endpoint(server))
        told = verdict.judgement.as_dict()
        assert verdict.win_rate is None and told["win_rate"] is not None
        assert told["state"] == "INVALID"
        assert any(reason.startswith("control padded") for reason in told["reasons"])
        assert verdict.evidence["figures"]["win_rate"]["estimate"] == told["win_rate"]["estimate"], "kept"
        assert decide({"win_rate": ">0"}, verdict.evidence).state == "FAIL"
        assert told["choice"]["state"] == "INVALID"
        assert verdict.winner.ask.trial_id == "t0", "the search's order decides"
        assert told["choice"]["counts"]["pairs"] <= 40, "one round, and nothing more is spent on it"
        assert "INVALID" in stage.notes[-1][0] and stage.notes[-1][1]["judge"]["state"] == "INVALID"


def test_a_null_model_that_the_judge_prefers_is_caught(stage: Stage) -> None:
    nulls = by_score(lambda instruction, answer: -2.0 if score(instruction, answer) else 1.0)
    with judge_server(nulls) as server:
        told = stage.hold(_endpoint(server), finalists=1).judgement.as_dict()
        assert told["state"] == "INVALID" and told["choice"] is None
        assert any(reason.startswith("control null") for reason in told["reasons"])


def test_a_budget_that_ends_is_kept_and_said(stage: Stage) -> None:
    """An earlier attempt has spent most of it on other questions."""
    with judge_server(GOOD) as server:
        settings = _endpoint(server, max_requests=MIN_REQUESTS)
        with pairwise_judge(stage.spec(settings).judge, stage.run.root, JudgeAccess()) as judge:
            judge.compare([Comparison(f"Q{n}", "a", "b") for n in range(340)])
        told = stage.hold(settings, finalists=1).judgement.as_dict()
        assert len(server.bodies) == told["spent"]["requests"] == MIN_REQUESTS
        both = [told["counts"], told["control_counts"]]
        asked = sum(2 * (counts["pairs"] - counts["identical"]) for counts in both)
        assert sum(counts["missing"]["budget"] for counts in both) == asked - 60
        assert told["state"] == "INVALID", "what is left does not reach for the controls alone"


def test_two_judges_are_compared(stage: Stage) -> None:
    with judge_server(GOOD) as server, judge_server(GOOD) as other:
        second = {**SETTINGS, "url": other.url, "model": "second"}
        told = stage.hold(_endpoint(server, second=second, second_pairs=10), finalists=1).judgement.as_dict()
        assert told["second"]["judge"]["model"] == "second"
        assert told["second"]["agreement"]["raw"]["estimate"] == 1.0
        assert told["second"]["counts"]["pairs"] == 10
        assert len(other.bodies) == 20


def test_the_practice_judge_has_its_controls_too(stage: Stage) -> None:
    verdict = stage.hold("practice", finalists=1)
    told = verdict.judgement.as_dict()
    assert (told["state"], told["judge"]["type"], told["spent"]) == ("VALID", "practice", None)
    assert verdict.win_rate == verdict.tuned.win_rate
    assert told["win_rate"]["estimate"] == pytest.approx(verdict.win_rate.estimate)


def test_a_reward_model_judges_and_a_random_one_is_found_out(stage: Stage, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = load_model(stage.base).config
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    save_checkpoint(tmp_path / "reward", model=model, tokenizer=load_tokenizer(stage.base))
    told = stage.hold({"type": "reward_model", "model": str(tmp_path / "reward")}, finalists=1).judgement.as_dict()
    assert told["judge"]["type"] == "reward_model" and told["counts"]["judged"] == 30
    assert told["state"] == "INVALID"


def test_a_language_model_is_no_reward_model(stage: Stage) -> None:
    judge = stage.spec({"type": "reward_model", "model": str(stage.base)}).judge
    with pytest.raises(ValueError, match="is no reward model"):
        check_judges(judge, stage.run.root, JudgeAccess())


def test_an_endpoint_that_does_not_answer_shows_before_anything_is_begun(stage: Stage) -> None:
    with judge_server(lambda body, number: {"choices": []}) as server:
        judge = stage.spec(_endpoint(server)).judge
        with pytest.raises(JudgeError, match="gave no answer"):
            check_judges(judge, stage.run.root, JudgeAccess())
