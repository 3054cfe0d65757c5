"""The gateway's side of a roll-out: which version answers a request, and how its answer went.

No request waits for the database, but once a second: then live candidates are read anew. Each process adds up what it
saw in rows of its own, and `service.canary_watch` adds the rows.
"""

import asyncio
import logging
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from service.clock import Clock
from service.models_canaries import Canary, CanaryCounts
from service.serving.counts import Counts, bucket_of, repeats
from service.serving.split import Arm, arm_of
from service.states import CanaryState
from service.store import Store

log = logging.getLogger(__name__)

REMEMBERED_S = 1.0
"""What another process changed is seen at the latest so many seconds later; what this one changed, at once."""
_FLUSH_S = 1.0
_STRETCH_S = 10  # of one row
_MOST_TEXT = 1 << 18  # characters of an answer that are looked at

_Key = tuple[str, int, str, int]
"""Deployment, revision of the canary, arm, start of the stretch."""


@dataclass(frozen=True, kw_only=True)
class Live:
    """A candidate that may answer."""

    deployment_id: str
    project: str
    revision: int
    weight: int
    """Percent."""
    sticky: bool

    def arm(self, user: object) -> Arm:
        """Who answers. `user`: of the request; without one, or where it does not stick, each request is drawn anew."""
        sticks = self.sticky and isinstance(user, str) and user
        key = f"u{user}" if sticks else f"r{secrets.token_hex(8)}"
        return arm_of(key, salt=f"{self.deployment_id}:{self.revision}", weight=self.weight)


class Arms:
    """Live candidates, and counts of both versions while there is one. Methods may be called from any thread."""

    def __init__(self, store: Store, clock: Clock) -> None:
        """`store`: the whole database."""
        self._store = store
        self._clock = clock
        self._me = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._live: Mapping[str, Live] = {}
        self._fresh_until = float("-inf")
        self._changes = 0
        self._reading = asyncio.Lock()
        self._sums: dict[_Key, tuple[str, Counts]] = {}
        self._dirty: set[_Key] = set()
        self._flushing: asyncio.Task[None] | None = None

    async def live(self, deployment_id: str) -> Live | None:
        """The candidate beside this deployment, where it answers somebody."""
        if self._clock.monotonic() >= self._fresh_until:
            async with self._reading:  # hundreds may ask at this moment: one reads
                if self._clock.monotonic() >= self._fresh_until:
                    await run_in_threadpool(self._read)
        return self._live.get(deployment_id)

    def forget(self) -> None:
        """Some deployment changed: look again before the next answer."""
        with self._lock:
            self._changes += 1
            self._fresh_until = float("-inf")

    def note(self, live: Live, arm: Arm, counts: Counts) -> None:
        """Add up how an answer went. Called in an event loop, which then writes it down."""
        start = int(self._clock.now().timestamp()) // _STRETCH_S * _STRETCH_S
        key = (live.deployment_id, live.revision, arm, start)
        with self._lock:
            self._sums.setdefault(key, (live.project, Counts()))[1].add(counts)
            self._dirty.add(key)
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().create_task(self._flush_later())

    def flush(self) -> None:
        """Write down what was added since the last time; afterwards it is written, whoever else does so just now."""
        with self._writing:  # else older sums could be written over newer ones
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            told = [(key, self._sums[key][0], self._sums[key][1].to_json()) for key in sorted(self._dirty)]
            self._dirty.clear()
            newest = max((key[3] for key in self._sums), default=0)
            for key in [key for key in self._sums if key[3] < newest - 6 * _STRETCH_S]:
                del self._sums[key]
        try:
            with self._store.write() as session:
                for (deployment_id, revision, arm, start), project, counts in told:
                    row = session.get(CanaryCounts, (deployment_id, revision, arm, self._me, start))
                    if row is None:
                        row = CanaryCounts(
                            deployment_id=deployment_id,
                            revision=revision,
                            arm=arm,
                            gateway=self._me,
                            start=start,
                            project=project,
                        )
                        session.add(row)
                    row.counts = counts
        except SQLAlchemyError as error:
            # Decisions are made from what there is: the same sums are written with the next answer.
            log.warning("counts of answers were not written down: %s", type(error).__name__)
            with self._lock:
                self._dirty |= {key for key, _, _ in told if key in self._sums}

    async def _flush_later(self) -> None:
        await asyncio.sleep(_FLUSH_S)
        await run_in_threadpool(self.flush)

    def _read(self) -> None:
        changes = self._changes
        states = (CanaryState.READY, CanaryState.PROMOTING)
        with self._store.read() as session:
            rows = session.scalars(select(Canary).where(Canary.ended_at.is_(None), Canary.state.in_(states)))
            found = {
                row.deployment_id: Live(
                    deployment_id=row.deployment_id,
                    project=row.project,
                    revision=row.revision,
                    weight=100 if row.state == CanaryState.PROMOTING else row.weight,
                    sticky=row.sticky,
                )
                for row in rows
            }
        with self._lock:
            self._live = found
            if changes == self._changes:
                self._fresh_until = self._clock.monotonic() + REMEMBERED_S


class Reading:
    """How one answer goes, while it passes. `close` tells it, once; an answer whose client left is not told."""

    def __init__(self, arms: Arms, live: Live, arm: Arm, clock: Clock) -> None:
        self._arms, self._live, self._arm, self._clock = arms, live, arm, clock
        self._began = 0.0
        self._counts = Counts(answers=1)
        self._streamed = self._failed = self._over = False
        self._body = b""
        self._texts: dict[int, list[str]] = {}
        self._length = 0
        self._truncated = False

    def ask(self) -> None:
        """The request goes out."""
        self._began = self._clock.monotonic()

    def begin(self, status: int, *, streamed: bool) -> None:
        """The head of the answer is there."""
        self._failed, self._streamed = status >= 500, streamed
        self._over = not streamed and 400 <= status < 500  # what was wrong was the request

    def events(self, block: bytes) -> None:
        """Whole events of a stream."""
        if not self._counts.first:
            self._counts.first = {bucket_of(self._clock.monotonic() - self._began): 1}
        for event in block.split(b"\n\n"):
            if event.startswith(b"data: {"):
                self._look(event[6:])

    def whole(self, body: bytes) -> None:
        """All of an answer that is no stream."""
        self._body = body if len(body) <= 4 * _MOST_TEXT else b""

    def fail(self) -> None:
        """There was no answer, or it broke off."""
        self._failed = True

    def close(self) -> None:
        """The answer is whole, or failed."""
        if self._over:
            return
        self._over = True
        if self._failed:
            self._counts.errors, self._counts.first = 1, {}
        else:
            if not self._streamed:
                self._counts.whole = {bucket_of(self._clock.monotonic() - self._began): 1}
                self._look(self._body)
            self._counts.probed = 1
            self._counts.truncated = int(self._truncated)
            self._counts.repeated = int(any(repeats("".join(parts)) for parts in self._texts.values()))
        self._arms.note(self._live, self._arm, self._counts)

    def _look(self, body: bytes) -> None:
        """Text and end of the choices in an answer, or in a part of one."""
        try:
            answer = from_json(body)
        except ValueError:
            return
        if isinstance(answer, dict) and "error" in answer:
            self._failed = True
        for choice in answer.get("choices", ()) if isinstance(answer, dict) else ():
            text = _text(choice)
            if text and self._length < _MOST_TEXT:
                self._length += len(text)
                self._texts.setdefault(choice.get("index", 0), []).append(text)
            self._truncated = self._truncated or choice.get("finish_reason") == "length"


def _text(choice: Mapping[str, Any]) -> str | None:
    part = choice.get("delta") or choice.get("message")
    found = part.get("content") if isinstance(part, dict) else choice.get("text")
    return found if isinstance(found, str) else None
