"""API keys: 256 random bits, shown once, kept as SHA-256. No key stands in a log, an error or a query string."""

import hashlib
import hmac
import logging
import secrets
import threading
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError

from service.clock import Clock, SystemClock
from service.ids import new_id
from service.models import DEFAULT_PROJECT, ApiKey
from service.models_people import Project
from service.models_quotas import Quota
from service.scopes import ROLES, SCOPES, held
from service.serving.rates import NO_LIMITS, RateLimits
from service.store import Store, rows_changed
from simpo.errors import ConfigError

log = logging.getLogger(__name__)

PREFIX = "sk-simpo-"
_VISIBLE = len(PREFIX) + 4
_REMEMBERED_S = 5.0  # a revoked key fails at the latest so many seconds later
_MAX_REMEMBERED = 1024
_NOTING_S = 0.05  # of a request, until it is its turn to note that its key was used
NOTED_EVERY = timedelta(minutes=1)
"""How exact `last_used_at` is: one write a minute and key, not one a request."""


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
    limits: RateLimits = NO_LIMITS
    """What it may ask of models; what changes holds as soon as a revoked key fails."""
    project_limits: RateLimits = NO_LIMITS
    """What its project may, by all its keys together."""


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
    secret, now = new_secret(), (clock or SystemClock()).now()
    with store.write() as session:
        session.add(
            ApiKey(
                id=new_id("key", now),
                name=name,
                prefix=secret.prefix,
                hash=secret.hash,
                scopes=None if scopes is None else sorted(scopes),
                role=role,
                project=project,
                created_at=now,
            )
        )
    return secret.key


@dataclass(frozen=True, kw_only=True)
class Secret:
    """A key, and what is kept of it."""

    key: str
    prefix: str
    hash: str


def new_secret() -> Secret:
    """256 random bits."""
    key = PREFIX + secrets.token_urlsafe(32)
    return Secret(key=key, prefix=key[:_VISIBLE], hash=_hash(key))


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
        found = self._look_up(digest)
        if found is None:
            return None
        caller, believed_s = found
        with self._lock:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[digest] = (caller, now + believed_s)
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

    def _look_up(self, digest: str) -> tuple[Caller, float] | None:
        """The owner, and for how many seconds that may be remembered."""
        by_hash = (ApiKey.hash == digest) | (ApiKey.previous_hash == digest)
        known = select(ApiKey).outerjoin(Project, Project.id == ApiKey.project).where(by_hash)
        now = self._clock.now()
        with self._store.read() as session:
            row = session.scalar(known.where(ApiKey.revoked_at.is_(None), Project.archived_at.is_(None)))
            quota = None if row is None else session.get(Quota, row.project)
        if row is None:
            return None
        # The index found it by hash, which tells an attacker nothing about the key; the last word is constant-time.
        rotated = not hmac.compare_digest(row.hash, digest)
        ends = [row.expires_at, row.previous_until if rotated else None]
        left = min(((end - now).total_seconds() for end in ends if end is not None), default=_REMEMBERED_S)
        if left <= 0 or (rotated and not hmac.compare_digest(row.previous_hash or "", digest)):
            return None
        self._note_use(row, now)
        scopes = held(row.role, row.scopes)
        caller = Caller(
            key_id=row.id,
            name=row.name,
            scopes=scopes,
            project=row.project,
            role=row.role,
            limits=RateLimits.of(row),
            project_limits=RateLimits.of(quota),
        )
        return caller, min(left, _REMEMBERED_S)

    def _note_use(self, row: ApiKey, now: datetime) -> None:
        if row.last_used_at is not None and now - row.last_used_at < NOTED_EVERY:
            return
        long_ago = ApiKey.last_used_at.is_(None) | (ApiKey.last_used_at <= now - NOTED_EVERY)
        # A request waits for this write, and its own may be a read: who changes the key meanwhile is not waited for.
        unlocked = select(ApiKey.id).where(ApiKey.id == row.id, long_ago).with_for_update(skip_locked=True)
        try:
            with self._store.write(patience_s=_NOTING_S) as session:
                session.execute(update(ApiKey).where(ApiKey.id.in_(unlocked)).values(last_used_at=now))
        except DBAPIError as error:
            # Reading goes on while nothing can be written; the next look-up of the key tries again.
            log.warning("the use of %s could not be noted: %s", row.id, type(error).__name__)


def _digest(authorization: str | None) -> str | None:
    """What a key is known by; None where there is none of ours."""
    scheme, _, key = (authorization or "").partition(" ")
    return _hash(key) if scheme.lower() == "bearer" and key.startswith(PREFIX) else None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
