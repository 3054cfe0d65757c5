"""What people may wish of roll-outs. Rows only: `service.canary_watch` and `service.rollout` move them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service import events
from service.errors import Conflict, NotFound, invalid
from service.follow import ROLLING
from service.models import Deployment
from service.models_canaries import Canary, CanaryCounts, DeploymentRevision
from service.revisions import next_revision, point_at, remember
from service.states import CanaryState, DeploymentState


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A validated wish for a canary."""

    source: Mapping[str, Any]
    """The columns of `deployment_revisions` that say what it serves."""
    weight: int
    """Percent."""
    sticky: bool
    """One `user` keeps to one version."""
    guard: dict[str, Any] | None
    """What it may not do; None: nothing is looked at."""


def start(session: Session, row: Deployment, wish: Candidate, actor: str, now: datetime) -> Canary:
    """Put a candidate beside the champion of a locked deployment. Raises Conflict (409)."""
    if row.desired != "SERVE" or row.state != DeploymentState.READY:
        raise Conflict(
            f"{row.name} is {row.state}: a candidate comes beside a champion that answers.",
            code="deployment_not_ready",
            facts={"current_state": row.state},
        )
    if (live := live_canary(session, row.id)) is not None:
        raise Conflict(
            f"Revision {live.revision} of {row.name} is {live.state} already: promote it, or abort it first.",
            code="canary_exists",
            facts={"existing": live.revision},
        )
    remember(session, row, now)
    number = next_revision(session, row)
    session.execute(delete(CanaryCounts).where(CanaryCounts.deployment_id == row.id))
    session.add(DeploymentRevision(deployment_id=row.id, project=row.project, n=number, created_at=now, **wish.source))
    canary = Canary(
        deployment_id=row.id,
        project=row.project,
        revision=number,
        weight=wish.weight,
        sticky=wish.sticky,
        guard=wish.guard,
        state=CanaryState.PENDING,
        message="Waits for Serve.",
        created_by=actor,
        created_at=now,
    )
    session.add(canary)
    facts = {**_facts(row, canary), "sweep": wish.source["sweep_id"], "checkpoint": wish.source["checkpoint"]}
    text = f"Revision {number} comes beside revision {row.revision}, for {wish.weight} % of the requests."
    events.append(session, row, "deployment.canary_requested", text, facts, now=now, actor=actor)
    session.flush()
    return canary


def reweigh(
    session: Session, row: Deployment, actor: str, now: datetime, *, weight: int | None, sticky: bool | None
) -> Canary:
    """Change what the candidate of a locked deployment answers. Raises Conflict (409)."""
    canary = _live(session, row, CanaryState.PENDING, CanaryState.READY)
    before = canary.weight
    canary.weight = before if weight is None else weight
    canary.sticky = canary.sticky if sticky is None else sticky
    facts = {**_facts(row, canary), "before": before / 100}
    text = f"Revision {canary.revision} is to answer {canary.weight} % of the requests."
    events.append(session, row, "deployment.weight_changed", text, facts, now=now, actor=actor)
    session.flush()
    return canary


def promote(session: Session, row: Deployment, actor: str, now: datetime) -> Canary:
    """Let the candidate become the champion: it answers everybody from now on. Raises Conflict (409)."""
    canary = _live(session, row, CanaryState.READY)
    if row.follows is not None:
        raise Conflict(
            f"{row.name} follows {row.follows}: promote the version (POST /v1/promotions), and it follows.",
            code="follows_alias",
        )
    remember(session, row, now)
    candidate = session.get_one(DeploymentRevision, (row.id, canary.revision))
    canary.state, canary.message = CanaryState.PROMOTING, "Answers all requests; the champion's replicas take it over."
    point_at(row, candidate, number=candidate.n)
    row.reason, row.message = ROLLING, f"Revision {candidate.n} becomes the champion, and answers."
    text = f"Revision {canary.revision} answers all requests, and becomes the champion."
    events.append(session, row, "deployment.canary_promoting", text, _facts(row, canary), now=now, actor=actor)
    session.flush()
    return canary


def abort(session: Session, row: Deployment, actor: str, now: datetime) -> Canary:
    """Take the candidate away: the champion answers everybody from now on. Raises Conflict (409)."""
    canary = _live(session, row, CanaryState.PENDING, CanaryState.READY)
    end(session, row, canary, CanaryState.ABORTED, "Somebody took it back.", now, actor=actor)
    session.flush()
    return canary


def roll_back(session: Session, row: Deployment, revision: int | None, actor: str, now: datetime) -> None:
    """Go back, whatever is going on: a candidate is taken away; without one, the champion before answers again.

    `revision`: an earlier one, by its number. Raises Conflict (409): there is nothing to go back to; Invalid (422).
    """
    canary = live_canary(session, row.id)
    if canary is not None and canary.state != CanaryState.PROMOTING:
        end(session, row, canary, CanaryState.ROLLED_BACK, "Somebody rolled it back.", now, actor=actor)
        if revision is None:
            return
    elif canary is not None:
        end(session, row, canary, CanaryState.ROLLED_BACK, "Rolled back while it took over.", now, actor=actor)
    if row.desired != "SERVE":
        raise Conflict(f"{row.name} is being deleted.", code="deployment_deleting", facts={"current_state": row.state})
    if row.follows is not None:
        raise Conflict(
            f"{row.name} follows {row.follows}: roll its promotion back (POST /v1/promotions/ID/rollback).",
            code="follows_alias",
        )
    back = _earlier(session, row, revision)
    remember(session, row, now)
    before = row.revision
    point_at(row, back, number=back.n)
    if row.state == DeploymentState.READY:
        row.reason, row.message = ROLLING, f"Revision {back.n} comes back; revision {before} answers until then."
    facts = {"name": row.name, "from": before, "to": back.n, "checkpoint": back.checkpoint, "sweep": back.sweep_id}
    text = f"Back to revision {back.n}: it takes over as soon as it answers."
    events.append(session, row, "deployment.rollback_requested", text, facts, now=now, actor=actor)
    session.flush()


def end(
    session: Session,
    row: Deployment,
    canary: Canary,
    state: CanaryState,
    message: str,
    now: datetime,
    *,
    actor: str = events.RECONCILER,
    verdict: dict[str, Any] | None = None,
) -> None:
    """Close the canary of a locked deployment with its event; without traffic from now on, but for a promoted one."""
    canary.state, canary.message, canary.ended_at = state, message, now
    canary.verdict = verdict
    facts = _facts(row, canary) | ({} if verdict is None else {"verdict": verdict})
    level: events.Level = "info" if state in (CanaryState.PROMOTED, CanaryState.ABORTED) else "error"
    if state == CanaryState.ROLLED_BACK and actor != events.RECONCILER:
        level = "warn"
    kind = f"deployment.canary_{state.lower()}"
    text = f"Revision {canary.revision} is {state.replace('_', ' ').lower()}: {message}"
    events.append(session, row, kind, text, facts, now=now, level=level, actor=actor)


def live_canary(session: Session, deployment_id: str, *, lock: bool = True) -> Canary | None:
    """The one that is not over."""
    live = select(Canary).where(Canary.deployment_id == deployment_id, Canary.ended_at.is_(None))
    return session.scalar(live.with_for_update() if lock else live)


def newest_canary(session: Session, deployment_id: str) -> Canary:
    """The newest, over or not. Raises NotFound (404)."""
    newest = select(Canary).where(Canary.deployment_id == deployment_id).order_by(Canary.revision.desc()).limit(1)
    canary = session.scalar(newest)
    if canary is None:
        raise NotFound(f"{deployment_id} never had a candidate.", code="no_canary")
    return canary


def _live(session: Session, row: Deployment, *states: CanaryState) -> Canary:
    canary = live_canary(session, row.id)
    if canary is None:
        raise Conflict(f"{row.name} has no candidate: POST /v1/deployments/{row.id}/canary.", code="no_canary")
    if canary.state not in states:
        raise Conflict(
            f"Revision {canary.revision} of {row.name} is {canary.state}: {canary.message}",
            code="illegal_transition",
            facts={"current_state": canary.state, "allowed": [str(state) for state in states]},
        )
    return canary


def _earlier(session: Session, row: Deployment, revision: int | None) -> DeploymentRevision:
    """The revision to go back to: the one asked for, or the newest before that could be loaded."""
    known = select(DeploymentRevision).where(
        DeploymentRevision.deployment_id == row.id, DeploymentRevision.failed.is_(None)
    )
    served = [each for each in session.scalars(known.order_by(DeploymentRevision.n)) if _served(session, each)]
    if revision is not None:
        found = next((each for each in served if each.n == revision and each.n != row.revision), None)
        if found is None:
            choices = ", ".join(str(each.n) for each in served if each.n != row.revision) or "none"
            raise invalid([("/revision", f"is none of the revisions that were champions here: {choices}")])
        return found
    before = [each for each in served if each.n < row.revision]
    if not before:
        raise Conflict(
            f"Revision {row.revision} of {row.name} is the first: nothing was before.", code="nothing_before"
        )
    return before[-1]


def _served(session: Session, revision: DeploymentRevision) -> bool:
    """Whether it was a champion: not a candidate that was never promoted."""
    canary = session.get(Canary, (revision.deployment_id, revision.n))
    return canary is None or canary.state == CanaryState.PROMOTED


def _facts(row: Deployment, canary: Canary) -> dict[str, Any]:
    share = 1.0 if canary.state in (CanaryState.PROMOTING, CanaryState.PROMOTED) else canary.weight / 100
    weight = share if canary.ended_at is None or canary.state == CanaryState.PROMOTED else 0.0
    return {"name": row.name, "revision": canary.revision, "weight": weight, "sticky": canary.sticky}
