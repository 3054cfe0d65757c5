"""Drivers that no longer count: how much of their journals does, and how one that Ray has lost is told to end."""

import logging
from collections.abc import Sequence

from sqlalchemy import select

from service.models import Attempt, Sweep
from service.run_dirs import run_of
from service.settings import Settings
from service.states import TERMINAL
from service.store import Store
from simpo.errors import StorageError
from sweeps.recorded import RESUMED
from sweeps.run_dir import AttemptClaimed, Record, RunDir, read_journal, read_result

log = logging.getLogger(__name__)


def late_records(
    store: Store, run: RunDir, attempt: Attempt, records: Sequence[Record]
) -> list[tuple[int, list[Record]]]:
    """By number: what predecessors wrote after they were given up, as far as this attempt's driver says to have read.

    It does not say that again. What an orphan writes later is nobody's. `records`: new ones of this attempt.
    """
    read = next((record["data"]["read"] for record in records if record["type"] == RESUMED), None)
    if read is None:
        return []
    with store.read() as session:
        earlier = (Attempt.sweep_id == attempt.sweep_id) & (Attempt.n < attempt.n)
        before = session.scalars(select(Attempt).where(earlier).order_by(Attempt.n)).all()
    late = []
    for past in before:
        run.place.refresh_attempt(past.n)
        told = read_journal(run.attempt(past.n), past.journal_seq)
        late.append((past.n, [record for record in told if record["seq"] <= read.get(str(past.n), 0)]))
    return late


def fence_off(store: Store, settings: Settings, attempt: Attempt) -> None:
    """Make the last driver of a sweep that is over end by itself: at its next beat it sees a higher number taken.

    For one that Ray cannot stop, because Ray has forgotten it. Where a successor works, that one is the fence.
    """
    with store.read() as session:
        sweep = session.get_one(Sweep, attempt.sweep_id)
    run = run_of(settings, sweep.id)
    if sweep.state not in TERMINAL or sweep.attempt != attempt.n:
        return
    try:
        run.place.refresh_attempt(attempt.n)
        # What has a result has ended.
        if run.highest() == attempt.n and read_result(run.attempt(attempt.n)) is None:
            run.claim(attempt.n + 1)
    except AttemptClaimed:
        pass  # somebody did that before
    except StorageError as error:
        log.warning("%s: its driver could not be fenced off: %s", run.root.name, error)
