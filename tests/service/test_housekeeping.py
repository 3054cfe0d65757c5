"""What is forgotten, and that it is not forgotten by a wrong clock."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from service.housekeeping import Housekeeping
from service.idempotency import KEPT, Posts
from service.models import IdempotentAnswer
from service.settings import Settings
from service.store import Store
from tests.fakes import FakeClock

pytestmark = pytest.mark.quick


class Home:
    """Housekeeping over one answer that is past its time by the right clock."""

    def __init__(self, settings: Settings) -> None:
        self.store, self.clock = Store(settings.database_url), FakeClock()
        self.clock.jump((datetime.now(UTC) - self.clock.now()).total_seconds())
        posts = Posts(self.store, self.clock, lambda name: None)
        self.keep_house = Housekeeping(self.store, settings, self.clock, posts)
        self.add("old", KEPT + timedelta(minutes=1))
        self.add("young", KEPT - timedelta(hours=2))

    def add(self, key: str, age: timedelta) -> None:
        with self.store.write() as session:
            told = {"request_hash": "", "status": 202, "headers": {}, "body": {}}
            session.add(IdempotentAnswer(principal="p", key=key, created_at=self.clock.now() - age, **told))

    def left(self) -> int:
        with self.store.read() as session:
            return session.scalar(select(func.count()).select_from(IdempotentAnswer)) or 0


@pytest.fixture
def home(settings: Settings) -> Home:
    return Home(settings)


def test_what_is_past_its_time_is_forgotten_at_the_second_call(home: Home) -> None:
    home.keep_house()
    assert home.left() == 2
    home.keep_house()
    assert home.left() == 1
    home.store.close()


@pytest.mark.parametrize("jump_s", [172_800.0, 7200.0, -172_800.0])
def test_a_clock_that_was_set_forgets_nothing(home: Home, jump_s: float) -> None:
    home.keep_house()
    home.clock.jump(jump_s)
    home.keep_house()  # it was set
    home.keep_house()  # it is steady again, and not the database's
    assert home.left() == 2
    home.clock.jump(-jump_s)
    home.keep_house()
    home.keep_house()
    assert home.left() == 1
    home.store.close()
