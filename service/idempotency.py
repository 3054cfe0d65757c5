"""POSTs whose repetition does nothing new: the answer is stored in the transaction of the effect."""

import copy
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic_core import PydanticCustomError
from sqlalchemy import bindparam, delete, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse, Response

from service.auth import Caller
from service.clock import Clock
from service.errors import InFlight, Invalid
from service.models import IdempotentAnswer, UtcDateTime
from service.store import Store, rows_changed

KEPT = timedelta(hours=25)  # at least 24 h is promised
_MAX_KEY = 255

_ANSWERS = IdempotentAnswer.metadata.tables["idempotency"]
# Plain SQL, one text for both databases: the unit of work took a millisecond of a create for these three statements.
_TAKE = text(
    "INSERT INTO idempotency (principal, key, request_hash, status, headers, body, created_at) "
    "VALUES (:of, :named, :hash, 0, '{}', '{}', :now) ON CONFLICT DO NOTHING"
).bindparams(bindparam("now", type_=UtcDateTime))
_ANSWERED = update(_ANSWERS).where(_ANSWERS.c.principal == bindparam("of"), _ANSWERS.c.key == bindparam("named"))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a POST is answered: the first time and every time after."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    once: dict[str, Any] = field(default_factory=dict)
    """Members of the body that the first answer alone has, and that are stored nowhere: secrets."""


def checked_key(key: str | None) -> str | None:
    """An Idempotency-Key as it came. Raises what pydantic makes a 422 of."""
    if key is not None and not (0 < len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
        words = "must be 1 to {most} printable characters of ASCII"
        raise PydanticCustomError("idempotency_key", words, {"most": _MAX_KEY})
    return key


class Posts:
    """Runs the effects of POSTs, each at most once for an Idempotency-Key."""

    def __init__(self, store: Store, clock: Clock, failpoint: Callable[[str], None]) -> None:
        self._store = store
        self._clock = clock
        self._failpoint = failpoint
        self._in_flight: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def run(
        self, route: str, body: Any, key: str | None, caller: Caller, effect: Callable[[Session, datetime], Answer]
    ) -> Response:
        """Commit `effect` and answer; with a key seen before, repeat the first answer instead.

        An effect that raises is rolled back and not stored: its key may be used again.

        Raises:
            Invalid: 422, a key that was used for another request.
            InFlight: 409, the first request with this key is still at work in this process.
        """
        if key is None:
            with self._store.write() as session:
                answer = effect(session, self._clock.now())
                self._failpoint("post.before_commit")
            self._failpoint("post.after_commit")
            return _response(answer)
        with self._reserved(caller.key_id, key):
            try:
                return self._run_once(route, body, key, caller, effect)
            except IntegrityError:
                # Another process was first with the same name: now its row can be read.
                return self._run_once(route, body, key, caller, effect)

    def over(self, store: Store) -> "Posts":
        """The same, with what is in flight, over another view of the database: a project's."""
        narrowed = copy.copy(self)
        narrowed._store = store
        return narrowed

    def forget_old(self) -> None:
        """Delete stored answers past their time."""
        with self._store.write() as session:
            session.execute(delete(IdempotentAnswer).where(IdempotentAnswer.created_at < self._clock.now() - KEPT))

    def _run_once(
        self, route: str, body: Any, key: str, caller: Caller, effect: Callable[[Session, datetime], Answer]
    ) -> Response:
        request_hash = _hash(route, body)
        with self._store.write() as session:
            now, mine = self._clock.now(), {"of": caller.key_id, "named": key}
            # The key is taken before the effect looks around: another process with the same key waits here.
            taken = session.connection().execute(_TAKE, {**mine, "hash": request_hash, "now": now})
            if rows_changed(taken) == 0:
                return _replay(session.get_one(IdempotentAnswer, (caller.key_id, key)), request_hash)
            answer = effect(session, now)
            session.flush()
            said = {"status": answer.status, "headers": answer.headers, "body": answer.body}
            session.connection().execute(_ANSWERED, {**mine, **said})
            self._failpoint("post.before_commit")
        self._failpoint("post.after_commit")
        return _response(answer)

    @contextmanager
    def _reserved(self, principal: str, key: str) -> Iterator[None]:
        with self._lock:
            if (principal, key) in self._in_flight:
                raise InFlight(
                    "The first request with this Idempotency-Key is still at work.", headers={"retry-after": "1"}
                )
            self._in_flight.add((principal, key))
        try:
            yield
        finally:
            with self._lock:
                self._in_flight.discard((principal, key))


def _replay(known: IdempotentAnswer, request_hash: str) -> Response:
    if known.request_hash != request_hash:
        raise Invalid(
            "This Idempotency-Key was used for another request: use a new one for each.", code="idempotency_key_reused"
        )
    headers = {**known.headers, "idempotency-replayed": "true"}
    return JSONResponse(known.body, known.status, headers)


def _response(answer: Answer) -> Response:
    return JSONResponse({**answer.body, **answer.once}, answer.status, answer.headers)


def _hash(route: str, body: Any) -> str:
    return hashlib.sha256(json.dumps([route, body], sort_keys=True).encode()).hexdigest()
