"""The report of a sweep, from a run directory made by hand."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sweeps.report import read_story, report_json, write_report
from sweeps.run_dir import Attempt, RunDir, RunDirError

pytestmark = pytest.mark.quick

_ESTIMATE = {"estimate": 0.652, "low": 0.611, "high": 0.693, "n": 500}
_HOSTILE = "</script><script>alert(1)</script>"


def _point(beta: float) -> dict[str, float]:
    return {"learning_rate": 1e-4, "beta": beta, "gamma_beta_ratio": 0.5}


def _trial(attempt: Attempt, number: int, *, steps: int, ending: str, **facts: Any) -> None:
    trial_id = f"trl_{number}"
    params = _point(2.0 + number)
    attempt.append("trial.created", "", {"trial_id": trial_id, "number": number, "params": params})
    for step in range(1, steps + 1):
        data = {"trial_id": trial_id, "step": step, "loss": 1.0 / step, "margin": 0.1 * step, "accuracy": 0.9}
        attempt.append("trial.progress", "", data)
    attempt.append(
        "trial.rung", "", {"trial_id": trial_id, "number": number, "step": steps, "metrics": {"accuracy": 0.97}}
    )
    attempt.append(ending, "", {"trial_id": trial_id, "number": number, "step": steps, "seconds": 3.5, **facts})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two attempts: the first died in trial 1, the second finished."""
    run = RunDir(tmp_path / "swp_1")
    run.write_spec({"name": "a-sweep", "method": "simpo", "objective": {"metric": "win_rate"}, "seed": 7})
    first = run.claim(1)
    _trial(first, 0, steps=4, ending="trial.completed", value=0.66, reason="full budget")
    first.append("trial.created", "", {"trial_id": "trl_1", "number": 1, "params": _point(3.0)})
    second = run.claim(2)
    _trial(second, 1, steps=2, ending="trial.pruned", value=0.4, reason=_HOSTILE)
    _trial(second, 2, steps=1, ending="trial.failed", value=None, reason="loss is not finite")
    second.publish_result(
        {
            "attempt": 2,
            "spec_hash": "abc",
            "state": "SUCCEEDED",
            "method": "simpo",
            "best": {"trial_id": "trl_0", "method": "simpo", "params": _point(2.0), "value": 0.66, "step": 4},
            "trials": {"COMPLETE": 1, "PRUNED": 1, "FAILED": 1, "INFEASIBLE": 0},
            "leaderboard": [
                {"rank": 1, "trial_id": "trl_0", "low": 0.604, "high": 0.716, "tied_with_best": True, "step": 4},
                {"rank": 2, "trial_id": "trl_1", "low": None, "high": None, "tied_with_best": False, "step": 2},
            ],
            "win_rate": _ESTIMATE,
            "accuracy": {"base": _ESTIMATE | {"estimate": 0.581}, "winner": _ESTIMATE | {"estimate": 0.987}},
            "dropped_rows": {"chosen equals rejected": 12},
            "reference": dict.fromkeys(("seconds", "cpu_seconds", "tokens", "hits", "misses", "checked"), 0),
            "seconds": {"searching": 80.25},
            "peak_memory_bytes": 2 << 30,
        }
    )
    return run.root


def test_facts(run_dir: Path) -> None:
    facts = report_json(read_story(run_dir), seconds={"serving": 9.5}, peak_memory_bytes=3 << 30, versions={"ray": "2"})
    assert facts["trials"] == {"COMPLETE": 1, "PRUNED": 1, "FAILED": 1, "INFEASIBLE": 0}
    assert facts["best"] == {
        "method": "simpo",
        "hyperparameters": _point(2.0),
        "trial_id": "trl_0",
        "number": 0,
        "value": 0.66,
        "step": 4,
    }
    assert facts["win_rate"] == _ESTIMATE and facts["win_rate_reason"] is None
    assert facts["accuracy"]["winner"]["estimate"] == 0.987
    assert facts["seconds"] == {"searching": 80.25, "serving": 9.5}
    assert facts["peak_memory_bytes"] == 3 << 30
    assert facts["seed"] == 7


def test_story_joins_attempts(run_dir: Path) -> None:
    trials = read_story(run_dir).trials
    assert [(trial.number, trial.state) for trial in trials] == [(0, "COMPLETE"), (1, "PRUNED"), (2, "FAILED")]
    assert sorted(trials[0].curve) == [1, 2, 3, 4]


def test_without_judge_the_reason_is_given(run_dir: Path) -> None:
    story = read_story(run_dir)
    assert story.result is not None
    story.result["win_rate"] = None
    facts = report_json(story)
    assert facts["win_rate"] is None
    assert "no judge" in facts["win_rate_reason"]


def test_the_cost_of_the_reference_is_told(run_dir: Path, tmp_path: Path) -> None:
    story = read_story(run_dir)
    assert story.result is not None
    assert report_json(story)["reference"]["seconds"] == 0
    for misses, shown in ((0, "None were needed: 0 s."), (88, "responses computed")):
        story.result["reference"] |= {"misses": misses, "seconds": 3.25}
        html = write_report(story, report_json(story), tmp_path)[0].read_text(encoding="utf-8")
        assert "Reference log-probabilities" in html and shown in html


class _Page(HTMLParser):
    """Collects what a browser would load, and the text outside scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["script"], ["style"]):
            self.text += data


def test_page_is_self_contained_and_escaped(run_dir: Path, tmp_path: Path) -> None:
    story = read_story(run_dir)
    answers = [{"prompt": "Add 3 and 4.", "base": "<img src=x>", "winner": "7"}]
    html_path, json_path = write_report(story, report_json(story, answers=answers), tmp_path / "out")
    html = html_path.read_text(encoding="utf-8")
    page = _Page()
    page.feed(html)
    assert page.loads == []
    assert page.tags.count("script") == 2, "Plotly once, the figures once"
    assert "default-src 'none'" in html
    for shown in (
        "a-sweep",
        "0.652",
        "0.611",
        "0.987",
        "0.581",
        "chosen equals rejected",
        "loss is not finite",
        _HOSTILE,
    ):
        assert shown in page.text
    assert "<img src=x>" in page.text and "img" not in page.tags
    assert json.loads(json_path.read_text(encoding="utf-8"))["answers"] == answers
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]


def test_the_search_speaks_for_itself(run_dir: Path, tmp_path: Path) -> None:
    attempt = RunDir(run_dir).claim(3)
    rungs: list[dict[str, Any]] = [{"step": 30, "n": 8, "control": 3, "rho": 0.83, "low": 0.31, "high": 0.97}]
    rungs += [{"step": 60, "n": 2, "control": 1, "rho": None, "low": None, "high": None}]
    point = {"trial_id": "trl_0", "number": 0, "params": _point(2.0), "values": {"win_rate": 0.66, "margin": 0.4321}}
    lineage = [{"trial_id": "trl_0", "number": 0, "from": 0, "to": 77, "params": _point(2.0)}]
    warm = {"sources": ["swp-7"], "trials": 41}
    told = {"rungs": rungs, "pareto": [point], "lineage": lineage, "warm_start": warm}
    attempt.publish_result({**(read_story(run_dir).result or {}), "attempt": 3, **told})
    facts = report_json(read_story(run_dir))
    assert {key: facts[key] for key in told} == told
    page = _Page()
    page.feed(write_report(read_story(run_dir), facts, tmp_path)[0].read_text(encoding="utf-8"))
    told_of = ("0.83 (0.31 to 0.97, n = 8)", "unknown (n = 2", "0.4321", "Lineage of the best", "41 trials", "swp-7")
    for shown in told_of:
        assert shown in page.text


def test_figures_hold_every_curve(run_dir: Path, tmp_path: Path) -> None:
    story = read_story(run_dir)
    html = write_report(story, report_json(story), tmp_path)[0].read_text(encoding="utf-8")
    match = re.search(r"const figures = (\{.*\});", html)
    assert match is not None
    figures = json.loads(match[1])
    assert set(figures) == {"loss", "margin", "scatter-beta", "scatter-gamma_beta_ratio", "scatter-gamma"}
    assert [len(trace["x"]) for trace in figures["loss"]["data"]] == [2, 1, 4], "the winner is drawn last"
    assert figures["scatter-beta"]["layout"]["xaxis"]["type"] == "log"
    assert figures["scatter-gamma_beta_ratio"]["layout"]["yaxis"]["type"] == "linear"


def test_unfinished_sweep_has_no_report(tmp_path: Path) -> None:
    RunDir(tmp_path).write_spec({"name": "x"})
    with pytest.raises(ValueError, match=r"no result\.json"):
        report_json(read_story(tmp_path))


def test_directory_without_spec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"no readable spec\.json"):
        read_story(tmp_path)
