"""Run directories in an object store: what several working copies of one see of each other. Stores in a directory here;
that S3 is such a store is `test_store`'s affair, and a whole sweep on it `faults/test_object_store`'s."""

import contextlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from simpo.errors import ConfigError
from sweeps.control import read_edits
from sweeps.place import Place
from sweeps.remote import LOOK_S, Remote
from sweeps.run_dir import (
    Attempt,
    AttemptClaimed,
    RunDir,
    RunDirError,
    UnwritableRunDir,
    read_heartbeat,
    read_journal,
    read_result,
)
from sweeps.spec import parse_spec
from sweeps.store import DirectoryStore, StoreUnavailable
from sweeps.working_copy import check_supported, open_run, refuse_remote, take_out

pytestmark = pytest.mark.quick

SPEC = {"name": "x"}


class Copies:
    """Working copies of one run directory, each as on a machine of its own."""

    def __init__(self, root: Path) -> None:
        self.store = DirectoryStore(root / "store")
        self._root = root

    def on(self, node: str) -> RunDir:
        """The copy of a node, up to date."""
        root = self._root / node
        run = RunDir(root, Remote(self.store, root))
        run.refresh()
        return run


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    """With a spec."""
    made = Copies(tmp_path)
    made.on("a").write_spec(SPEC)
    return made


def test_a_spec_is_written_once_wherever(copies: Copies, tmp_path: Path) -> None:
    assert copies.on("b").read_spec() == SPEC
    copies.on("b").write_spec(SPEC)
    stale = RunDir(tmp_path / "c", Remote(copies.store, tmp_path / "c"))
    with pytest.raises(RunDirError, match="another sweep"):
        stale.write_spec({"name": "y"})


def test_the_store_lets_one_driver_claim(copies: Copies) -> None:
    runs, winners = [copies.on(f"node{number}") for number in range(6)], []

    def claim(run: RunDir) -> None:
        with contextlib.suppress(AttemptClaimed):
            winners.append(run.claim(1))

    threads = [threading.Thread(target=claim, args=[run]) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert copies.on("reader").highest() == 1
    with pytest.raises(AttemptClaimed, match="belongs to another driver"):
        copies.on("late").claim(1)
    assert copies.on("late").claim_next().number == 2


def test_a_store_that_refuses_nobody_is_refused(tmp_path: Path) -> None:
    class Careless(DirectoryStore):
        def put_new(self, key: str, data: bytes) -> None:
            self.put(key, data)

    run = RunDir(tmp_path / "copy", Remote(Careless(tmp_path / "store"), tmp_path / "copy"))
    with pytest.raises(RunDirError, match="ignores If-None-Match"):
        run.claim(1)


def test_what_a_driver_publishes_is_there_for_all(copies: Copies) -> None:
    mine = copies.on("a").claim(1)
    mine.append("trial.created", "one", {"n": 1})
    mine.append_many([("x", "two", {}, "info"), ("y", "three", {}, "warn")])
    mine.beat({"RUNNING": 1})
    reader = copies.on("b")
    theirs = reader.attempt(1)
    assert read_journal(theirs) == read_journal(mine)
    assert read_heartbeat(theirs) == read_heartbeat(mine)
    mine.append("z", "four")
    mine.beat({"RUNNING": 2})
    mine.publish_result({"attempt": 1})
    assert len(read_journal(theirs)) == 3, "a copy does not move by itself"
    reader.place.refresh_attempt(1)
    assert len(read_journal(theirs)) == 4
    beat = read_heartbeat(theirs)
    assert beat is not None
    assert beat["counter"] == 2
    assert read_result(theirs) == {"attempt": 1}


def test_a_look_reads_only_what_has_changed(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = copies.on("a").claim(1)
    for number in range(5):
        mine.append("x", str(number))
    mine.beat({})
    reader = copies.on("b")
    asked: list[str] = []
    get = copies.store.get
    monkeypatch.setattr(copies.store, "get", lambda key: asked.append(key) or get(key))
    reader.place.refresh_attempt(1)
    assert asked == []
    mine.beat({})
    mine.append("x", "5")
    reader.place.refresh_attempt(1)
    assert asked == ["attempts/1/heartbeat.json", "attempts/1/journal/00000006.jsonl"]


def test_an_orphan_sees_a_claim_that_another_machine_made(copies: Copies) -> None:
    orphan = copies.on("a").claim(1)
    assert not orphan.superseded()
    copies.on("b").claim(2)
    assert orphan.superseded()
    with pytest.raises(AttemptClaimed, match="not accepted"):
        orphan.publish_result({})
    assert copies.store.get("attempts/1/result.json") is None


def test_an_empty_disk_has_everything_again(copies: Copies, tmp_path: Path) -> None:
    mine = copies.on("a").claim(1)
    mine.append("x", "one")
    copies.on("b").add_edit({"action": "pause"})
    shutil.rmtree(tmp_path / "a")
    again = copies.on("a")
    assert [record["message"] for record in read_journal(again.attempt(1))] == ["one"]
    assert [path.name for path in again.control.iterdir()] == ["00000001.json"]
    assert again.claim_next().number == 2


def test_a_hole_in_a_copy_is_filled(copies: Copies, tmp_path: Path) -> None:
    """Its disk was full for a moment: what the store has is not lost with that."""
    mine = copies.on("a").claim(1)
    for number in range(3):
        mine.append("x", str(number))
    (mine.path / "journal" / "00000002.jsonl").unlink()
    assert len(read_journal(copies.on("a").attempt(1))) == 3


def test_a_copy_of_what_was_removed_goes(copies: Copies, tmp_path: Path) -> None:
    copies.on("a").claim(1).append("x", "one")
    copies.on("b").place.clear()
    assert copies.store.look("", deep=True).entries == {}
    assert not copies.on("a").root.exists()
    # Another sweep under the same name, of which the old copy knows nothing.
    copies.on("a").write_spec(SPEC)
    copies.on("a").claim(1).append("x", "of the first")
    old = copies.on("b")
    copies.on("c").place.clear()
    copies.on("c").write_spec(SPEC)
    copies.on("c").claim(1).append("x", "of the second")
    old.refresh()
    assert [record["message"] for record in read_journal(old.attempt(1))] == ["of the second"]


def test_edits_go_both_ways_and_no_number_twice(copies: Copies) -> None:
    one, other = copies.on("a"), copies.on("b")
    assert [one.add_edit({"n": 1}), other.add_edit({"n": 2}), one.add_edit({"n": 3})] == [1, 2, 3]
    other.put_edit(3, {"n": 3})
    with pytest.raises(RunDirError, match="somebody else"):
        other.put_edit(1, {"n": 9})
    assert [found.name for found in read_edits(copies.on("driver"))] == [f"0000000{n}.json" for n in (1, 2, 3)]
    one.put_edit(7, {"action": "pause"})
    one.put_edit(5, {"action": "resume"})
    assert [found.seq for found in read_edits(other, {f"0000000{n}.json" for n in (1, 2, 3)})] == [5, 7]


def test_trouble_with_the_store_is_trouble_with_the_directory(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = copies.on("a").claim(1)
    attempt.append("x", "one")

    def away(*args: Any, **named: Any) -> None:
        raise StoreUnavailable("answers SlowDown", "key")

    with monkeypatch.context() as broken:
        for name in ("put", "put_new", "look"):
            broken.setattr(copies.store, name, away)
        for trial in (lambda: attempt.append("x", "two"), lambda: attempt.beat({}), attempt.superseded):
            with pytest.raises(UnwritableRunDir, match="SlowDown"):
                trial()
        with pytest.raises(UnwritableRunDir):
            attempt.publish_result({})
        attempt.run.place.looking(attempt.signals)()
    attempt.last_word("job.failed", "the store was away", {}, level="error")
    assert [record["seq"] for record in read_journal(copies.on("b").attempt(1))] == [1, 2]


def test_signals_reach_other_nodes_now_and_then(copies: Copies) -> None:
    mine = copies.on("a").claim(1)
    there: Attempt = copies.on("b").attempt(1)
    remote, now = there.run.place, [100.0]
    assert isinstance(remote, Remote)
    look = remote.looking(there.signals, lambda: now[0])
    look()
    assert not there.signals.exists()
    mine.signal({"hold": True})
    look()
    assert not there.signals.exists()
    now[0] += LOOK_S
    look()
    assert json.loads(there.signals.read_text()) == {"hold": True}


def test_checkpoints_are_fetched_newest_first_and_damage_is_told(copies: Copies) -> None:
    run = copies.on("a")
    trial = run.attempt(1).trial_path("trl_0000")
    for step in (4, 8):
        (trial / f"rung-{step:06d}").mkdir(parents=True)
        (trial / f"rung-{step:06d}" / "weights").write_text(str(step))
        run.place.push(trial / f"rung-{step:06d}")
    other = copies.on("b")
    there = other.attempt(1).trial_path("trl_0000")
    assert other.place.pull_newest([there], "rung-") == []
    assert [path.name for path in there.iterdir()] == ["rung-000008"], "older ones are not needed"

    third = copies.on("c")
    key = next(key for key in copies.store.look("", deep=True).entries if "rung-000008/" in key)
    copies.store.put(key, b"torn")
    where = third.attempt(1).trial_path("trl_0000")
    damaged = third.place.pull_newest([where, where.with_name("none")], "rung-")
    assert [path for path, _ in damaged] == [str(where / "rung-000008")]
    assert [path.name for path in where.iterdir()] == ["rung-000004"]

    assert third.place.holds(where / "rung-000004")
    assert [path.name for path in third.place.folders(where)] == ["rung-000004", "rung-000008"]
    third.place.drop(where)
    assert not run.place.holds(trial / "rung-000004")


def test_a_checkpoint_is_taken_out(copies: Copies, tmp_path: Path) -> None:
    run = copies.on("a")
    final = run.attempt(1).trial_path("trl_0000") / "final"
    final.mkdir(parents=True)
    (final / "weights").write_text("w")
    run.place.push(final)
    other = copies.on("b")
    taken = take_out(other, "attempts/1/trials/trl_0000/final", tmp_path / "mine")
    assert (taken / "weights").read_text() == "w"
    for checkpoint, to in (("../a", "x"), ("attempts/1/none", "x"), ("attempts/1/trials/trl_0000/final", "mine")):
        with pytest.raises(ConfigError):
            take_out(other, checkpoint, tmp_path / to)


def test_what_was_prepared_halfway_is_replaced_by_what_was_sealed(copies: Copies) -> None:
    run = copies.on("a")
    prepared = run.attempt(1).prepared
    prepared.mkdir(parents=True)
    (prepared / "plan").write_text("whole")
    (prepared / "prepared.json").write_text("{}")
    run.place.push(prepared)
    other = copies.on("b")
    half = other.attempt(1).prepared
    half.mkdir(parents=True)
    (half / "plan").write_text("ha")
    assert other.place.pull_prepared(half)
    assert (half / "plan").read_text() == "whole"
    assert not other.place.pull_prepared(other.attempt(2).prepared)


def test_what_an_object_store_cannot_keep_is_refused_by_name(copies: Copies, tmp_path: Path) -> None:
    place: Place = copies.on("a").place
    endpoint = {"type": "openai", "url": "http://127.0.0.1:1/v1", "model": "m", "max_requests": 500}
    for field, changes in (
        ("judge", {"judge": endpoint, "objective": "accuracy"}),
        ("warm_start", {"warm_start": ["swp_1"]}),
        ("parallel.workers_per_trial", {"parallel": {"workers_per_trial": 2}}),
    ):
        spec = parse_spec({"name": "x", **changes})
        with pytest.raises(ConfigError) as told:
            check_supported(spec, place)
        assert told.value.field == field
        check_supported(spec, RunDir(tmp_path).place)
    for name in ("s3://bucket/x", "s3:/bucket/x"):
        with pytest.raises(ConfigError, match="a comparison cannot be kept in an object store yet"):
            refuse_remote(name, "a comparison")
    with pytest.raises(ConfigError, match="must be s3://BUCKET/PREFIX"):
        open_run("s3://", tmp_path)
