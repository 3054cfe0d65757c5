"""The busiest queries, as statements that are built once.

An ORM statement is made, narrowed to its project and turned into SQL anew each time, which took longer than the
database's answer. These pass `service.tenancy` by: each names its project itself, and most take it from the session.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import BindParameter, Select, Text, and_, bindparam, cast, func, literal, select
from sqlalchemy.orm import Session

from service.models import NAME_IS_TAKEN, Base, Sweep, Trial
from service.models_quotas import Quota
from service.models_webhooks import Webhook
from service.states import WebhookState
from service.tenancy import PROJECT

_TABLES = Base.metadata.tables
_SWEEPS, _TRIALS = _TABLES[Sweep.__tablename__].c, _TABLES[Trial.__tablename__].c
_QUOTAS, _WEBHOOKS = _TABLES[Quota.__tablename__].c, _TABLES[Webhook.__tablename__].c
_MINE = _SWEEPS.project == bindparam("project")
_LIGHT = [column for column in _SWEEPS if column.name not in ("plan", "result")]
_ONE = select(*_LIGHT, _SWEEPS.result).where(_MINE, _SWEEPS.kind == bindparam("kind"), _SWEEPS.id == bindparam("named"))
# Specs as they are written: a page shows 50 of them, and reads none.
_AS_TEXT = [cast(column, Text).label("spec") if column.name == "spec" else column for column in _LIGHT]
_AMONG = (_MINE, _SWEEPS.id.in_(bindparam("ids", expanding=True)))
_SOME, _SOME_AS_TEXT = select(*_LIGHT).where(*_AMONG), select(*_AS_TEXT).where(*_AMONG)
_NAMED = select(_SWEEPS.id).where(
    _MINE, _SWEEPS.kind == bindparam("kind"), _SWEEPS.name == bindparam("name"), NAME_IS_TAKEN
)
_COUNTED = (
    select(_TRIALS.sweep_id, _TRIALS.state, func.count())
    .where(_TRIALS.sweep_id.in_(bindparam("ids", expanding=True)))
    .group_by(_TRIALS.sweep_id, _TRIALS.state)
)
_LIMITS = select(
    _QUOTAS.project, _QUOTAS.concurrent_sweeps, _QUOTAS.concurrent_trials, _QUOTAS.accelerator_hours, _QUOTAS.period
).where(_QUOTAS.project.in_(bindparam("projects", expanding=True)))
_UNASKED: Any = object()
_AHEAD = "ahead"
"""Key of a session's `info`: answers that are known (`look_ahead`)."""
_TOLD = and_(_WEBHOOKS.project == bindparam("project"), _WEBHOOKS.state == str(WebhookState.ACTIVE))
_SUBSCRIBERS = select(_WEBHOOKS.id, _WEBHOOKS.events).where(_TOLD)

_ONE_ROW = select(literal(1).label("one")).subquery()
_ALL_AHEAD = (
    select(
        _NAMED.scalar_subquery().label("taken"),
        *_LIMITS.selected_columns,
        _WEBHOOKS.id.label("webhook"),
        _WEBHOOKS.events,
    )
    .select_from(_ONE_ROW)
    .outerjoin(_TABLES[Quota.__tablename__], _QUOTAS.project == bindparam("project"))
    .outerjoin(_TABLES[Webhook.__tablename__], _TOLD)
)


def sweep_of(session: Session, kind: str, sweep_id: str) -> Any:
    """One sweep of the session's project, its plan apart; None: there is none."""
    asked = {"project": session.info[PROJECT], "kind": kind, "named": sweep_id}
    return session.connection().execute(_ONE, asked).one_or_none()


def sweeps_of(session: Session, ids: Sequence[str], *, specs_as_text: bool = False) -> Sequence[Any]:
    """Those of the session's project among these, in any order, without plans and results."""
    asked = {"project": session.info[PROJECT], "ids": ids}
    return session.connection().execute(_SOME_AS_TEXT if specs_as_text else _SOME, asked).all() if ids else ()


def marks_of(
    session: Session,
    kind: str,
    *,
    states: Sequence[str] | None,
    name: str | None,
    after: str | None,
    newest_first: bool,
    limit: int,
) -> Sequence[Any]:
    """(id, version, state) of a page of the session's project, by id."""
    given = {"states": states, "name": name, "after": after}
    asked = {key: value for key, value in given.items() if value is not None}
    statement = _page(frozenset(asked), newest_first)
    more = {"project": session.info[PROJECT], "kind": kind, "most": limit}
    return session.connection().execute(statement, asked | more).all()


def look_ahead(session: Session, kind: str, name: str, project: str) -> None:
    """Ask in one statement, of a round trip each, what the creation of a sweep will ask in this transaction.

    `said_limits`, `live_named` and `subscribers` of this session then answer from it.
    """
    found = session.connection().execute(_ALL_AHEAD, {"project": project, "kind": kind, "name": name}).all()
    session.info[_AHEAD] = {
        ("limits", project): [row for row in found[:1] if row.project],
        ("named", kind, name, project): found[0].taken,
        ("subscribers", project): [(row.webhook, row.events) for row in found if row.webhook],
    }


def live_named(session: Session, kind: str, name: str, project: str) -> str | None:
    """Id of the one that has the name in the project; failed and cancelled ones have lost theirs."""
    found: str | None = _known(session, "named", kind, name, project)
    if found is _UNASKED:
        found = session.connection().execute(_NAMED, {"project": project, "kind": kind, "name": name}).scalar()
    return found


def trial_counts(session: Session, sweep_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Trials by state, for each sweep that has any; counted in the index. Of one that is over the row says it.

    `sweep_ids` were found through this session, so they are of its project: it is not asked again for each trial,
    which made a page five times as slow.
    """
    counts: dict[str, dict[str, int]] = {}
    if sweep_ids:
        for sweep_id, state, number in session.connection().execute(_COUNTED, {"ids": sweep_ids}):
            counts.setdefault(sweep_id, {})[state] = number
    return counts


def said_limits(session: Session, projects: Sequence[str]) -> dict[str, Any]:
    """What operators said of these projects' work (`service.models_quotas.Quota`), where they said anything."""
    found = _known(session, "limits", *projects)
    if found is _UNASKED:
        found = session.connection().execute(_LIMITS, {"projects": projects})
    return {row.project: row for row in found}


def subscribers(session: Session, project: str) -> list[tuple[str, list[str]]]:
    """(id, patterns) of the webhooks that are told of a project's events."""
    found = _known(session, "subscribers", project)
    if found is _UNASKED:
        found = session.connection().execute(_SUBSCRIBERS, {"project": project})
    return [(id, patterns) for id, patterns in found]


def _known(session: Session, *question: str) -> Any:
    """What `look_ahead` was answered; `_UNASKED` where it did not ask this."""
    return session.info.get(_AHEAD, {}).get(question, _UNASKED)


@lru_cache(maxsize=32)
def _page(given: frozenset[str], newest_first: bool) -> Select[Any]:
    wanted = select(_SWEEPS.id, _SWEEPS.version, _SWEEPS.state).where(_MINE, _SWEEPS.kind == bindparam("kind"))
    if "states" in given:
        wanted = wanted.where(_SWEEPS.state.in_(bindparam("states", expanding=True)))
    if "name" in given:
        wanted = wanted.where(_SWEEPS.name == bindparam("name"))
    if "after" in given:
        after: BindParameter[str] = bindparam("after")
        wanted = wanted.where(_SWEEPS.id < after if newest_first else _SWEEPS.id > after)
    return wanted.order_by(_SWEEPS.id.desc() if newest_first else _SWEEPS.id).limit(bindparam("most"))
