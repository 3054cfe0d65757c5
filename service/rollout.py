"""Deployments: what is wished is declared to Serve as a whole, what Serve shows is mirrored. READY only when seen."""

import logging
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import events
from service.clock import Clock
from service.follow import ROLLING, follow_aliases
from service.models import DEFAULT_PROJECT, Deployment
from service.pauses import Pauses
from service.rows import wanted_deployments
from service.serving.deployer import Deployer, DeployerError, DesiredDeployment, ObservedDeployment
from service.states import DEPLOYMENT_MOVES, DeploymentState
from service.store import Store
from simpo.errors import SimPOError

log = logging.getLogger(__name__)

_STEADY_LOOK_S = 5.0  # between two looks at Serve while everything is as wished

Observed = dict[str, ObservedDeployment]


class Rollout:
    """One pass over the deployments. The only caller of the Deployer, from one thread."""

    def __init__(self, store: Store, deployer: Deployer, clock: Clock, failpoint: Callable[[str], None]) -> None:
        self._store = store
        self._deployer = deployer
        self._clock = clock
        self._failpoint = failpoint
        self._pauses = Pauses(clock)
        self._steady_until = 0.0

    def step(self) -> None:
        """Declare and mirror. No call to Serve while there is no deployment, few while all is steady."""
        if follow_aliases(self._store, self._clock):
            self._steady_until = 0.0
        with self._store.read() as session:
            rows = wanted_deployments(session)
        settled = (DeploymentState.READY, DeploymentState.FAILED)
        steady = all(row.state in settled and row.desired == "SERVE" and row.reason != ROLLING for row in rows)
        if not rows or (steady and self._clock.monotonic() < self._steady_until) or not self._pauses.over("serve"):
            return
        wanted = [desired(row) for row in rows if row.desired == "SERVE"]
        try:
            seen = self._deployer.observe()
            if _differs(wanted, seen):
                self._deployer.apply(wanted)
                self._failpoint("mid_deploy")
                seen = self._deployer.observe()
        except (DeployerError, SimPOError) as error:
            log.warning("deployments: %s", error)
            self._pauses.longer("serve")
            self._mirror(rows, None, str(error))
            return
        self._pauses.clear("serve")
        self._steady_until = self._clock.monotonic() + _STEADY_LOOK_S
        self._mirror(rows, seen, "")

    def _mirror(self, rows: list[Deployment], seen: Observed | None, trouble: str) -> None:
        for old in rows:
            state, reason, message = _target(old, seen, trouble)
            if (old.state, old.reason, old.message) == (state, reason, message):
                continue
            with self._store.write() as session:
                row = session.scalar(select(Deployment).where(Deployment.id == old.id).with_for_update())
                # What was seen answers the wish that was read, not one that came since.
                if row is not None and (row.desired, row.revision, row.state) == (old.desired, old.revision, old.state):
                    self._record(session, row, state, reason, message)

    def _record(self, session: Session, row: Deployment, state: DeploymentState, reason: str, message: str) -> None:
        now = self._clock.now()
        if reason == "READY":
            self._answers(session, row, now)
        if row.state != state:
            if row.desired == "DELETE" and row.state != DeploymentState.DELETING:
                row.state = DeploymentState.DELETING
            if row.state != state:
                assert state in DEPLOYMENT_MOVES[row.state], f"{row.id}: {row.state} -> {state}"
                row.state = state
            if state == DeploymentState.READY:
                row.ready_at = now
            if state == DeploymentState.DELETED:
                row.ended_at = now
            level = "error" if state == DeploymentState.FAILED else "info"
            kind = f"deployment.{state.lower()}"
            events.append(session, row, kind, message, {"name": row.name}, now=now, level=level)
        row.reason, row.message = reason, message

    def _answers(self, session: Session, row: Deployment, now: datetime) -> None:
        """Note which revision answers; of one that took over from another, while the model stayed READY, tell."""
        before, row.ready_revision = row.ready_revision, row.revision
        if row.state == DeploymentState.READY and before is not None and before < row.revision:
            row.ready_at = now
            facts = {"name": row.name, "from": before, "to": row.revision, "version": row.model_version}
            text = f"Revision {row.revision} answers now."
            events.append(session, row, "deployment.rolled_out", text, facts, now=now)


def desired(row: Deployment) -> DesiredDeployment:
    """What Serve is told of a row."""
    project = None if row.project == DEFAULT_PROJECT else row.project
    return DesiredDeployment(
        id=row.id,
        name=row.name,
        model_path=row.model_path,
        revision=row.revision,
        project=project,
        base=row.base_path,
    )


def _differs(wanted: list[DesiredDeployment], seen: Observed) -> bool:
    if {d.id for d in wanted} != set(seen):
        return True
    return any(seen[d.id].revision not in (None, d.revision) for d in wanted)


def _target(row: Deployment, seen: Observed | None, trouble: str) -> tuple[DeploymentState, str, str]:
    """(state, reason, message) that the row should show."""
    if seen is None:
        # A model that was READY may well still answer: the dashboard's silence says nothing about it.
        state = DeploymentState.DELETING if row.desired == "DELETE" else DeploymentState(row.state)
        return state, "SERVE_UNREACHABLE", trouble
    shown = seen.get(row.id)
    if row.desired == "DELETE":
        if shown is None:
            return DeploymentState.DELETED, "DELETED", "Deleted."
        return DeploymentState.DELETING, "STOPPING", "Serve stops the model."
    if shown is None or shown.state == "PENDING" or shown.revision not in (None, row.revision):
        before = row.ready_revision
        if shown is not None and row.state == DeploymentState.READY and before is not None and before < row.revision:
            return DeploymentState.READY, ROLLING, f"Revision {row.revision} loads; revision {before} answers."
        return DeploymentState.PENDING, "STARTING", (shown.message if shown else "") or "Serve loads the model."
    if shown.state == "FAILED":
        return DeploymentState.FAILED, "SERVE_FAILED", shown.message or "Serve could not load the model."
    return DeploymentState.READY, "READY", "Answers."
