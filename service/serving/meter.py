"""Who may ask models now: limits of keys and projects, held in memory and shared between the API's processes.

No request waits for the database: it is asked once a second while somebody with a limit is at work, and before the
first request after a rest. Each process adds what it let through to `inference_use` and reads what all of them did, so
two processes can let through together what comes within that second too much, and no more.
"""

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service.auth import Caller
from service.clock import Clock
from service.errors import TooMany
from service.models_inference import InferenceUse
from service.serving.rates import DAY_S, MINUTE_S, NO_LIMITS, Rule, Window, in_openais_words
from service.store import Store

log = logging.getLogger(__name__)

SHARED_EVERY_S = 1.0
"""How often processes tell each other."""
_RESTED_S = 2.0  # what is known of the others is older: ask before the next answer
_FORGOTTEN_S = 120.0  # who did not ask for so long is read anew when they do
_SWEPT_EVERY_S = 600.0
_MAX_TOKENS = 10**12  # of one request, whatever it asks for: it is a number in a database

_Span = tuple[str, int, int]
"""Subject, seconds, start."""


@dataclass(kw_only=True)
class _Sums:
    """Requests and tokens of one span: what all processes have told, and what this one has not told yet."""

    project: str
    shared: tuple[int, int] = (0, 0)
    mine: list[int] = field(default_factory=lambda: [0, 0])
    telling: tuple[int, int] = (0, 0)

    def of(self, what: str) -> int:
        place = 0 if what == "requests" else 1
        return max(0, self.shared[place] + self.mine[place] + self.telling[place])


class Ticket:
    """One request that was let through, and what it holds of its limits."""

    def __init__(
        self, meter: "Meter", project: str, spans: Iterable[_Span], held: int, headers: Mapping[str, str]
    ) -> None:
        self.headers = headers
        self._meter = meter
        self._project = project
        self._spans = tuple(spans)
        self._held = held

    def settle(self, tokens: int) -> None:
        """What it took in the end, in place of what was held for it. Called once."""
        self._meter.add(self._project, self._spans, min(tokens, _MAX_TOKENS) - self._held)


class Meter:
    """The limits of all callers. Used from the event loop; `share` from any thread."""

    def __init__(self, store: Store, clock: Clock) -> None:
        """`store`: the whole database, whatever project asks."""
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()  # guards the sums; never held over a query
        self._sharing = threading.Lock()
        self._sums: dict[_Span, _Sums] = {}
        self._known: dict[str, float] = {}  # subject -> when it was last read, monotonic
        self._asked: dict[str, float] = {}  # subject -> when it last asked
        self._touched = False
        self._swept_at = float("-inf")

    async def admit(self, caller: Caller, tokens: Callable[[], int]) -> Ticket | None:
        """Let a request through that may take so many tokens, and hold them; None: no limit concerns it.

        Raises TooMany (429): what, and when to ask again.
        """
        if caller.limits == NO_LIMITS == caller.project_limits:
            return None
        rules = [
            (subject, rule)
            for subject, limits in ((caller.key_id, caller.limits), (caller.project, caller.project_limits))
            for rule in limits.rules()
        ]
        subjects = {subject: caller.project for subject, _ in rules}
        if self._are_stale(subjects):
            await run_in_threadpool(self.share, subjects)
        return self._take(caller, rules, min(tokens(), _MAX_TOKENS))

    async def keep_shared(self) -> None:
        """Tell and ask the other processes once a second, while there is something to tell. Until it is cancelled."""
        while True:
            await asyncio.sleep(SHARED_EVERY_S)
            if self._touched:
                await run_in_threadpool(self.share)

    def share(self, also: Mapping[str, str] | None = None) -> None:
        """Tell what was taken here, read what was taken everywhere. `also`: subjects (-> project) to read as well.

        A database that does not answer leaves each process to its own count.
        """
        with self._sharing:
            now_s, at = self._clock.now().timestamp(), self._clock.monotonic()
            told = self._begin(also or {}, now_s)
            try:
                seen = self._exchange(told, now_s)
            except (DBAPIError, NoConnection) as error:
                log.warning("limits are not shared: %s", type(error).__name__)
                seen = None
            self._end(told, seen, [*self._known, *(also or {})], at)

    def add(self, project: str, spans: Iterable[_Span], tokens: int) -> None:
        """Of a request that was let through, once it is known what it took; less than nothing gives back."""
        now_s = self._clock.now().timestamp()
        with self._lock:
            for span in spans:
                if not _is_past(span, now_s):  # a long answer counts in the minute that let it through
                    self._touched = True
                    self._sums.setdefault(span, _Sums(project=project)).mine[1] += tokens

    def _are_stale(self, subjects: Iterable[str]) -> bool:
        now = self._clock.monotonic()
        with self._lock:
            return any(now - self._known.get(subject, -math.inf) > _RESTED_S for subject in subjects)

    def _take(self, caller: Caller, rules: list[tuple[str, Rule]], tokens: int) -> Ticket:
        now_s, at = self._clock.now().timestamp(), self._clock.monotonic()
        with self._lock:
            self._touched = True
            self._asked |= {subject: at for subject, _ in rules}
            for subject, rule in rules:
                window, need = self._window(subject, rule, now_s), 1 if rule.what == "requests" else max(1, tokens)
                wait_s = window.room_in_s(need)
                if wait_s is None or wait_s > 0:
                    whose = "this key" if subject == caller.key_id else "this project"
                    raise _too_many(window, whose, need, wait_s, self._headers(rules, now_s))
            spans = list({_span(subject, rule.span_s, now_s): None for subject, rule in rules})
            for span in spans:
                sums = self._sums.setdefault(span, _Sums(project=caller.project))
                sums.mine[0] += 1
                sums.mine[1] += tokens
            return Ticket(self, caller.project, spans, tokens, self._headers(rules, now_s))

    def _headers(self, rules: list[tuple[str, Rule]], now_s: float) -> dict[str, str]:
        """Of the rule of each kind of which the least is left."""
        headers = {}
        for what in ("requests", "tokens"):
            windows = [self._window(subject, rule, now_s) for subject, rule in rules if rule.what == what]
            if windows:
                tightest = min(windows, key=lambda window: window.left)
                headers[f"x-ratelimit-limit-{what}"] = str(tightest.rule.limit)
                headers[f"x-ratelimit-remaining-{what}"] = str(tightest.left)
                headers[f"x-ratelimit-reset-{what}"] = in_openais_words(tightest.reset_s)
        return headers

    def _window(self, subject: str, rule: Rule, now_s: float) -> Window:
        _, span_s, start = span = _span(subject, rule.span_s, now_s)
        previous, current = (self._sums.get((subject, span_s, start - span_s)), self._sums.get(span))
        return Window(
            rule=rule,
            previous=0 if previous is None else previous.of(rule.what),
            current=0 if current is None else current.of(rule.what),
            elapsed_s=now_s - start,
        )

    def _begin(self, also: Mapping[str, str], now_s: float) -> dict[_Span, _Sums]:
        """Mark what is to be told, forget what is past, make room for what is to be read."""
        rested = self._clock.monotonic() - _FORGOTTEN_S
        with self._lock:
            self._touched = False
            self._asked = {subject: at for subject, at in self._asked.items() if at > rested}
            self._sums = {
                span: sums
                for span, sums in self._sums.items()
                if not _is_past(span, now_s) and (span[0] in self._asked or sums.mine != [0, 0])
            }
            for subject, project in also.items():
                for span_s in (MINUTE_S, DAY_S):
                    _, _, start = span = _span(subject, span_s, now_s)
                    for each in (span, (subject, span_s, start - span_s)):
                        self._sums.setdefault(each, _Sums(project=project))
            for sums in self._sums.values():
                sums.telling, sums.mine = (sums.mine[0], sums.mine[1]), [0, 0]
            return dict(self._sums)

    def _exchange(self, told: Mapping[_Span, _Sums], now_s: float) -> dict[_Span, tuple[int, int]]:
        news = {span: sums for span, sums in sorted(told.items()) if sums.telling != (0, 0)}
        at = self._clock.monotonic()
        sweep = at - self._swept_at > _SWEPT_EVERY_S
        if news or sweep:
            with self._store.write() as session:
                for (subject, span_s, start), sums in news.items():
                    _upsert(session, self._store.is_sqlite, subject, span_s, start, sums)
                if sweep:
                    past = [
                        (InferenceUse.span_s == span_s) & (InferenceUse.start < int(now_s) - 3 * span_s)
                        for span_s in (MINUTE_S, DAY_S)
                    ]
                    session.execute(delete(InferenceUse).where(or_(*past)))
            self._swept_at = at
        wanted = InferenceUse.subject.in_(sorted({subject for subject, _, _ in told}))
        recent = InferenceUse.start >= int(now_s) - 2 * InferenceUse.span_s
        with self._store.read() as session:
            rows = session.scalars(select(InferenceUse).where(wanted, recent)).all()
        return {(row.subject, row.span_s, row.start): (row.requests, row.tokens) for row in rows}

    def _end(
        self,
        told: Mapping[_Span, _Sums],
        seen: Mapping[_Span, tuple[int, int]] | None,
        subjects: Iterable[str],
        at: float,
    ) -> None:
        with self._lock:
            for span, sums in told.items():
                if seen is None:  # nothing got through: tell it the next time
                    sums.mine = [sums.mine[0] + sums.telling[0], sums.mine[1] + sums.telling[1]]
                    self._touched = self._touched or any(sums.mine)
                else:
                    sums.shared = seen.get(span, (0, 0))
                sums.telling = (0, 0)
            known = {subject for subject, _, _ in self._sums}
            self._known = {subject: at for subject in subjects if subject in known}


def _span(subject: str, span_s: int, now_s: float) -> _Span:
    return (subject, span_s, int(now_s // span_s) * span_s)


def _is_past(span: _Span, now_s: float) -> bool:
    _, span_s, start = span
    return start < now_s - 2 * span_s


def _upsert(session: Session, is_sqlite: bool, subject: str, span_s: int, start: int, sums: _Sums) -> None:
    requests, tokens = sums.telling
    # Both dialects write the same statement; SQLAlchemy has no common name for it.
    insert = sqlite.insert if is_sqlite else postgresql.insert
    row = {"subject": subject, "span_s": span_s, "start": start, "project": sums.project}
    added = insert(InferenceUse).values(**row, requests=requests, tokens=tokens)
    session.execute(
        added.on_conflict_do_update(
            index_elements=["subject", "span_s", "start"],
            set_={"requests": InferenceUse.requests + requests, "tokens": InferenceUse.tokens + tokens},
        )
    )


def _too_many(window: Window, whose: str, need: int, wait_s: float | None, headers: Mapping[str, str]) -> TooMany:
    limit = f"The limit of {whose} is {window.rule.limit} {window.rule.words}"
    if wait_s is None:
        text = f"{limit}, and this request may take {need}: ask for fewer."
        return TooMany(text, headers={**headers, "x-should-retry": "false"})
    seconds = max(1, math.ceil(wait_s))
    text = f"{limit}, of which {window.left} are left, and this request may take {need}: ask again in {seconds} s."
    return TooMany(text, headers={**headers, "retry-after": str(seconds)})
