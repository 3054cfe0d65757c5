"""Who is asking, by whatever `Authorization: Bearer` holds: a key of ours, or a token of the OIDC issuer.

What begins like a key is looked up as one and as nothing else; everything else is a token, where an issuer is set up.
"""

import hashlib
import threading
from typing import Protocol

from sqlalchemy import select

from service.auth import PREFIX, Caller
from service.clock import Clock
from service.errors import Forbidden
from service.models_people import Project
from service.models_quotas import Quota
from service.oidc import Identity, Oidc
from service.scopes import ROLES
from service.serving.rates import RateLimits
from service.store import Store

_REMEMBERED_S = 5.0  # a project that was closed is so at the latest so many seconds later
_MAX_REMEMBERED = 1024


class Authenticates(Protocol):
    """What the gate asks."""

    def caller(self, authorization: str | None) -> Caller | None:
        """Who is asking; None for a bearer that opens nothing. Raises a ServiceError that says more."""

    def remembered(self, authorization: str | None) -> Caller | None:
        """The same, where nobody has to be asked to know it: never blocks."""


class Bearers:
    """Keys and tokens, each by its own authenticator."""

    def __init__(self, keys: Authenticates, tokens: Authenticates | None) -> None:
        self._keys = keys
        self._tokens = tokens

    def caller(self, authorization: str | None) -> Caller | None:
        return self._of(authorization).caller(authorization)

    def remembered(self, authorization: str | None) -> Caller | None:
        return self._of(authorization).remembered(authorization)

    def _of(self, authorization: str | None) -> Authenticates:
        bearer = _bearer(authorization)
        if self._tokens is None or bearer is None or bearer.startswith(PREFIX):
            return self._keys
        return self._tokens


class TokenAuthenticator:
    """Token -> Caller: project and role by its claims, which must be known here."""

    def __init__(self, oidc: Oidc, store: Store, clock: Clock) -> None:
        self._oidc = oidc
        self._store = store
        self._clock = clock
        self._known: dict[str, tuple[Caller, float]] = {}  # hash -> caller, until when it is believed
        self._lock = threading.Lock()

    def caller(self, authorization: str | None) -> Caller | None:
        """Raises Unauthorized (401) for a bad token, Forbidden (403) for a good one without a place here."""
        token = _bearer(authorization)
        if token is None:
            return None
        if (known := self.remembered(authorization)) is not None:
            return known
        now = self._clock.monotonic()
        who = self._oidc.identity(token)
        caller = self._caller(who)
        left_s = min(_REMEMBERED_S, who.ends_at - self._clock.now().timestamp())
        with self._lock:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[_hash(token)] = (caller, now + left_s)
        return caller

    def remembered(self, authorization: str | None) -> Caller | None:
        """The owner of a token that was good a moment ago."""
        token = _bearer(authorization)
        if token is None:
            return None
        with self._lock:
            caller, until = self._known.get(_hash(token), (None, 0.0))
        return caller if self._clock.monotonic() < until else None

    def _caller(self, who: Identity) -> Caller:
        role = next((role for role in reversed(list(ROLES)) if role in who.roles), None)  # from the strongest down
        if role is None:
            raise _no_place(f"none of the roles {', '.join(ROLES)}")
        if len(who.projects) != 1:
            raise _no_place("no project" if not who.projects else "more than one project")
        project, limits = self._project(who.projects[0])
        if project is None:
            raise _no_place("a project that there is not")
        return Caller(
            key_id=who.id, name=who.name, scopes=ROLES[role], project=project, role=role, project_limits=limits
        )

    def _project(self, named: str) -> tuple[str | None, RateLimits]:
        """Its id, if it is there and open, and what all who belong to it may ask of models together."""
        mine = (Project.id == named) | (Project.name == named)
        with self._store.read() as session:
            id = session.scalar(select(Project.id).where(mine, Project.archived_at.is_(None)))
            return id, RateLimits.of(None if id is None else session.get(Quota, id))


def _no_place(what: str) -> Forbidden:
    text = f"The token is good, but names {what}: ask who runs the identity provider, or an operator."
    return Forbidden(text, code="no_project_or_role")


def _bearer(authorization: str | None) -> str | None:
    scheme, _, bearer = (authorization or "").partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" and bearer.strip() else None


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
