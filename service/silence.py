"""While Ray does not answer, what a row says of its cluster is old: `stale_since` says since when."""

from sqlalchemy import update

from service.clock import Clock
from service.models import Sweep
from service.quotas import Live
from service.states import LIVE
from service.store import Store


def mark_silence(store: Store, clock: Clock, live: Live, *, answered: bool) -> None:
    """Mark those of `live` that Ray should have told of, or, once it has `answered`, take the marks away.

    The first silent look counts: a row that is marked keeps its time. What has no attempt waits for its turn,
    not for Ray. One statement where something changes, none where nothing does.
    """
    wrong = [row.id for row, attempt in live if attempt is not None and (row.stale_since is not None) == answered]
    if not wrong:
        return
    still = Sweep.stale_since.is_not(None) if answered else Sweep.stale_since.is_(None)
    since = None if answered else clock.now()
    mark = update(Sweep).where(Sweep.id.in_(wrong), Sweep.state.in_(LIVE), still)
    with store.write() as session:
        session.execute(mark.values(stale_since=since, version=Sweep.version + 1))
