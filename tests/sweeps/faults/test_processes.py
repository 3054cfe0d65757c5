"""kill -9 of the driver and of trial processes; a trial that always dies; a driver that comes back as an orphan."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from simpo import checkpoint
from sweeps.driver import run_attempt
from sweeps.engine import run_or_rest
from sweeps.run_dir import AttemptClaimed, Record, RunDir, read_journal, read_result
from tests.sweeps.drivers import Driver, leftovers, wait_for
from tests.sweeps.faults.invariants import check

pytestmark = pytest.mark.ray


def test_a_killed_driver_leaves_no_process_and_its_successor_finds_the_same_winner(
    run: RunDir, undisturbed: Path
) -> None:
    with Driver(run.spec_path, run, until=("trial.completed", 2)) as driver:
        wait_for(run, "trial.completed", 2)
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert leftovers(family) == []

    seen: list[Record] = []
    result = run_attempt(run, listeners=[seen.append])
    check(run.root, like=undisturbed)
    assert result["attempt"] == 2
    assert sum(record["type"] == "trial.created" for record in seen) <= 4, "finished trials were run again"
    assert any("as prepared by attempt 1" in record["message"] for record in seen)


@pytest.mark.parametrize("moment", ["within a step", "while it writes a checkpoint"])
def test_a_killed_trial_goes_on_in_another_process(
    run: RunDir, undisturbed: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assassin = _Assassin(run, at_checkpoint=moment == "while it writes a checkpoint")
    monkeypatch.setattr("sweeps.engine.run_or_rest", _writing_while(assassin.gate))
    with assassin.at_work():
        run_attempt(run, listeners=[assassin.listen])
    assert assassin.victim, "nobody was killed"
    check(run.root, like=undisturbed)
    starts = [record for record in read_journal(run.attempt(1)) if record["type"] == "trial.started"]
    of_victim = [record["data"] for record in starts if record["data"]["trial_id"] == assassin.victim]
    assert len(of_victim) == 2
    assert of_victim[0]["pid"] != of_victim[1]["pid"]
    assert not list(run.root.glob("attempts/1/trials/*/.*")), "what it had not finished writing stays behind"


def test_a_trial_that_always_dies_fails_alone(run: RunDir, undisturbed: Path) -> None:
    def poison(record: Record) -> None:
        if record["type"] == "trial.started" and record["data"]["number"] == 1:
            os.kill(record["data"]["pid"], signal.SIGKILL)

    result = run_attempt(run, listeners=[poison])
    check(run.root)
    records = read_journal(run.attempt(1))
    assert [r["data"]["number"] for r in records if r["type"] == "trial.started"].count(1) == 3, "tried twice more"
    failed = [record["data"] for record in records if record["type"] == "trial.failed"]
    assert [(data["number"], data["value"]) for data in failed] == [(1, None)]
    assert "process died" in failed[0]["reason"]
    assert sum(result["trials"].values()) == 6
    assert result["trials"]["FAILED"] == 1


def test_an_orphan_comes_back_and_touches_nothing(run: RunDir, undisturbed: Path) -> None:
    driver = Driver(run.spec_path, run, until=("trial.completed", 1))
    with driver as orphan:
        wait_for(run, "trial.completed", 1)
        orphan.send_signal(signal.SIGSTOP)
        written = len(read_journal(run.attempt(1)))

        def wake(record: Record) -> None:
            if record["type"] == "trial.completed":
                driver.let_go()
                orphan.send_signal(signal.SIGCONT)

        result = run_attempt(run, listeners=[wake])
        assert orphan.wait(timeout=120) == 130
    assert result["attempt"] == 2
    check(run.root, like=undisturbed)
    late = read_journal(run.attempt(1))
    assert (late[-1]["type"], late[-1]["data"]["reason"]) == ("job.stopped", "a newer attempt has taken over")
    assert len(late) > written, "it did come back"
    with pytest.raises(AttemptClaimed, match="superseded: its result is not accepted"):
        run.attempt(1).publish_result(result)
    assert read_result(run.attempt(1)) is None


class _Assassin:
    """Kills one trial process, once: within a training step, or while a checkpoint lies half-written."""

    def __init__(self, run: RunDir, *, at_checkpoint: bool) -> None:
        self.victim = ""
        """The trial whose process it was."""
        self.gate = run.root.with_name("half-written")
        """As long as it is there, checkpoints stay half-written (`_writing_while`)."""
        self._trials = run.root / "attempts" / "1" / "trials"
        self._at_checkpoint = at_checkpoint
        self._pids: dict[str, int] = {}
        self._hand: threading.Thread | None = None
        self._late = threading.Event()
        self._over = threading.Event()

    def listen(self, record: Record) -> None:
        """Called by the driver, which lets the trial go on only after that."""
        data = record["data"]
        if record["type"] == "trial.started":
            self._pids[data["trial_id"]] = data["pid"]
        elif record["type"] != "trial.progress" or self._at_checkpoint:
            return
        elif self._hand is None and data["step"] == 6:
            self.victim = data["trial_id"]
            pid = self._pids[self.victim]
            self._hand = threading.Thread(target=_kill_when_it_works, args=[pid, self._late], daemon=True)
            self._hand.start()
        elif self._hand is not None and data["trial_id"] == self.victim:
            self._late.set()  # it was quicker: it has done its next step, and comes no further
            self._hand.join()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Looks for half-written checkpoints meanwhile."""
        watch = threading.Thread(target=self._watch, daemon=True)
        if self._at_checkpoint:
            self.gate.touch()
        watch.start()
        try:
            yield
        finally:
            self._over.set()
            watch.join()

    def _watch(self) -> None:
        while self._at_checkpoint and not self.victim and not self._over.is_set():
            for moments in self._trials.glob("*/.rung-*.partial-*/optimizer.safetensors"):
                self.victim = moments.parent.parent.name
                os.kill(int(moments.parent.name.split("-")[-2]), signal.SIGKILL)
                break
            time.sleep(0.01)
        self.gate.unlink(missing_ok=True)


def _writing_while(gate: Path) -> Callable[[dict[str, Any]], None]:
    """What Tune calls, with checkpoints that stay half-written while `gate` is there. A closure: it travels whole."""

    def run(config: dict[str, Any]) -> None:
        save_file = checkpoint.save_file

        def save_half(*what: Any, **how: Any) -> None:
            save_file(*what, **how)  # the moments; the manifest is still to come
            while gate.exists():
                time.sleep(0.01)

        with mock.patch.object(checkpoint, "save_file", save_half):
            run_or_rest(config)

    return run


def _kill_when_it_works(pid: int, late: threading.Event) -> None:
    """Once it has taken processor time for the next step; at once when it is late."""
    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    while sum(process.cpu_times()[:2]) == before and not late.is_set():
        time.sleep(0.001)
    process.kill()
