"""API keys: 256 random bits, shown once, kept as SHA-256. No key stands in a log, an error or a query string."""

import hashlib
import hmac
import secrets
import threading
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update

from service.clock import Clock, SystemClock
from service.ids import new_id
from service.models import DEFAULT_PROJECT, ApiKey
from service.scopes import ROLES, SCOPES, held
from service.store import Store, rows_changed
from simpo.errors import ConfigError

PREFIX = "sk-simpo-"
_VISIBLE = len(PREFIX) + 4
_REMEMBERED_S = 5.0  # a revoked key fails at the latest so many seconds later
_MAX_REMEMBERED = 1024


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who is asking."""

    key_id: str
    """Id of the API key; also the principal of Idempotency-Keys and the actor of events."""
    name: str
    """Name the key was given."""
    scopes: frozenset[str] | None = None
    """What the key may do; None: everything."""
    project: str = DEFAULT_PROJECT
    """Id of the project that it sees and changes."""
    role: str | None = None
    """One of `service.scopes.ROLES`; None: its scopes are its own."""


def create_key(
    store: Store,
    name: str,
    *,
    scopes: Collection[str] | None = None,
    role: str | None = None,
    project: str = DEFAULT_PROJECT,
    clock: Clock | None = None,
) -> str:
    """Make a key and return it. It is readable this once: only its hash is stored.

    `scopes` None: all of the role's; without a role, everything. Raises ConfigError for an unknown scope or role.
    """
    if unknown := sorted(set(scopes or ()) - set(SCOPES)):
        raise ConfigError(f"unknown scope {unknown[0]!r}: use some of {', '.join(SCOPES)}", "scopes")
    if role is not None and role not in ROLES:
        raise ConfigError(f"unknown role {role!r}: use one of {', '.join(ROLES)}", "role")
    kept = None if scopes is None else sorted(scopes)
    key = PREFIX + secrets.token_urlsafe(32)
    now = (clock or SystemClock()).now()
    with store.write() as session:
        session.add(
            ApiKey(
                id=new_id("key", now),
                name=name,
                prefix=key[:_VISIBLE],
                hash=_hash(key),
                scopes=kept,
                role=role,
                project=project,
                created_at=now,
            )
        )
    return key


def revoke_keys(store: Store, name: str, *, now: datetime) -> int:
    """End every key of that name; returns how many were alive."""
    alive = update(ApiKey).where(ApiKey.name == name, ApiKey.revoked_at.is_(None))
    with store.write() as session:
        return rows_changed(session.execute(alive.values(revoked_at=now)))


class Authenticator:
    """Key -> Caller, with a short memory so that a busy client costs one query every few seconds."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[str, tuple[Caller, float]] = {}  # hash -> caller, until when it is believed
        self._lock = threading.Lock()

    def caller(self, authorization: str | None) -> Caller | None:
        """The owner of `Authorization: Bearer <key>`; None for a missing, malformed, unknown or revoked one."""
        digest = _digest(authorization)
        if digest is None:
            return None
        caller = self._recall(digest)
        if caller is not None:
            return caller
        now = self._clock.monotonic()
        caller = self._look_up(digest)
        if caller is not None:
            with self._lock:
                if len(self._known) >= _MAX_REMEMBERED:
                    self._known.clear()
                self._known[digest] = (caller, now + _REMEMBERED_S)
        return caller

    def remembered(self, authorization: str | None) -> Caller | None:
        """The owner, where no query is needed to know: the event loop may ask this itself."""
        digest = _digest(authorization)
        return None if digest is None else self._recall(digest)

    def _recall(self, digest: str) -> Caller | None:
        now = self._clock.monotonic()
        with self._lock:
            caller, until = self._known.get(digest, (None, 0.0))
        return caller if now < until else None

    def _look_up(self, digest: str) -> Caller | None:
        with self._store.read() as session:
            row = session.scalar(select(ApiKey).where(ApiKey.hash == digest, ApiKey.revoked_at.is_(None)))
        # The index found it by hash, which tells an attacker nothing about the key; the last word is constant-time.
        if row is None or not hmac.compare_digest(row.hash, digest):
            return None
        scopes = held(row.role, row.scopes)
        return Caller(key_id=row.id, name=row.name, scopes=scopes, project=row.project, role=row.role)


def _digest(authorization: str | None) -> str | None:
    """What a key is known by; None where there is none of ours."""
    scheme, _, key = (authorization or "").partition(" ")
    return _hash(key) if scheme.lower() == "bearer" and key.startswith(PREFIX) else None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
