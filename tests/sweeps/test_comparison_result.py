"""What a comparison concludes, from hand-made sweeps; its table, page and terminal."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sweeps.__main__ import main
from sweeps.comparison_report import markdown, write_comparison
from sweeps.comparison_result import CUT_SHORT, MethodStory, comparison_result, curve_of
from sweeps.comparison_spec import ComparisonSpec, parse_comparison
from sweeps.comparison_view import ComparisonScreen, comparison_view
from sweeps.finals import Bases
from sweeps.outcome import Outcome
from sweeps.prepared import Facts
from sweeps.recorded import Recorded
from sweeps.run_dir import RunDir

pytestmark = pytest.mark.quick

DRAWN = 12


def _spec(**changes: Any) -> ComparisonSpec:
    body = {"name": "x", "methods": ["sft", "dpo", "simpo"], "dataset": "org/set", "random_stratum": DRAWN}
    return parse_comparison({**body, "budget": {"trials": 2 * DRAWN, "steps": 40}} | changes)


def _trials(spec: ComparisonSpec, drawn: Sequence[float], chosen: float) -> dict[int, Recorded]:
    """Random trials (odd numbers) with these values, the sampler's with another; -inf: broke a constraint."""
    trials = {}
    for number in range(spec.budget.trials):
        value = drawn[number // 2] if number % 2 else chosen
        if value > -math.inf:
            outcome = Outcome(state="COMPLETE", step=40, value=value)
        else:
            outcome = Outcome(state="INFEASIBLE", step=40, value=0.9, constraints={"repetition": 0.1})
        trials[number] = Recorded(params={"learning_rate": 1e-4}, outcome=outcome, facts={"seconds": 2.0})
    return trials


def _estimate(value: float, half: float) -> dict[str, float]:
    return {"estimate": value, "low": value - half, "high": value + half, "n": 100}


def _stories(spec: ComparisonSpec, **accuracy: float) -> dict[str, MethodStory]:
    stories = {}
    for name, sweep in spec.sweeps().items():
        values = [accuracy[name] - k / 1000 for k in range(DRAWN)]
        result = {
            "accuracy": {"winner": _estimate(accuracy[name] + 0.02, 0.03), "base": _estimate(0.5, 0.03)},
            "win_rate": None,
            "best": {"params": {"learning_rate": 1e-4}},
            "seconds": {"searching": 3.0, "finals": 1.0},
            "reference": {"seconds": 1.5, "misses": 9, "hits": 0},
        }
        stories[name] = MethodStory(sweep=sweep, result=result, trials=_trials(spec, values, chosen=0.99))
    return stories


@pytest.fixture
def result() -> Mapping[str, Any]:
    spec = _spec()
    return comparison_result(spec, _stories(spec, sft=0.55, dpo=0.71, simpo=0.705), {"preparing": 4.0})


def test_methods_are_ranked_by_their_finals_and_ties_are_stated(result: Mapping[str, Any]) -> None:
    assert [row["name"] for row in result["leaderboard"]] == ["dpo", "simpo", "sft"]
    assert [row["tied_with"] for row in result["leaderboard"]] == [["simpo"], ["dpo"], []]
    assert result["leaderboard"][0]["ranked_by"] == "accuracy"
    assert result["leaderboard"][0]["steps"] == 24 * 40
    assert result["leaderboard"][0]["trials"] == {"COMPLETE": 24}


def test_a_verdict_is_a_method_a_budget_and_how_far_it_is_known(result: Mapping[str, Any]) -> None:
    verdicts = {tuple(verdict["pair"]): verdict for verdict in result["verdicts"]}
    assert len(verdicts) == 3
    assert verdicts["dpo", "sft"]["text"] == "dpo above sft from budget 1 on (trials; known up to 1)"
    assert verdicts["simpo", "sft"]["above"] == "simpo"
    assert verdicts["dpo", "simpo"]["text"] == "dpo and simpo: undecided, the bands overlap"


def test_too_few_random_trials_decide_nothing_and_say_how_many_would() -> None:
    spec = _spec(random_stratum=4)
    stories = _stories(spec, sft=0.5, dpo=0.6, simpo=0.9)
    texts = [verdict["text"] for verdict in comparison_result(spec, stories, {})["verdicts"]]
    assert texts[0].endswith("undecided, 4 random trials bound nothing from above, 8 would")


def test_only_the_random_trials_make_the_curve_and_a_broken_one_counts_as_the_worst() -> None:
    spec = _spec()
    drawn = [0.6] * (DRAWN - 1) + [-math.inf]
    story = MethodStory(sweep=spec.sweeps()["dpo"], result=None, trials=_trials(spec, drawn, chosen=0.99))
    curve = curve_of(story)
    assert curve is not None
    assert sorted(curve.scores) == sorted(drawn)
    assert curve.expected[0] == pytest.approx(0.6 * (DRAWN - 1) / DRAWN)
    story.trials[1].outcome = Outcome(state="PRUNED", step=10, reason=CUT_SHORT[1])
    shorter = curve_of(story)
    assert shorter is not None
    assert len(shorter.scores) == DRAWN - 1, "the clock does not look at the score"
    assert curve_of(MethodStory(sweep=story.sweep, result=None)) is None


def test_a_method_without_a_winner_loses_and_unequal_budgets_are_told(tmp_path: Path) -> None:
    spec = _spec()
    stories = _stories(spec, sft=0.55, dpo=0.71, simpo=0.705)
    few = {number: trial for number, trial in stories["sft"].trials.items() if number < 20}
    stories["sft"] = MethodStory(sweep=stories["sft"].sweep, result=None, trials=few, failure="no trial reached")
    result = comparison_result(spec, stories, {})
    assert result["leaderboard"][-1]["name"] == "sft"
    assert result["unequal"] == ["sft: 20 of 24 trials, for its time ran out"]
    text = markdown(result)
    assert "| 3 | sft | none: no trial reached |" in text
    assert "* not the same budget: sft: 20 of 24 trials" in text


def test_table_page_and_terminal_say_the_same(result: Mapping[str, Any], tmp_path: Path) -> None:
    written, page = write_comparison(result, {"name": "x<script>"}, tmp_path)
    text = written.read_text()
    assert "| # | method | held-out accuracy | tied with | best of 1 | above, from budget | trials | steps |" in text
    assert "| 1 | dpo | 0.730 (0.700 to 0.760) | simpo | 0.704 (" in text
    assert "| sft (1) | 24 complete | 960 |" in text
    assert "* undecided: 1 of 3 pairs" in text
    html = page.read_text()
    assert html.count('id="tuning"') == 1
    assert "dpo above sft from budget 1 on" in html
    assert "x<script>" not in html
    console = Console(width=200, record=True, file=(tmp_path / "screen").open("w"))
    console.print(comparison_view(result))
    shown = console.export_text()
    console.file.close()
    assert "0.730 (0.700 to 0.760)" in shown
    assert "dpo and simpo: undecided, the bands overlap" in shown


def test_show_understands_a_comparison(
    result: Mapping[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = _spec()
    RunDir(tmp_path).write_spec(spec.model_dump(mode="json"))
    run = RunDir(tmp_path / "sweeps" / "dpo")
    run.write_spec(spec.sweeps()["dpo"].model_dump(mode="json"))
    attempt = run.claim(1)
    attempt.append("job.phase", "searching", {"phase": "searching", "progress": 0.0})
    attempt.append("trial.created", "trial 0", {"trial_id": "trl_0000", "number": 0, "params": {"beta": 0.1}})
    attempt.append("best.updated", "best", {"trial_id": "trl_0000", "value": 0.61})
    with pytest.raises(SystemExit, match="0"):
        main(["show", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "searching" in shown
    assert "0.610" in shown
    assert "waiting for the cluster" in shown
    (tmp_path / "comparison.json").write_text(json.dumps(result))
    with pytest.raises(SystemExit, match="0"):
        main(["show", str(tmp_path)])
    assert "dpo above sft" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["resume", str(tmp_path)])
    assert "has its result already" in capsys.readouterr().err


def test_the_screen_of_a_log_names_the_method(tmp_path: Path) -> None:
    attempt = RunDir(tmp_path).claim(1)
    console = Console(width=120, file=(tmp_path / "log").open("w"))
    with ComparisonScreen(_spec().sweeps(), console, clock=lambda: 0.0) as screen:
        attempt.listeners.append(lambda record: screen.take("dpo", record))
        screen.preparing(0.1, "making the base model: step 1 of 9")
        screen.preparing(0.2, "making the base model: step 2 of 9")
        point = {"trial_id": "trl_0000", "number": 0, "params": {"beta": 0.1}}
        attempt.append("trial.created", "trial 0 starts", point)
        attempt.append("trial.completed", "done", {**point, "step": 40, "value": 0.7})
        attempt.append("job.finished", "the winner is trial trl_0000", {})
    console.file.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "[   0.0 s] preparing: making the base model: step 1 of 9"
    assert lines[1].startswith("[   0.0 s] dpo: trial 0: COMPLETE, accuracy 0.700 (1/24)")
    assert len(lines) == 3


def test_the_base_is_asked_once_for_all_methods() -> None:
    facts = Facts(spec_hash="", base="b", pairs={"report": 9}, dropped={}, truncated={}, stop_ids=[1])
    sweeps = list(parse_comparison({"name": "x", "methods": ["simpo", "dpo", "sft"]}).sweeps().values())
    other = parse_comparison({"name": "x", "methods": ["simpo", "dpo"], "seed": 5}).sweeps()["simpo"]
    known, asked = Bases(), list[str]()

    def answer() -> str:
        asked.append("once more")
        return f"answer {len(asked)}"

    assert {known.once("measured", sweep, facts, answer) for sweep in sweeps} == {"answer 1"}
    assert known.once("answers", sweeps[0], facts, answer) == "answer 2"
    assert known.once("measured", other, facts, answer) == "answer 3"
