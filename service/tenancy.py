"""Projects, enforced in one place: a project's session sees and writes that project's rows, whatever is asked of it.

Routes get their store from `service.context`, narrowed to the caller's project. Every ORM statement of such a session
is given the criterion of each table it touches, in joins, subqueries and `Session.get` too; rows that it adds are
stamped. So a query that says nothing of projects is right, and an id of another project is an id that is not there.
"""

from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, event, exists
from sqlalchemy.orm import Mapper, ORMExecuteState, Session, with_loader_criteria
from sqlalchemy.sql.visitors import iterate

from service.models import Owned

PROJECT = "project"
"""Key in `Session.info`: id of the project that the session is for."""
RECORDER = "recorder"
"""Key in `Session.info`: `service.audit.Recorder` of the request, where changes are to be noted."""
UNOWNED = frozenset({"idempotency", "leases", "projects"})
"""Tables of no project: answers are the principal's. Whatever else there is belongs to a project."""


class ProjectSession(Session):
    """A session with `info["project"]`: it sees and writes that project alone."""


@event.listens_for(ProjectSession, "do_orm_execute")
def _narrow(state: ORMExecuteState) -> None:
    project = state.session.info[PROJECT]
    if state.is_column_load or state.is_relationship_load:
        return  # of a row that was found through here
    criteria = [each for mapper in _touched(state.statement) for each in _criterion(mapper, project)]
    if criteria and state.statement._propagate_attrs.get("compile_state_plugin") != "orm":
        # SQLAlchemy narrows what it takes for an ORM statement: not select(func.count()).where(A & B).
        raise RuntimeError("a query of a project's rows must name a class among its columns or in select_from()")
    state.statement = state.statement.options(*criteria)
    recorder = state.session.info.get(RECORDER)
    if recorder is not None and (state.is_update or state.is_delete or state.is_insert):
        recorder.bulk(state)


@event.listens_for(ProjectSession, "before_flush")
def _stamp(session: Session, context: object, instances: object) -> None:
    project = session.info[PROJECT]
    for row in session.new:
        if isinstance(row, Owned) and not _free(type(row)):
            assert row.project in (None, project), f"a row of {row.project} in a session of {project}"
            row.project = project
    if (recorder := session.info.get(RECORDER)) is not None:
        recorder.before_flush(session)


@event.listens_for(ProjectSession, "before_commit")
def _record(session: Session) -> None:
    if (recorder := session.info.get(RECORDER)) is not None:
        recorder.before_commit(session)


def owner_of(mapper: Mapper[Any]) -> str | None:
    """How a table's rows are known to be a project's: its own column, or the key to its parent; None: not at all."""
    if _free(mapper.class_):
        return None
    if issubclass(mapper.class_, Owned):
        return PROJECT
    return next((column.name for column in mapper.local_table.primary_key if _parents_table(column) is not None), None)


def _touched(statement: Any) -> set[Mapper[Any]]:
    """The mapped classes anywhere in a statement: columns, joins, subqueries, aliases.

    Only their criteria are added: each costs 60 us a statement, and there are a dozen.
    """
    entities = (part._annotations.get("parententity") for part in iterate(statement))
    return {entity.mapper for entity in entities if entity is not None}


@lru_cache(maxsize=4096)
def _criterion(mapper: Mapper[Any], project: str) -> tuple[Any, ...]:
    owner = owner_of(mapper)
    if owner is None:
        return ()
    own = owner == PROJECT
    mine = mapper.class_.project == project if own else _through(mapper, owner, project)
    return (with_loader_criteria(mapper.class_, mine, include_aliases=True),)


def _through(mapper: Mapper[Any], owner: str, project: str) -> ColumnElement[bool]:
    column = mapper.local_table.c[owner]
    # A table of its own name: the statement may hold the parent too, and is not to be mixed up with it.
    parent = _parents_table(column).alias()
    mine = parent.c[PROJECT] == project
    return exists().where(parent.c.id == getattr(mapper.class_, owner), mine)


def _parents_table(column: Any) -> Any:
    tables = [key.column.table for key in column.foreign_keys]
    return next((table for table in tables if PROJECT in table.c), None)


def _free(cls: type) -> bool:
    return getattr(cls, "__tablename__", None) in UNOWNED
