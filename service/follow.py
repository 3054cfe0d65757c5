"""Deployments that follow an alias: where it has moved, the next revision is wished for. Serve keeps the old one until
the new one answers."""

import logging

from sqlalchemy import select

from service import events, registry
from service.clock import Clock
from service.models import Deployment
from service.revisions import has_failed, next_revision, remember
from service.rows import lock_deployment
from service.states import DeploymentState
from service.store import Store
from service.winners import is_there

log = logging.getLogger(__name__)

ROLLING = "ROLLING"
"""Reason of a READY deployment whose next revision does not answer yet."""


def follow_aliases(store: Store, clock: Clock) -> bool:
    """Point every following deployment at the version its alias names. True when one was moved."""
    following = (Deployment.follows.is_not(None)) & (Deployment.desired == "SERVE")
    with store.read() as session:
        known = select(Deployment.id, Deployment.project, Deployment.follows, Deployment.model_version)
        behind = []
        for deployment_id, project, follows, n in session.execute(known.where(following)).all():
            target = registry.followed(session, project, str(follows))
            if target is None or target.version.n == n:
                continue
            if not has_failed(session, deployment_id, target.version.n, target.moved_by):
                behind.append(deployment_id)
    moved = [_move(store, clock, deployment_id) for deployment_id in behind]
    return True in moved


def _move(store: Store, clock: Clock, deployment_id: str) -> bool:
    with store.write() as session:
        row = lock_deployment(session, deployment_id)
        if row is None or row.desired != "SERVE":
            return False
        target = registry.followed(session, row.project, str(row.follows))
        if target is None or target.version.n == row.model_version:
            return False
        version = target.version
        if not is_there(version.model_path):
            log.error("%s: version %d of %s is not on disk any more", row.id, version.n, row.follows)
            return False
        now = clock.now()
        remember(session, row, now)
        number = next_revision(session, row)
        facts = {"name": row.name, "follows": row.follows, "from": row.model_version, "to": version.n, "weight": 1.0}
        facts |= {"revision": number, "promotion": target.moved_by}
        row.model_path, row.model_version = version.model_path, version.n
        row.sweep_id, row.checkpoint = version.sweep_id, version.checkpoint
        row.revision = number
        remember(session, row, now, moved_by=target.moved_by)
        if row.state == DeploymentState.READY:
            row.reason, row.message = ROLLING, f"Version {version.n} comes; the one before answers."
        text = f"{row.follows} is version {version.n}: it takes over as soon as it answers."
        events.append(session, row, "deployment.weight_changed", text, facts, now=now)
    return True
