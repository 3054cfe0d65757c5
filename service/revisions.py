"""What the revisions of a deployment serve. Written down when another one comes, so that there is a way back."""

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.models import Deployment
from service.models_canaries import DeploymentRevision


def remember(session: Session, row: Deployment, now: datetime, *, moved_by: str | None = None) -> DeploymentRevision:
    """What the locked deployment is to serve now, under its revision's number.

    `moved_by`: the promotion that moved the alias it follows.
    """
    known = session.get(DeploymentRevision, (row.id, row.revision))
    if known is None:
        known = DeploymentRevision(
            deployment_id=row.id,
            project=row.project,
            n=row.revision,
            sweep_id=row.sweep_id,
            checkpoint=row.checkpoint,
            model_path=row.model_path,
            base_path=row.base_path,
            model_version=row.model_version,
            moved_by=moved_by,
            created_at=now,
        )
        session.add(known)
        session.flush()
    return known


def next_revision(session: Session, row: Deployment) -> int:
    """A number that no champion and no candidate of the deployment ever had."""
    newest = select(func.max(DeploymentRevision.n)).where(DeploymentRevision.deployment_id == row.id)
    return 1 + max(row.revision, session.scalar(newest) or 0)


def point_at(row: Deployment, revision: DeploymentRevision, *, number: int) -> None:
    """Wish for what a revision serves, under a number: its own, or a new one to load it again."""
    row.sweep_id, row.checkpoint = revision.sweep_id, revision.checkpoint
    row.model_path, row.base_path = revision.model_path, revision.base_path
    row.model_version = revision.model_version
    row.revision = number


def has_failed(session: Session, deployment_id: str, model_version: int, moved_by: str | None) -> bool:
    """Whether this version, moved to by this promotion, was tried already and could not be loaded."""
    tried = select(DeploymentRevision).where(
        DeploymentRevision.deployment_id == deployment_id, DeploymentRevision.model_version == model_version
    )
    return any(each.failed is not None and each.moved_by == moved_by for each in session.scalars(tried))
