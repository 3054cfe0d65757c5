"""Limits of inference: their arithmetic, what a request may take and took, and several processes that share them."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import TimeoutError as NoConnection

from service.auth import Caller
from service.errors import TooMany
from service.models_inference import InferenceUse
from service.serving.accounts import Account, asked_tokens
from service.serving.meter import Meter, Ticket
from service.serving.rates import DAY_S, RateLimits, Rule, Window, in_openais_words
from service.settings import Settings
from service.store import Store
from tests.fakes import FakeClock

pytestmark = pytest.mark.quick


# -- the arithmetic


def window(previous: int, current: int, elapsed_s: float, limit: int = 10) -> Window:
    rule = Rule(what="requests", span_s=60, limit=limit)
    return Window(rule=rule, previous=previous, current=current, elapsed_s=elapsed_s)


@pytest.mark.parametrize(
    ("previous", "current", "elapsed_s", "left", "wait_s"),
    [
        (0, 0, 30, 10, 0),
        (0, 9, 0, 1, 0),
        (0, 10, 45, 0, 15 + 60 * (1 - 9 / 10)),  # the span ends, then a tenth of it must have left the window
        (10, 0, 0, 0, 6),
        (10, 0, 6, 1, 0),
        (10, 5, 15, 0, 21),  # 12.5 are used; 10 (1 - 36 / 60) + 5 = 9
        (20, 3, 40, 0, 2),  # 20 / 3 + 3 = 9.67 are used; 20 (1 - 42 / 60) + 3 = 9
    ],
)
def test_what_is_left_and_when_there_is_room(
    previous: int, current: int, elapsed_s: float, left: int, wait_s: float
) -> None:
    at = window(previous, current, elapsed_s)
    assert at.left == left and at.room_in_s(1) == pytest.approx(wait_s)
    if wait_s:
        late = elapsed_s + wait_s + 1e-6
        then = window(previous, current, late) if late < 60 else window(current, 0, late - 60)
        assert then.room_in_s(1) == 0.0, "asking again then is let through"
    assert at.room_in_s(11) is None


def test_durations_as_openai_writes_them() -> None:
    shown = [in_openais_words(seconds) for seconds in (0, 0.017, 1, 59.6, 360, 86399)]
    assert shown == ["0s", "17ms", "1s", "1m0s", "6m0s", "23h59m59s"]


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 7, "n": 3}, 31),
        ({"messages": [{"content": [{"type": "text", "text": "x" * 40}]}], "max_completion_tokens": 7}, 17),
        ({"prompt": [[1, 2, 3], [4]], "max_tokens": True, "n": "3"}, 4),
        ({"prompt": ["x" * 8, "y" * 8]}, 4),
        ({"prompt": {"a": 1}, "max_tokens": -5, "n": 0}, 0),
        ({"prompt": [[[[[[[[1]]]]]]]]}, 0),
        ({}, 0),
    ],
)
def test_what_a_request_may_take(body: dict[str, Any], tokens: int) -> None:
    assert asked_tokens(body) == tokens


# -- over processes


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    store = Store(settings.database_url)
    yield store
    store.close()


CALLER = Caller(key_id="key_1", name="n", limits=RateLimits(requests_per_minute=10, tokens_per_day=1000))


def taken(meter: Meter, tokens: int = 10, caller: Caller = CALLER) -> Ticket:
    ticket = asyncio.run(meter.admit(caller, lambda: tokens))
    assert ticket is not None
    return ticket


def test_processes_share_a_limit(store: Store) -> None:
    clock = FakeClock()
    meters = [Meter(store, clock) for _ in range(2)]
    for meter in meters:
        for _ in range(4):
            taken(meter).settle(25)
        meter.share()
    shown = []
    for meter in meters:
        meter.share()
        headers = taken(meter, 0).headers
        shown.append((headers["x-ratelimit-remaining-requests"], headers["x-ratelimit-remaining-tokens"]))
    assert shown == [("1", "800"), ("1", "800")], "neither knows yet of the other's last one"
    for meter in reversed(meters):
        meter.share()
    with pytest.raises(TooMany):
        taken(meters[0])
    newcomer = Meter(store, clock)
    with pytest.raises(TooMany, match="10 requests per minute"):
        taken(newcomer)
    with store.read() as session:
        rows = {(row.span_s, row.requests, row.tokens) for row in session.scalars(select(InferenceUse))}
    assert rows == {(60, 10, 200), (86400, 10, 200)}


def test_what_a_rested_process_knows_is_read_anew(store: Store) -> None:
    clock = FakeClock()
    one, other = Meter(store, clock), Meter(store, clock)
    taken(one)
    clock.advance(10)
    for _ in range(8):
        taken(other)
    other.share()
    assert taken(one).headers["x-ratelimit-remaining-requests"] == "0"


NO_CONNECTION = NoConnection("no connection")


class Silent(Store):
    """A database that does not answer."""

    def read(self) -> Any:
        raise NO_CONNECTION

    def write(self, **patience: Any) -> Any:
        raise NO_CONNECTION


def test_without_the_database_each_process_counts_for_itself(settings: Settings, store: Store) -> None:
    clock = FakeClock()
    meter = Meter(Silent(settings.database_url), clock)
    for _ in range(10):
        taken(meter)
        meter.share()
    with pytest.raises(TooMany):
        taken(meter)
    meter._store = store
    meter.share()
    with store.read() as session:
        assert {row.requests for row in session.scalars(select(InferenceUse))} == {10}, "told as soon as it can be"


def test_an_answer_longer_than_its_window_still_counts_for_the_day(store: Store) -> None:
    clock = FakeClock()
    meter = Meter(store, clock)
    ticket = taken(meter, 0)
    clock.advance(600)
    meter.share()
    ticket.settle(990)
    meter.share()
    with pytest.raises(TooMany, match="1000 tokens per day"):
        taken(Meter(store, clock), 100)


def test_old_spans_go(store: Store) -> None:
    clock = FakeClock()
    meter = Meter(store, clock)
    taken(meter)
    meter.share()
    clock.advance(3 * DAY_S)
    taken(meter)
    meter.share()
    with store.read() as session:
        starts = {row.start for row in session.scalars(select(InferenceUse))}
    assert min(starts) > clock.now().timestamp() - 2 * DAY_S
    assert len(meter._sums) <= 4, "nor is more kept in memory"


def test_a_caller_without_limits_costs_nothing(store: Store) -> None:
    meter = Meter(store, FakeClock())
    assert asyncio.run(meter.admit(Caller(key_id="key_2", name="n"), lambda: 10**15)) is None
    assert not meter._sums and not meter._touched


def test_an_account_is_settled_once() -> None:
    told: list[tuple[int, int]] = []
    account = Account(lambda read, written: told.append((read, written)))
    account.whole(b'{"usage": {"prompt_tokens": 1, "completion_tokens": 2}}')
    account.close()
    account.close()
    assert told == [(1, 2)]
