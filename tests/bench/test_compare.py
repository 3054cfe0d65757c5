"""The comparison benchmark's own part: its specs are legal, and README shows what was recorded."""

import pytest

from sweeps.comparison_spec import PAPER, parse_comparison
from sweeps.tuning_curve import horizon
from tests.bench.compare import DRAWN, TASKS, body, compare_table, readme_tables
from tests.bench.readme import in_readme

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("task", TASKS)
def test_every_task_compares_the_papers_methods_under_one_budget(task: str) -> None:
    spec = parse_comparison(body(task))
    assert tuple(spec.sweeps()) == PAPER
    assert spec.drawn == DRAWN
    assert horizon(DRAWN) == 2


@pytest.mark.parametrize("task", TASKS)
def test_readme_shows_the_recorded_comparison(task: str) -> None:
    name = f"compare-{task}"
    assert in_readme(name) == readme_tables()[name], f"run python -m tests.bench.compare --task {task} --write"


def test_a_table_counts_its_verdicts() -> None:
    row = {
        **{"rank": 1, "name": "dpo", "ranked_by": "accuracy", "figure": None, "failure": "none fit", "tied_with": []},
        **{"trials": {"FAILED": 2}, "steps": 9},
    }
    verdicts = [{"above": None, "pair": ["dpo", "sft"], "text": "dpo and sft: undecided"}]
    result = {"leaderboard": [row], "curves": {}, "verdicts": verdicts, "unequal": []}
    table = compare_table({"result": result, "minutes": 3.2})
    assert "| 1 | dpo | none: none fit |" in table
    assert table.endswith("0 of 1 pairs decided, 3 minutes.\n")
