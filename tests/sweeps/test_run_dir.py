import contextlib
import json
import threading
from pathlib import Path

import pytest

from sweeps.run_dir import (
    RESERVE,
    Attempt,
    AttemptClaimed,
    RunDir,
    RunDirError,
    UnwritableRunDir,
    read_heartbeat,
    read_journal,
    read_result,
)

pytestmark = pytest.mark.quick


def _attempt(tmp_path: Path) -> Attempt:
    return RunDir(tmp_path).claim(1)


def test_a_number_is_claimed_once(tmp_path: Path) -> None:
    run, winners = RunDir(tmp_path), []

    def claim() -> None:
        with contextlib.suppress(AttemptClaimed):
            winners.append(run.claim(1))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert [attempt.number for attempt in run.attempts()] == [1]


def test_reference_values_are_shared_within_a_store(tmp_path: Path) -> None:
    one, other = (RunDir(tmp_path / "store" / "sweeps" / name).references for name in ("swp_1", "swp_2"))
    assert one == other == tmp_path / "store" / "references"
    assert RunDir(tmp_path / "mine").references == tmp_path / "mine" / "references"


def test_a_lower_number_is_refused_after_a_higher_claim(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.claim(3)
    with pytest.raises(AttemptClaimed, match="superseded"):
        run.claim(2)
    assert run.claim_next().number == 4


def test_an_orphan_sees_the_higher_claim_and_cannot_publish(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    orphan = run.claim(1)
    assert not orphan.superseded()
    current = run.claim(2)
    assert orphan.superseded()
    with pytest.raises(AttemptClaimed, match="superseded"):
        orphan.publish_result({"state": "SUCCEEDED"})
    current.publish_result({"state": "SUCCEEDED"})
    with pytest.raises(AttemptClaimed, match="already"):
        current.publish_result({"state": "other"})
    assert read_result(orphan) is None
    assert read_result(current) == {"state": "SUCCEEDED"}


def test_a_claim_without_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="count from 1"):
        RunDir(tmp_path).claim(0)


def test_records_are_numbered_over_segments_and_threads(tmp_path: Path) -> None:
    attempt = _attempt(tmp_path)
    attempt.append_many([("trial.progress", "", {"step": step}, "info") for step in range(3)])
    threads = [threading.Thread(target=attempt.append, args=("job.phase", "x")) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = read_journal(attempt)
    assert [record["seq"] for record in records] == list(range(1, 9))
    assert {record["attempt"] for record in records} == {1}


@pytest.mark.parametrize("after", range(8))
def test_tailing_gives_each_record_once(tmp_path: Path, after: int) -> None:
    attempt = _attempt(tmp_path)
    for size in (2, 1, 3, 1):
        attempt.append_many([("job.phase", "x", {}, "info")] * size)
    assert [record["seq"] for record in read_journal(attempt, after)] == list(range(after + 1, 8))


@pytest.mark.parametrize("tail", ['{"seq": 3, "attem', "", "\x00\x00", "[]", '{"seq": "3"}'])
def test_a_torn_tail_ends_the_journal(tmp_path: Path, tail: str) -> None:
    attempt = _attempt(tmp_path)
    attempt.append("job.started", "a")
    attempt.append("job.phase", "b")
    (attempt.path / "journal" / "00000003.jsonl").write_text(tail)
    assert [record["seq"] for record in read_journal(attempt)] == [1, 2]
    assert read_journal(attempt, 2) == []


def test_nothing_is_read_beyond_a_missing_segment(tmp_path: Path) -> None:
    attempt = _attempt(tmp_path)
    for _ in range(4):
        attempt.append("job.phase", "x")
    (attempt.path / "journal" / "00000002.jsonl").unlink()
    assert [record["seq"] for record in read_journal(attempt)] == [1]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    attempt = _attempt(tmp_path)
    attempt.append("job.started", "a")
    attempt.beat({"trials": 1})
    attempt.beat({"trials": 2})
    beat = read_heartbeat(attempt)
    assert beat is not None
    assert (beat["counter"], beat["counts"]) == (2, {"trials": 2})
    assert not [path for path in attempt.path.rglob(".*") if path.is_file()], "temporaries stay behind"


def test_numbers_that_are_not_json_are_refused(tmp_path: Path) -> None:
    attempt = _attempt(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        attempt.append("trial.progress", "x", {"loss": float("nan")})
    attempt.append("trial.progress", "x", {"loss": None})
    assert [record["seq"] for record in read_journal(attempt)] == [1]


def test_the_spec_is_written_once(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with pytest.raises(RunDirError, match=r"spec\.json"):
        run.read_spec()
    run.write_spec({"name": "a"})
    run.write_spec({"name": "a"})
    with pytest.raises(RunDirError, match="another sweep"):
        run.write_spec({"name": "b"})
    assert json.loads(run.spec_path.read_text()) == {"name": "a"}


def test_a_directory_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "attempts").write_text("a file in the way")
    with pytest.raises(RunDirError, match="cannot be written"):
        RunDir(tmp_path).claim(1)


def test_after_a_failed_record_only_the_last_word_is_written(tmp_path: Path) -> None:
    attempt = _attempt(tmp_path)
    attempt.append("job.started", "a")
    attempt.path.rename(tmp_path / "away")
    attempt.path.touch()  # in the way, as a full disk is
    with pytest.raises(UnwritableRunDir, match="check space"):
        attempt.append("trial.progress", "b")
    attempt.path.unlink()
    (tmp_path / "away").rename(attempt.path)
    with pytest.raises(UnwritableRunDir, match="check space"):
        attempt.append("trial.failed", "nobody's fault")  # a library has swallowed the first error
    with pytest.raises(UnwritableRunDir):
        attempt.check()
    assert (attempt.path / RESERVE).stat().st_size > 0
    attempt.last_word("job.failed", "no space", {}, level="error")
    assert [record["type"] for record in read_journal(attempt)] == ["job.started", "job.failed"]
    assert not (attempt.path / RESERVE).exists(), "the space that was kept for it is free"


def test_an_edit_under_a_given_number_is_written_once(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for _ in range(2):
        run.put_edit(3, {"action": "pause"})
    with pytest.raises(RunDirError, match="edit 3 was made by somebody else"):
        run.put_edit(3, {"action": "resume"})
    assert run.add_edit({"action": "resume"}) == 4
    assert json.loads((run.control / "00000003.json").read_text()) == {"action": "pause"}
