"""What a comparison's journal says of accelerator-hours: each hour once, over methods and attempts."""

from pathlib import Path

import pytest

from sweeps.comparison_attempt import SPENT, Story
from sweeps.run_dir import Attempt, RunDir, read_journal

pytestmark = pytest.mark.quick


def test_each_hour_is_told_once_over_methods_and_attempts(tmp_path: Path) -> None:
    whole = RunDir(tmp_path)
    whole.write_spec({"name": "both"})
    first = whole.claim(1)
    story = Story(first, ["dpo", "simpo"], 2)
    _work(story, tmp_path, "dpo", 1, _moments(0, 60))
    _work(story, tmp_path, "simpo", 1, _moments(60, 90))
    story.tell_hours()  # stopped in its second method
    assert _told(first) == [("dpo", 2.0), ("simpo", 1.0)]

    second = whole.claim(2)
    story = Story(second, ["dpo", "simpo"], 2)
    _work(story, tmp_path, "simpo", 2, _moments(90, 105))
    story.tell_hours()
    story.tell_hours()
    assert _told(second) == [("simpo", 0.5)]

    third = whole.claim(3)  # after a kill -9, whose hours nobody told
    third_story = Story(third, ["dpo", "simpo"], 2)
    _work(None, tmp_path, "simpo", 3, _moments(105, 120))
    _work(third_story, tmp_path, "simpo", 4, _moments(120, 150))
    third_story.tell_hours()
    assert _told(third) == [("simpo", 1.5)]


def _work(story: Story | None, root: Path, method: str, attempt: int, moments: tuple[str, str]) -> None:
    """A trial of a method's sweep, from and to these moments."""
    run = RunDir(root / "sweeps" / method)
    run.write_spec({"name": method})
    sweep = run.claim(attempt)
    for kind, at in zip(("trial.created", "trial.completed"), moments, strict=True):
        record = sweep.append(kind, "", {"trial_id": f"trl_{attempt:04d}"})
        _date(sweep, record["at"], at)
        if story is not None:
            story.take(method, {**record, "at": at})


def _date(sweep: Attempt, written: str, at: str) -> None:
    """Put another moment into what was just written: journals are dated by the clock."""
    for path in sweep.path.glob("journal/*.jsonl"):
        path.write_text(path.read_text().replace(written, at))


def _told(attempt: Attempt) -> list[tuple[str, float]]:
    found = [record["data"] for record in read_journal(attempt) if record["type"] == SPENT]
    return [(each["method"], each["accelerator_hours"]) for each in found]


def _moments(*minutes: int) -> tuple[str, str]:
    first, last = (f"2026-09-01T{minute // 60:02d}:{minute % 60:02d}:00+00:00" for minute in minutes)
    return first, last
