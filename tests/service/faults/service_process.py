"""The service in a process of its own: an API, a reconciler, or both, that dies or stands still at a named place.

Forked from a process that has imported everything, so a start costs no import. What it says goes to a log file.
"""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import uvicorn

from service.app import create_app
from service.clock import SystemClock
from service.cluster import RayJobs
from service.settings import Settings

NOWHERE = "-"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one process is set up."""

    settings: Settings
    log: Path
    place: str = NOWHERE
    """Name of the failpoint where it ends itself, kill -9; after `stop:`, where it once stands still (SIGSTOP)."""
    clock: Path
    """A file with the seconds by which its wall clock is wrong; absent: none."""
    ray_timeout_s: float = 10.0
    """Its patience with Ray."""


def start(plan: Plan) -> BaseProcess:
    """A fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_serve, args=(plan,), daemon=True)
    process.start()
    return process


class WrongClock(SystemClock):
    """The machine's, with a wall clock that somebody sets."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def now(self) -> datetime:
        offset = float(self._file.read_text()) if self._file.exists() else 0.0
        return datetime.now(UTC) + timedelta(seconds=offset)


def _serve(plan: Plan) -> None:
    with plan.log.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    settings = plan.settings
    app = create_app(
        settings,
        jobs=RayJobs(settings.ray_jobs_url, settings.ray_token, timeout_s=plan.ray_timeout_s),
        clock=WrongClock(plan.clock),
        failpoint=_failpoint(plan.place),
    )
    where = {"host": settings.bind_host, "port": settings.bind_port}
    uvicorn.run(app, **where, log_config=None, timeout_graceful_shutdown=2)  # type: ignore[arg-type]


def _failpoint(place: str) -> Callable[[str], None]:
    number = signal.SIGSTOP if place.startswith("stop:") else signal.SIGKILL
    ahead = [place.removeprefix("stop:")]

    def reached(here: str) -> None:
        if ahead == [here]:
            ahead.clear()
            os.kill(os.getpid(), number)
            time.sleep(0.5)  # the signal is the process's, this thread might go on for a moment

    return reached
