"""Deployments: what is wished is declared to Serve as a whole, what Serve shows is mirrored. READY only when seen."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from sqlalchemy.orm import Session

from service import events
from service.canaries import end, live_canary
from service.canary_watch import CanaryWatch
from service.clock import Clock
from service.follow import ROLLING, follow_aliases
from service.models import DEFAULT_PROJECT, Deployment
from service.models_canaries import DeploymentRevision
from service.pauses import Pauses
from service.revisions import point_at, remember
from service.rows import lock_deployment, wanted_deployments
from service.serving.declared import DesiredDeployment
from service.serving.deployer import Deployer, DeployerError, ObservedDeployment, Rest
from service.states import DEPLOYMENT_MOVES, CanaryState, DeploymentState
from service.store import Store
from simpo.errors import SimPOError

log = logging.getLogger(__name__)

_STEADY_LOOK_S = 5.0  # between two looks at Serve while everything is as wished

UNREACHABLE = "SERVE_UNREACHABLE"
"""Reason of a deployment whose state is only what Serve last said."""
ROLLED_BACK = "ROLLED_BACK"
"""Reason of a READY deployment whose next revision could not be loaded: the one before answers."""

_ANSWERS: Mapping[Rest, str] = {
    "": "Answers.",
    "ASLEEP": "Nobody asked for a while, so no replica runs; the next request starts one and waits for it.",
    "WAKING": "A replica starts; requests wait for it.",
}

Observed = dict[str, ObservedDeployment]


class Rollout:
    """One pass over the deployments. The only caller of the Deployer, from one thread."""

    def __init__(self, store: Store, deployer: Deployer, clock: Clock, failpoint: Callable[[str], None]) -> None:
        self._store = store
        self._deployer = deployer
        self._clock = clock
        self._failpoint = failpoint
        self._pauses = Pauses(clock)
        self._canaries = CanaryWatch(store, clock)
        self._declared: list[DesiredDeployment] = []  # at the last look
        self._steady_until = 0.0

    def step(self) -> None:
        """Declare and mirror. No call to Serve while there is no deployment, few while all is steady."""
        if follow_aliases(self._store, self._clock):
            self._steady_until = 0.0
        with self._store.read() as session:
            rows = wanted_deployments(session)
        champions = [row for row in rows if row.desired == "SERVE"]
        wanted = [desired(row) for row in champions]
        candidates = self._canaries.wanted(champions, {each.id: each for each in wanted})
        # A candidate stays, and the champion beside it: a roll-back is answered at once.
        wanted = [replace(each, idle_s=None) if each.id in candidates else each for each in wanted]
        wanted += [declared for _, declared in candidates.values()]
        steady = all(_is_settled(row) for row in rows) and not candidates and wanted == self._declared
        if not rows or (steady and self._clock.monotonic() < self._steady_until) or not self._pauses.over("serve"):
            return
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
        self._declared = wanted
        self._steady_until = self._clock.monotonic() + _STEADY_LOOK_S
        self._mirror(rows, seen, "")
        self._canaries.step(rows, candidates, seen)

    def _mirror(self, rows: list[Deployment], seen: Observed | None, trouble: str) -> None:
        for old in rows:
            if seen is not None and _cannot_follow(old, seen.get(old.id)) and self._return(old, seen[old.id].message):
                continue
            state, reason, message = _target(old, seen, trouble)
            if (old.state, old.reason, old.message) == (state, reason, message):
                continue
            with self._store.write() as session:
                row = _unmoved(session, old)
                if row is not None:
                    self._record(session, row, state, reason, message)

    def _return(self, old: Deployment, cause: str) -> bool:
        """Wish again for the revision that answers, as the next one cannot be loaded. False: it is not known."""
        with self._store.write() as session:
            row = _unmoved(session, old)
            if row is None:
                return True  # somebody wishes otherwise: the next pass sees what
            answering = session.get(DeploymentRevision, (row.id, row.ready_revision))
            if answering is None:
                return False
            now = self._clock.now()
            failed = remember(session, row, now)
            failed.failed = cause or "Serve could not load it."
            canary = live_canary(session, row.id)
            if canary is not None and canary.state == CanaryState.PROMOTING:
                end(session, row, canary, CanaryState.ROLLED_BACK, failed.failed, now)
            point_at(row, answering, number=answering.n)
            row.reason = ROLLED_BACK
            row.message = f"Revision {answering.n} answers; revision {failed.n} cannot be loaded: {failed.failed}"
            facts = {"name": row.name, "from": failed.n, "to": answering.n, "cause": failed.failed}
            events.append(session, row, "deployment.rolled_back", row.message, facts, now=now, level="error")
        return True

    def _record(self, session: Session, row: Deployment, state: DeploymentState, reason: str, message: str) -> None:
        now = self._clock.now()
        if reason in ("READY", ROLLED_BACK):
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
        row.stale_since = (row.stale_since or now) if reason == UNREACHABLE else None

    def _answers(self, session: Session, row: Deployment, now: datetime) -> None:
        """Note which revision answers; of one that took over from another, while the model stayed READY, tell."""
        before, row.ready_revision = row.ready_revision, row.revision
        if row.state == DeploymentState.READY and before is not None and before != row.revision:
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
        engine=row.engine,
        # What was not seen to load stays until it is: Serve calls an application without replicas RUNNING.
        idle_s=row.idle_s if row.ready_revision == row.revision else None,
    )


def _unmoved(session: Session, old: Deployment) -> Deployment | None:
    """The row, locked; None where it moved: what was seen answers the wish that was read, not one that came since."""
    row = lock_deployment(session, old.id)
    if row is None or (row.desired, row.revision, row.state) != (old.desired, old.revision, old.state):
        return None
    return row


def _differs(wanted: list[DesiredDeployment], seen: Observed) -> bool:
    if {d.id for d in wanted} != set(seen):
        return True
    return any(seen[d.id].revision not in (None, d.revision) or seen[d.id].idle_s != d.idle_s for d in wanted)


def _is_settled(row: Deployment) -> bool:
    """Whether nothing is expected of it. One that failed after it was READY may be back at any moment."""
    failed = row.state == DeploymentState.FAILED and row.ready_revision != row.revision
    return (failed or row.state == DeploymentState.READY) and row.desired == "SERVE" and row.reason != ROLLING


def _cannot_follow(row: Deployment, shown: ObservedDeployment | None) -> bool:
    """Whether Serve could not load a revision, while the one before it goes on answering."""
    if shown is None or shown.state != "FAILED" or row.state != DeploymentState.READY or row.desired != "SERVE":
        return False
    return shown.revision in (None, row.revision) and row.ready_revision not in (None, row.revision)


def _target(row: Deployment, seen: Observed | None, trouble: str) -> tuple[DeploymentState, str, str]:
    """(state, reason, message) that the row should show."""
    if seen is None:
        # A model that was READY may well still answer: the dashboard's silence says nothing about it.
        state = DeploymentState.DELETING if row.desired == "DELETE" else DeploymentState(row.state)
        return state, UNREACHABLE, trouble
    shown = seen.get(row.id)
    if row.desired == "DELETE":
        if shown is None:
            return DeploymentState.DELETED, "DELETED", "Deleted."
        return DeploymentState.DELETING, "STOPPING", "Serve stops the model."
    if shown is None or shown.state == "PENDING" or shown.revision not in (None, row.revision):
        before = row.ready_revision
        stale = shown is not None and shown.revision not in (None, row.revision)
        if stale and row.state == DeploymentState.READY and row.reason == ROLLED_BACK:
            return DeploymentState.READY, ROLLED_BACK, row.message  # its replicas never stopped
        if shown is not None and row.state == DeploymentState.READY and before not in (None, row.revision):
            return DeploymentState.READY, ROLLING, f"Revision {row.revision} loads; revision {before} answers."
        return DeploymentState.PENDING, "STARTING", (shown.message if shown else "") or "Serve loads the model."
    if shown.state == "FAILED":
        return DeploymentState.FAILED, "SERVE_FAILED", shown.message or "Serve could not load the model."
    if row.state == DeploymentState.READY and row.reason == ROLLED_BACK:
        return DeploymentState.READY, ROLLED_BACK, row.message
    return DeploymentState.READY, shown.rest or "READY", _ANSWERS[shown.rest]
