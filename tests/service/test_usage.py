"""Accelerator-hours in the tables: the same records, the same hours as the driver's own count; by month and project."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.ingest import take_records
from service.models import Attempt, Sweep
from service.rows import Order, create_sweep, end_attempt, open_attempt
from service.settings import Settings
from service.states import AttemptState
from service.store import Store
from service.usage import hours_by_project, hours_by_sweep, month_of
from sweeps.hours import Hours
from sweeps.run_dir import Record
from tests.contracts import CALLER
from tests.service.conftest import Plane

NOON = datetime(2026, 9, 10, 12, tzinfo=UTC)


class Story:
    """A sweep with two workers a trial, and what its driver's journal says, record by record."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.driver = Hours(2, now=lambda: self.now)
        self.now = NOON
        plan = {"name": "a", "parallel": {"workers_per_trial": 2}}
        with store.write() as session:
            order = Order(kind="sweep", name="a", spec=plan, plan=plan, spec_hash="0" * 64)
            sweep = create_sweep(session, order, CALLER, NOON)
            open_attempt(session, sweep, NOON)
        self.id = sweep.id
        self._seq = 0

    def says(self, after_s: float, kind: str, trial: int = 0, **data: Any) -> None:
        """So many seconds later."""
        self.now += timedelta(seconds=after_s)
        self._seq += 1
        said = {"trial_id": f"trl_{trial:04d}", **data}
        at = self.now.isoformat()
        record = Record(seq=self._seq, attempt=1, at=at, type=kind, level="info", message="", data=said)
        self.driver.take(record)
        with self.store.write() as session:
            sweep = session.get_one(Sweep, self.id)
            attempt = session.get_one(Attempt, (self.id, sweep.attempt))
            take_records(session, sweep, attempt, [record], self.now)

    def hours(self, *, month: bool = False) -> float:
        """Of the project."""
        with self.store.read() as session:
            of_project = hours_by_project(session, ["default"], self.now, month=month).get("default", 0.0)
            if not month:
                assert hours_by_sweep(session, [self.id], self.now).get(self.id, 0.0) == of_project
        return of_project


@pytest.fixture
def story(settings: Settings) -> Story:
    return Story(Store(settings.database_url))


def test_the_tables_count_as_the_driver_does(story: Story) -> None:
    for after_s, kind, trial, data in (
        (0, "trial.created", 0, {}),
        (10, "trial.created", 1, {}),
        (5, "trial.rung", 0, {"step": 3, "metrics": {}}),
        (600, "trial.pruned", 0, {}),
        (300, "trial.completed", 1, {}),
        (1, "trial.completed", 1, {}),  # said twice: nothing
        (50, "replicate.created", 1, {"replicate": 1}),
        (5, "replicate.created", 1, {"replicate": 2}),
        (120, "replicate.failed", 1, {"replicate": 2}),
        (60, "replicate.completed", 1, {"replicate": 1}),
        (1, "trial.failed", 7, {}),  # never begun
        (1, "trial.created", 8, {}),
    ):
        story.says(after_s, kind, trial, **data)
        assert story.hours() == pytest.approx(story.driver.spent)
    story.now += timedelta(hours=1)  # the last one runs
    assert story.hours() == pytest.approx(story.driver.spent) and story.hours() > 2


def test_an_attempt_that_ended_holds_nothing_after_its_last_beat(story: Story) -> None:
    story.says(0, "trial.created")
    with story.store.write() as session:
        attempt = session.get_one(Attempt, (story.id, 1))
        end_attempt(session, attempt, AttemptState.LOST, "", NOON + timedelta(hours=9), NOON + timedelta(hours=1))
        open_attempt(session, session.get_one(Sweep, story.id), NOON)
    story.now = NOON + timedelta(hours=30)
    assert story.hours() == pytest.approx(2.0)
    story.says(0, "trial.created")
    story.says(3600, "trial.completed")
    assert story.hours() == pytest.approx(4.0), "the next attempt adds to it"


def test_hours_lie_in_the_month_that_they_were_taken_in(story: Story) -> None:
    story.now = datetime(2026, 12, 31, 23, tzinfo=UTC)
    story.says(0, "trial.created")
    story.now += timedelta(hours=3)
    assert (month_of(story.now), story.hours(month=True), story.hours()) == ("2027-01", 4.0, 6.0)
    story.says(0, "trial.completed")
    assert (story.hours(month=True), story.hours()) == (4.0, 6.0)
    story.now += timedelta(days=40)
    assert (story.hours(month=True), story.hours()) == (0.0, 6.0)


def test_a_clock_that_went_backwards_takes_nothing_away(story: Story) -> None:
    story.says(0, "trial.created")
    story.says(-500, "trial.completed")
    assert story.hours() == 0.0


def test_a_comparison_says_what_each_method_took(story: Story) -> None:
    story.says(0, "method.spent", method="dpo", accelerator_hours=1.25)
    story.says(0, "method.spent", method="simpo", accelerator_hours=0.5)
    story.says(0, "method.finished", method="orpo", best={})
    assert story.hours() == 1.75


def test_a_cancelled_sweep_holds_nothing(plane: Plane) -> None:
    sweep = plane.post()
    plane.turn()
    plane.drive(sweep["id"]).start().create(0)
    plane.turn()
    plane.client.post(f"/v1/sweeps/{sweep['id']}/cancel")
    plane.turn(3)
    assert plane.sweep(sweep["id"])["state"] == "CANCELLED"
    with plane.store.read() as session:
        before = hours_by_project(session, ["default"], plane.clock.now(), month=False)
        plane.clock.advance(3600)
        assert hours_by_project(session, ["default"], plane.clock.now(), month=False) == before
