"""Candidates, moved: seen READY or FAILED, judged by how they answer, ended once the champion has taken over."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import events
from service.canaries import end, live_canary
from service.clock import Clock
from service.models import Deployment
from service.models_canaries import Canary, CanaryCounts, DeploymentRevision
from service.rows import lock_deployment
from service.serving.counts import Counts
from service.serving.declared import DesiredDeployment
from service.serving.deployer import ObservedDeployment
from service.serving.verdict import Guard, judge
from service.states import CanaryState, DeploymentState
from service.store import Store

log = logging.getLogger(__name__)

Observed = Mapping[str, ObservedDeployment]
Candidates = dict[str, tuple[Canary, DesiredDeployment]]
"""Deployment -> its live candidate, and how it is declared."""


class CanaryWatch:
    """What the reconciler does with candidates. Called by `service.rollout` alone, from its thread."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def wanted(self, champions: Sequence[Deployment], declared: Mapping[str, DesiredDeployment]) -> Candidates:
        """Live candidates of deployments that are to be served, as Serve is to be told of them."""
        ids = [row.id for row in champions]
        live = (Canary.ended_at.is_(None)) & Canary.deployment_id.in_(ids)
        found: Candidates = {}
        with self._store.read() as session:
            for canary in session.scalars(select(Canary).where(live)):
                revision = session.get_one(DeploymentRevision, (canary.deployment_id, canary.revision))
                champion = declared.get(canary.deployment_id)
                if champion is not None:
                    found[canary.deployment_id] = (canary, candidate(champion, canary.revision, revision.model_path))
        return found

    def step(self, rows: Sequence[Deployment], wanted: Candidates, seen: Observed) -> None:
        """Move each candidate one step, by what Serve shows and how it answered."""
        for row in rows:
            if row.id in wanted:
                canary, declared = wanted[row.id]
                self._move(row.id, canary, seen.get(declared.id))
            elif row.desired == "DELETE":
                self._locked(row.id, None, lambda s, d, c, now: end(s, d, c, CanaryState.ABORTED, "Deleted.", now))

    def _move(self, deployment_id: str, canary: Canary, shown: ObservedDeployment | None) -> None:
        if shown is not None and shown.state == "FAILED":
            state = CanaryState.FAILED if canary.state == CanaryState.PENDING else CanaryState.ROLLED_BACK
            message = shown.message or "Serve gave no reason."

            def over(session: Session, row: Deployment, found: Canary, now: datetime) -> None:
                if state == CanaryState.FAILED:
                    session.get_one(DeploymentRevision, (row.id, found.revision)).failed = message
                end(session, row, found, state, message, now)

            # While the champion's replicas take a checkpoint over, they are looked at: not the candidate's.
            if canary.state != CanaryState.PROMOTING:
                self._locked(deployment_id, canary, over)
        elif canary.state == CanaryState.PENDING and shown is not None and shown.state == "READY":
            self._locked(deployment_id, canary, _becomes_ready)
        else:
            self._locked(deployment_id, canary, _is_promoted, only=_has_taken_over)
            if canary.state == CanaryState.READY and canary.guard is not None:
                self._judge(deployment_id, canary, guard_of(canary.guard))

    def _judge(self, deployment_id: str, canary: Canary, guard: Guard) -> None:
        with self._store.read() as session:
            champion, candidate = counted(session, canary, self._clock.now(), guard.window_s)
        verdict = judge(champion, candidate, guard)
        if not verdict.roll_back:
            return
        text = "; ".join(verdict.reasons)
        told = {"reasons": list(verdict.reasons), "figures": verdict.figures, "guard": asdict(guard)}
        log.warning("%s: revision %d is rolled back: %s", deployment_id, canary.revision, text)

        def back(session: Session, row: Deployment, found: Canary, now: datetime) -> None:
            end(session, row, found, CanaryState.ROLLED_BACK, text, now, verdict=told)

        self._locked(deployment_id, canary, back)

    def _locked(self, deployment_id: str, seen: Canary | None, act: Any, *, only: Any = None) -> None:
        """Act on a live candidate that is still in the state that it was seen in."""
        if only is not None:
            with self._store.read() as session:
                if not only(session, deployment_id):
                    return
        with self._store.write() as session:
            row = lock_deployment(session, deployment_id)
            found = live_canary(session, deployment_id)
            if row is None or found is None:
                return
            if seen is None or (found.revision, found.state) == (seen.revision, seen.state):
                act(session, row, found, self._clock.now())


def candidate(champion: DesiredDeployment, revision: int, model_path: str) -> DesiredDeployment:
    """A candidate beside a champion: under the same name, with replicas and a path of its own."""
    return replace(
        champion,
        id=f"{champion.id}-r{revision}",
        variant=f"r{revision}",
        revision=revision,
        model_path=model_path,
        base=None,
        idle_s=None,
    )


def guard_of(body: Mapping[str, Any]) -> Guard:
    """A guard as it was stored; what a later release knows, and this one does not, is left out."""
    names = {item.name for item in fields(Guard)}
    return Guard(**{name: value for name, value in body.items() if name in names})


def counted(session: Session, canary: Canary, now: datetime, window_s: int) -> tuple[Counts, Counts]:
    """(champion, candidate): how both answered lately, through all gateways."""
    both = {"champion": Counts(), "candidate": Counts()}
    rows = select(CanaryCounts).where(
        CanaryCounts.deployment_id == canary.deployment_id,
        CanaryCounts.revision == canary.revision,
        CanaryCounts.start > now.timestamp() - window_s,
    )
    for each in session.scalars(rows):
        both[each.arm].add(Counts.of_json(each.counts))
    return both["champion"], both["candidate"]


def _becomes_ready(session: Session, row: Deployment, canary: Canary, now: datetime) -> None:
    canary.state, canary.message, canary.ready_at = CanaryState.READY, "Answers its share.", now
    text = f"Revision {canary.revision} answers {canary.weight} % of the requests."
    facts = {"name": row.name, "revision": canary.revision, "weight": canary.weight / 100}
    events.append(session, row, "deployment.canary_ready", text, facts, now=now)


def _has_taken_over(session: Session, deployment_id: str) -> bool:
    """Whether the champion's own replicas answer with the candidate's checkpoint."""
    row = session.get(Deployment, deployment_id)
    canary = live_canary(session, deployment_id, lock=False)
    if row is None or canary is None or row.state != DeploymentState.READY or row.ready_revision != row.revision:
        return False
    revision = session.get_one(DeploymentRevision, (row.id, canary.revision))
    if row.follows is not None:
        return revision.model_version is not None and revision.model_version == row.model_version
    return row.revision == canary.revision


def _is_promoted(session: Session, row: Deployment, canary: Canary, now: datetime) -> None:
    end(session, row, canary, CanaryState.PROMOTED, f"It is the champion as revision {row.revision}.", now)
