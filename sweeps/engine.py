"""Ray Tune as it is used here: one run of it that serves a search, or several in turn, in the same warm processes.

Tune gives up all but one of its idle actors, and with them imports of 5 to 9 s each. A slot without work, between two
searches or while a search waits for results, is therefore held by a trial that rests: it trains nothing and ends when
it is woken. A search begins when all slots rest: Tune would give short trials, one after another, to the first process
that is up, and drop the others before they are.
"""

import contextlib
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from simpo.errors import StorageError
from sweeps.ray_session import Room
from sweeps.run_dir import RunDir
from sweeps.searcher import Books, StudySearcher
from sweeps.stopping import Stop
from sweeps.trial import run_trial
from sweeps.worker import DRIVER_CPUS, run_worker_trial
from sweeps.working_copy import place_of

RETRIES = 2
"""Times that a trial whose process died is started again, from its newest rung."""
POLL_S = 0.05
WARMING_S = 15.0
"""Most that a search waits for further processes once one is up: a busy cluster may not have room for all."""
STIR_S = 1.0
"""Time between looks at whether a search that waited has work again: a person may have ended a pause."""
CLOSING_S = 60.0
"""Most that the last trials may take to end when the engine is closed."""


class WarmEngine:
    """Searches one after another. `search` is for one thread; Tune runs in another."""

    def __init__(self, directory: Path, room: Room, run: RunDir | None = None) -> None:
        """run: whose working copy `directory` lies in, where nodes have copies of their own."""
        self.room = room
        self._run = run if run is not None and run.place.remote else None
        self.relay = Relay(directory / "wakes", room, self._run)
        self._directory = directory
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._tune, name="tune", daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator["WarmEngine"]:
        """Tune runs for the length of the context. Raises StorageError: no folder can be made."""
        shutil.rmtree(self._directory, ignore_errors=True)  # of a driver that was killed
        wakes = self._directory / "wakes"
        try:
            wakes.mkdir(parents=True)
        except OSError as error:
            raise StorageError(f"cannot be made ({error.strerror}): check space and permissions", str(wakes)) from error
        self._thread.start()
        try:
            yield self
        except BaseException:
            self.relay.abort()
            raise
        finally:
            self.relay.close()
            shutil.rmtree(wakes, ignore_errors=True)  # also who could not be woken on a full disk ends now
            self._thread.join(CLOSING_S)
            shutil.rmtree(self._directory, ignore_errors=True)
            if self._run is not None:
                self._run.place.drop(self._directory)

    def search(self, books: Books, stop: Stop) -> None:
        """Run all that the books ask for. Raises Stopped, and what went wrong in Tune."""
        try:
            check = books.attempt.check
            self._wait(self._warm(), stop, check)
            self._wait(self.relay.begin(StudySearcher(books, self.room)), stop, check)
            check()
        except BaseException:
            self.relay.abort()
            raise

    def _warm(self) -> Callable[[], bool]:
        """Tells whether enough processes are up to begin."""
        first_up = math.inf

        def warm() -> bool:
            nonlocal first_up
            resting, now = self.relay.resting, time.monotonic()
            first_up = min(first_up, now) if resting else first_up
            return resting >= self.room.trials or now - first_up > WARMING_S

        return warm

    def _wait(self, over: Callable[[], bool], stop: Stop, check: Callable[[], None]) -> None:
        stirred = time.monotonic()
        while not over():
            stop.check()
            check()  # the journal's own trouble says more than what Tune makes of it
            if not self._thread.is_alive():
                raise RuntimeError(f"the search engine has ended early: {self._error}") from self._error
            if time.monotonic() - stirred > STIR_S:
                stirred = time.monotonic()
                self.relay.stir()
            time.sleep(POLL_S)

    def _tune(self) -> None:
        try:
            self._tuner().fit()
        except BaseException as error:  # told by `search`, in the thread that waits
            self._error = error

    def _tuner(self) -> tune.Tuner:
        one = self.room.workers == 1
        resources = {"CPU": 1.0, "GPU": self.room.gpus} if one else {"CPU": DRIVER_CPUS}
        return tune.Tuner(
            tune.with_resources(run_or_rest if one else run_or_rest_workers, resources),
            tune_config=tune.TuneConfig(
                search_alg=self.relay,
                num_samples=-1,  # the books count: somebody may extend the budget
                max_concurrent_trials=self.room.trials,
                reuse_actors=True,
                trial_dirname_creator=_short_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                callbacks=[_Abort(self.relay)],
                storage_path=str(self._directory),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                verbose=0,
            ),
        )


class Relay(Searcher):
    """Tune's searcher: passes questions and answers to the search of the moment; slots without work rest."""

    def __init__(self, wakes: Path, room: Room, run: RunDir | None = None) -> None:
        """run: where it is in an object store; who rests on another node looks for its wake there."""
        super().__init__()
        self.aborted = False
        self._wakes = wakes
        self._run = run
        self._room = room
        self._lock = threading.RLock()
        self._current: StudySearcher | None = None
        self._live: dict[str, StudySearcher] = {}
        self._rests: dict[str, bool] = {}  # of those that nobody has woken: whether its process is up
        self._woken: set[str] = set()  # these end by themselves, as soon as they are up
        self._closed = False

    @property
    def resting(self) -> int:
        """Processes that are up and idle, and stay so."""
        with self._lock:
            return sum(self._rests.values())

    def begin(self, search: StudySearcher) -> Callable[[], bool]:
        """Serve this search from now on; the answer tells whether it is over."""
        with self._lock:
            self._current = search
            self._wake(*self._rests)

        def over() -> bool:
            with self._lock:
                return self._current is not search and search not in self._live.values()

        return over

    def close(self) -> None:
        """No further search will come."""
        with self._lock:
            self._closed = True
            self._current = None
            self._wake(*self._rests)

    def abort(self) -> None:
        """End Tune's loop at its next step, whatever runs."""
        self.aborted = True

    def stir(self) -> None:
        """One of those that rest ends, so that the search is asked again."""
        with self._lock:
            if self._current is not None:
                self._wake_next()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A trial's config, or that of a rest; None: nothing now; FINISHED: no more searches."""
        with self._lock:
            if self.aborted:
                raise _Aborted
            if self._current is not None:
                told = self._current.suggest(trial_id)
                if isinstance(told, dict):
                    self._live[trial_id] = self._current
                    self._wake_next()  # where one goes on there may be work for another
                    return told
                if told is not None:
                    self._current = None
            if self._closed:
                return str(Searcher.FINISHED)
            if len(self._live) + len(self._rests) + len(self._woken) >= self._room.trials:
                return None
            self._rests[trial_id] = False
            where = {} if self._run is None else {"store": self._run.place.uri, "run_dir": str(self._run.root)}
            return {"rest_until": str(self._wakes / trial_id), **where}

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Kept here, or Tune would wrap this searcher in a limiter of its own."""
        return True

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """To the search that the trial belongs to."""
        with self._lock:
            if trial_id in self._rests:
                self._rests[trial_id] = True
            elif trial_id in self._live:
                self._live[trial_id].on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """To the search that the trial belongs to."""
        with self._lock:
            self._rests.pop(trial_id, None)
            self._woken.discard(trial_id)
            if trial_id in self._live:
                # First told, then forgotten: `over` must not be true before the ledger has the end.
                self._live[trial_id].on_trial_complete(trial_id, result, error)
                del self._live[trial_id]
                # One without a process must not take a slot from a trial: a node may be lost.
                self._wake(*[rest for rest, up in self._rests.items() if not up])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journals are the searches' memory."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the journals are the searches' memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Refused: Tune's files are pickles, and the journals know more."""
        raise NotImplementedError("a search is resumed from its journals: python -m sweeps resume DIR")

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into a file that nobody reads: leave everything out of it."""
        return {}

    def _wake_next(self) -> None:
        self._wake(*[rest for rest, up in self._rests.items() if up][:1])

    def _wake(self, *rests: str) -> None:
        for rest in rests:
            del self._rests[rest]
            self._woken.add(rest)
            with contextlib.suppress(OSError):  # the folder is gone, and the rest with it; or the disk is full
                (self._wakes / rest).touch()
            if self._run is not None:
                with contextlib.suppress(StorageError):  # the journal will say so
                    self._run.place.publish(self._wakes / rest, "", durable=False)


class _Aborted(Exception):
    """Ends Tune's loop."""


class _Abort(tune.Callback):
    """Looks for an abort at every step of Tune's loop."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._relay.aborted:
            raise _Aborted


def run_or_rest(config: dict[str, Any]) -> None:
    """The function that Tune calls: rest, or one trial."""
    _rest(**config) if "rest_until" in config else run_trial(config)


def run_or_rest_workers(config: dict[str, Any]) -> None:
    """The same for trials of several workers."""
    _rest(**config) if "rest_until" in config else run_worker_trial(config)


def _rest(rest_until: str, store: str | None = None, run_dir: str = "") -> None:
    """Until that file is there, or its folder is gone with the engine; on another node it is in the store alone."""
    tune.report({"resting": True})
    wake = Path(rest_until)
    elsewhere = store is not None and not wake.parent.exists()
    look = place_of(store if elsewhere else None, Path(run_dir)).looking(wake)
    while not wake.exists() and (elsewhere or wake.parent.exists()):
        time.sleep(POLL_S)
        look()
    tune.report({"done": True})


def _short_name(trial: Any) -> str:
    return f"t{trial.trial_id}"
