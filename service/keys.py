"""What may be done to API keys. Nobody gives, renews or ends more rights than they have, nor another project's."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.auth import Caller, Secret, new_secret
from service.errors import Forbidden, NotFound, illegal_transition, invalid
from service.ids import new_id
from service.models import ApiKey
from service.models_people import Project
from service.scopes import SCOPES, allows, held


class KeyState(StrEnum):
    ACTIVE = "ACTIVE"
    EXPIRED = "EXPIRED"
    REVOKED = "REVOKED"


def create(
    session: Session,
    *,
    name: str,
    project: str,
    role: str | None,
    scopes: Collection[str] | None,
    expires_at: datetime | None,
    limits: Mapping[str, int | None],
    caller: Caller,
    now: datetime,
) -> tuple[ApiKey, Secret]:
    """A new key of that project. Raises Forbidden (403) for rights that the caller lacks, Invalid (422)."""
    if role is None and scopes is None:
        raise invalid([("/role", "give a role, or a list of scopes")])
    if expires_at is not None and expires_at <= now:
        raise invalid([("/expires_at", "is past: give a time to come")])
    _check_rights(caller, held(role, scopes))
    secret = new_secret()
    row = ApiKey(
        id=new_id("key", now),
        project=project,
        name=name,
        prefix=secret.prefix,
        hash=secret.hash,
        role=role,
        scopes=None if scopes is None else sorted(scopes),
        created_by=caller.key_id,
        expires_at=expires_at,
        created_at=now,
        **limits,
    )
    session.add(row)
    session.flush()
    return row, secret


def rotate(session: Session, key_id: str, grace_s: float, caller: Caller, now: datetime) -> tuple[ApiKey, Secret]:
    """A new secret for a key; the one before opens for `grace_s` more seconds, an older one no longer.

    Raises NotFound (404), Forbidden (403), Conflict (409) for one that opens nothing any more.
    """
    row = _lock(session, key_id)
    _check_rights(caller, held(row.role, row.scopes))
    if (state := state_of(row, now)) != KeyState.ACTIVE:
        raise illegal_transition("key", state, "rotate", [])
    secret = new_secret()
    row.previous_hash, row.previous_until = row.hash, now + timedelta(seconds=grace_s)
    row.hash, row.prefix = secret.hash, secret.prefix
    session.flush()
    return row, secret


def limit(session: Session, key_id: str, limits: Mapping[str, int | None], caller: Caller, now: datetime) -> ApiKey:
    """Change what a key may ask of models. Raises NotFound (404), Forbidden (403), Conflict (409) as `rotate` does."""
    row = _lock(session, key_id)
    _check_rights(caller, held(row.role, row.scopes))
    if (state := state_of(row, now)) != KeyState.ACTIVE:
        raise illegal_transition("key", state, "limit", [])
    for name, value in limits.items():
        setattr(row, name, value)
    session.flush()
    return row


def revoke(session: Session, key_id: str, caller: Caller, now: datetime) -> ApiKey:
    """End a key with every secret it has; a revoked one stays so. Raises NotFound (404), Forbidden (403)."""
    row = _lock(session, key_id)
    _check_rights(caller, held(row.role, row.scopes))
    if row.revoked_at is None:
        row.revoked_at = now
    session.flush()
    return row


def find(session: Session, key_id: str) -> ApiKey:
    """Raises NotFound (404)."""
    row = session.get(ApiKey, key_id)
    if row is None:
        raise _no_such(key_id)
    return row


def state_of(row: ApiKey, now: datetime) -> KeyState:
    """REVOKED for good, EXPIRED by its own date, else ACTIVE."""
    if row.revoked_at is not None:
        return KeyState.REVOKED
    return KeyState.EXPIRED if row.expires_at is not None and row.expires_at <= now else KeyState.ACTIVE


def project_for(session: Session, caller: Caller, wanted: str | None) -> str:
    """Id of the project that is meant, by its id or name; None: the caller's own.

    Raises NotFound (404) for one that the caller has nothing to do with, there or not.
    """
    if wanted is None or wanted == caller.project:
        return caller.project
    named = select(Project).where((Project.id == wanted) | (Project.name == wanted))
    row = session.scalars(named.order_by(Project.id != wanted)).first()
    if row is None or (row.id != caller.project and not allows(caller.scopes, "operator")):
        raise NotFound(f"There is no project {wanted}.")
    return row.id


def _lock(session: Session, key_id: str) -> ApiKey:
    row = session.scalar(select(ApiKey).where(ApiKey.id == key_id).with_for_update())
    if row is None:
        raise _no_such(key_id)
    return row


def _check_rights(caller: Caller, wanted: Collection[str] | None) -> None:
    lacking = [scope for scope in SCOPES if (wanted is None or scope in wanted) and not allows(caller.scopes, scope)]
    if lacking:
        raise Forbidden(
            f"That key may do more than yours, which lacks {', '.join(lacking)}: ask somebody who may.",
            code="more_rights",
            facts={"scope": lacking[0]},
        )


def _no_such(key_id: str) -> NotFound:
    return NotFound(f"There is no key {key_id}.")
