"""Deployments that follow an alias: where it has moved, the next revision is wished for. Serve keeps the old one until
the new one answers."""

import logging
from pathlib import Path

from sqlalchemy import select

from service import events, registry
from service.clock import Clock
from service.models import Deployment
from service.states import DeploymentState
from service.store import Store

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
            if target is not None and target.version.n != n:
                behind.append(deployment_id)
    moved = [_move(store, clock, deployment_id) for deployment_id in behind]
    return True in moved


def _move(store: Store, clock: Clock, deployment_id: str) -> bool:
    with store.write() as session:
        row = session.scalar(select(Deployment).where(Deployment.id == deployment_id).with_for_update())
        if row is None or row.desired != "SERVE":
            return False
        target = registry.followed(session, row.project, str(row.follows))
        if target is None or target.version.n == row.model_version:
            return False
        version = target.version
        if not (Path(version.model_path) / "config.json").is_file():
            log.error("%s: version %d of %s is not on disk any more", row.id, version.n, row.follows)
            return False
        facts = {"name": row.name, "follows": row.follows, "from": row.model_version, "to": version.n, "weight": 1.0}
        facts |= {"revision": row.revision + 1, "promotion": target.moved_by}
        row.model_path, row.model_version = version.model_path, version.n
        row.sweep_id, row.checkpoint = version.sweep_id, version.checkpoint
        row.revision += 1
        if row.state == DeploymentState.READY:
            row.reason, row.message = ROLLING, f"Version {version.n} comes; the one before answers."
        text = f"{row.follows} is version {version.n}: it takes over as soon as it answers."
        events.append(session, row, "deployment.weight_changed", text, facts, now=clock.now())
    return True
