"""Slots without work rest in their warm processes: who is woken, and when. Tune's part is played by the test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from sweeps.engine import Relay, run_or_rest
from sweeps.ray_session import Room
from sweeps.remote import Remote
from sweeps.run_dir import Attempt, RunDir
from sweeps.searcher import StudySearcher
from sweeps.store import DirectoryStore
from sweeps.trial import Assignment, Update

pytestmark = pytest.mark.quick


class Generations:
    """Books with a barrier: the second half of the trials waits for the end of the first."""

    def __init__(self, attempt: Attempt, *sizes: int) -> None:
        self.attempt = attempt
        self.paused = False
        self._sizes = list(sizes)
        self._first = True
        self._asked = self._ended = 0

    @property
    def drained(self) -> bool:
        return not self._sizes

    def next(self) -> Assignment | None:
        if self.paused or not self._sizes:
            return None
        if self._asked == self._sizes[0]:
            if self._ended == self._asked:
                self._asked = self._ended = 0
                del self._sizes[0]
                self._first = False
                return self.next()
            return None
        self._asked += 1
        place = str(self.attempt.path)
        name = f"t_{self._asked}"
        where = {"run_dir": place, "prepared": place, "directory": place}
        peers = None if self._first else self._sizes[0]
        return Assignment(trial_id=name, params={}, cutoffs={}, resume=[], deadline=None, peers=peers, **where)

    def number_of(self, trial_id: str) -> int:
        return int(trial_id.removeprefix("t_"))

    def update(self, number: int, update: Update) -> None:
        pass

    def end(self, number: int, update: Update | None) -> None:
        self._ended += 1


class Slots:
    """What Tune does with a searcher: fill the slots, tell of ends. A rest ends once its file is there."""

    def __init__(self, relay: Relay, number: int) -> None:
        self.relay = relay
        self.number = number
        self.running: dict[str, dict[str, Any]] = {}
        self.started = 0
        self.finished = False

    def fill(self, *, up: bool = True) -> None:
        """Until nothing changes."""
        for _ in range(100):
            woken = [name for name, config in self.running.items() if self._woken(config)]
            for name in woken:
                self.end(name)
            asked = self._ask(up)
            if not woken and not asked:
                return
        raise AssertionError("slots are woken without end")

    def end(self, name: str) -> None:
        self.relay.on_trial_complete(name, {})
        del self.running[name]

    @property
    def trials(self) -> list[str]:
        return [name for name, config in self.running.items() if "rest_until" not in config]

    @property
    def resting(self) -> int:
        return len(self.running) - len(self.trials)

    def _ask(self, up: bool) -> bool:
        if self.finished or len(self.running) == self.number:
            return False
        name = f"tune{self.started}"
        told = self.relay.suggest(name)
        if isinstance(told, dict):
            self.started += 1
            self.running[name] = told
            if up and "rest_until" in told:
                self.relay.on_trial_result(name, {"resting": True})
            return True
        self.finished = self.finished or told is not None
        return False

    @staticmethod
    def _woken(config: dict[str, Any]) -> bool:
        return "rest_until" in config and Path(config["rest_until"]).exists()


def begin(tmp_path: Path, slots: int, *sizes: int, lends: bool = True) -> tuple[Slots, Generations, Callable[[], bool]]:
    (tmp_path / "wakes").mkdir()
    room = Room(trials=slots, workers=1, gpus=0.0, lends=lends)
    relay = Relay(tmp_path / "wakes", room)
    tune = Slots(relay, slots)
    tune.fill()
    assert (tune.resting, relay.resting) == (slots, slots), "every process is warm before a search begins"
    books = Generations(RunDir(tmp_path / "run").claim(1), *sizes)
    over = relay.begin(StudySearcher(books, room))
    tune.fill()
    return tune, books, over


def test_slots_rest_at_a_barrier_and_all_go_on_behind_it(tmp_path: Path) -> None:
    tune, _, over = begin(tmp_path, 3, 3, 3)
    assert len(tune.trials) == 3
    first, second, third = tune.trials
    tune.end(first)
    tune.fill()
    tune.end(second)
    tune.fill()
    assert (len(tune.trials), tune.resting) == (1, 2), "nobody gives up a process while the last one runs"
    tune.end(third)
    tune.fill()
    assert (len(tune.trials), tune.resting) == (3, 0), "one that goes on wakes the next"
    for name in tune.trials:
        assert not over()
        tune.end(name)
    tune.fill()
    assert over() and tune.resting == 3, "the processes wait for a further search"


@pytest.mark.parametrize(("lends", "threads"), [(True, [1, 4, 2]), (False, [1, 1, 1])])
def test_a_generation_that_leaves_slots_empty_has_their_cores(tmp_path: Path, lends: bool, threads: list[int]) -> None:
    tune, _, _ = begin(tmp_path, 4, 5, 1, 2, lends=lends)
    for size, wanted in zip((5, 1, 2), threads, strict=True):
        for _ in range(size):
            name = tune.trials[0]
            assert tune.running[name]["threads"] == wanted
            tune.end(name)
            tune.fill()


def test_one_rest_ends_at_a_time_while_there_is_nothing_to_do(tmp_path: Path) -> None:
    tune, books, _ = begin(tmp_path, 4, 1, 1)
    assert (len(tune.trials), tune.resting) == (1, 3)
    before = tune.started
    tune.relay.stir()
    tune.fill()
    assert tune.started == before + 1 and tune.resting == 3
    books.paused = True
    tune.end(tune.trials[0])
    tune.fill()
    assert (len(tune.trials), tune.resting) == (0, 4)
    books.paused = False  # by somebody who cannot tell the engine
    tune.relay.stir()
    tune.fill()
    assert (len(tune.trials), tune.resting) == (1, 3)


def test_a_rest_that_has_no_process_gives_way_to_a_trial(tmp_path: Path) -> None:
    """Its node is lost: it would take the slot that the next trial needs, and nobody would wake it."""
    tune, _, _ = begin(tmp_path, 2, 2, 2)
    one, other = tune.trials
    tune.end(one)
    tune.fill(up=False)
    rest = next(config for config in tune.running.values() if "rest_until" in config)
    assert not Path(rest["rest_until"]).exists()
    tune.end(other)
    assert Path(rest["rest_until"]).exists()


def test_the_end_of_the_engine_ends_all_rests(tmp_path: Path) -> None:
    tune, _, over = begin(tmp_path, 2, 1)
    tune.end(tune.trials[0])
    tune.fill()
    assert over() and not tune.finished
    tune.relay.close()
    tune.fill()
    assert tune.finished and not tune.running


def test_who_rests_on_another_node_is_woken_through_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there, store = tmp_path / "here", tmp_path / "there", DirectoryStore(tmp_path / "store")
    wakes = here / "attempts" / "1" / "engine" / "wakes"
    wakes.mkdir(parents=True)
    room = Room(trials=1, workers=1, gpus=0.0, lends=False)
    relay = Relay(wakes, room, RunDir(here, Remote(store, here)))
    config = relay.suggest("t1")
    assert isinstance(config, dict)
    relay.close()
    assert list(store.look("attempts/1/engine/wakes/").entries) == ["t1"]
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", told.append)
    run_or_rest({key: str(value).replace(str(here), str(there)) for key, value in config.items()})
    assert told == [{"resting": True}, {"done": True}]
