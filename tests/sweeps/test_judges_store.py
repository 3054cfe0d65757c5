"""The record of judgements, by itself."""

import sqlite3
import threading
from pathlib import Path

import pytest

from sweeps.judges_store import JudgeStore, JudgeStoreError

pytestmark = pytest.mark.quick


def test_an_answer_and_its_cost_are_recorded_together(tmp_path: Path) -> None:
    with JudgeStore(tmp_path / "a" / "answers.sqlite3") as store:
        request = store.reserve("judge", 2.0, max_requests=2, max_cost=3.0)
        assert request is not None and store.answer("key") is None
        assert store.spent("judge").as_dict() == {"requests": 1, "cost": 2.0}
        store.settle(request, 0.5, key="key", output={"text": "x", "finish": "stop"})
    with JudgeStore(tmp_path / "a" / "answers.sqlite3") as store:
        assert store.answer("key") == {"text": "x", "finish": "stop"}
        assert store.spent("judge").cost == 0.5
        assert store.reserve("judge", 2.6, max_requests=2, max_cost=3.0) is None, "3.1 in all"
        assert store.reserve("judge", 2.5, max_requests=2, max_cost=3.0) is not None
        assert store.reserve("judge", 0.0, max_requests=2, max_cost=3.0) is None, "two requests"
        assert store.reserve("other", 0.0, max_requests=1, max_cost=None) is not None, "a budget of its own"


def test_what_was_never_settled_stays_spent(tmp_path: Path) -> None:
    with JudgeStore(tmp_path / "s") as store:
        store.reserve("judge", 1.5, max_requests=9, max_cost=None)
        unknown = store.reserve("judge", 1.0, max_requests=9, max_cost=None)
        assert unknown is not None
        store.settle(unknown, None)
    with JudgeStore(tmp_path / "s") as store:
        assert store.spent("judge").cost == 2.5


def test_a_cap_holds_between_writers(tmp_path: Path) -> None:
    granted: list[int | None] = []

    def spend() -> None:
        with JudgeStore(tmp_path / "s") as store:
            granted.extend(store.reserve("judge", 1.0, max_requests=10, max_cost=7.0) for _ in range(5))

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([each for each in granted if each is not None]) == 7
    assert len(granted) == 20


def test_a_file_that_is_no_record_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("not a database, but long enough to be taken for one" * 40)
    with pytest.raises(JudgeStoreError, match="cannot be used as a record"):
        JudgeStore(tmp_path / "s")
    newer = sqlite3.connect(tmp_path / "t")
    newer.execute("PRAGMA user_version = 9")
    newer.close()
    with pytest.raises(JudgeStoreError, match="another version"):
        JudgeStore(tmp_path / "t")
    (tmp_path / "file").touch()
    with pytest.raises(JudgeStoreError, match="cannot be used"):
        JudgeStore(tmp_path / "file" / "s")
