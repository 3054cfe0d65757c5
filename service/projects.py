"""Projects: the tenants. Operators make and archive them; nothing is ever deleted with one."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.auth import Caller
from service.errors import Conflict, NotFound
from service.ids import new_id
from service.models import DEFAULT_PROJECT
from service.models_people import Project


def create(session: Session, name: str, caller: Caller, now: datetime) -> Project:
    """Raises Conflict (409) when the name is taken, by an archived one too: it stays known in the audit log."""
    if existing := session.scalar(select(Project.id).where(Project.name == name)):
        raise Conflict(
            f"The name {name!r} belongs to {existing}: choose another name.",
            code="name_taken",
            errors=[("/name", f"taken by {existing}")],
            facts={"existing": existing},
        )
    row = Project(id=new_id("prj", now), name=name, created_by=caller.key_id, created_at=now)
    session.add(row)
    session.flush()
    return row


def archive(session: Session, project_id: str, now: datetime) -> Project:
    """Close it: its keys open nothing within seconds; what runs goes on to its end. Raises NotFound, Conflict (409)."""
    row = session.scalar(select(Project).where(Project.id == project_id).with_for_update())
    if row is None:
        raise no_such_project(project_id)
    if row.id == DEFAULT_PROJECT:
        raise Conflict("The default project cannot be archived: the stack's own key is in it.", code="default_project")
    if row.archived_at is None:
        row.archived_at = now
    session.flush()
    return row


def find(session: Session, project_id: str) -> Project:
    """Raises NotFound (404)."""
    row = session.get(Project, project_id)
    if row is None:
        raise no_such_project(project_id)
    return row


def no_such_project(project_id: str) -> NotFound:
    """404."""
    return NotFound(f"There is no project {project_id}.")
