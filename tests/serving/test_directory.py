"""The gateway's short memory of deployments: how long, and who reads anew."""

import pytest

from service.serving.declared import DesiredDeployment
from service.serving.directory import Directory, Served
from tests.fakes import FakeClock

pytestmark = pytest.mark.quick

CHAMPION = DesiredDeployment(id="dep_1", name="best", model_path="/m", revision=1)
BEST = {"best": Served(id="dep_1", name="best", prefix="/d/best", champion=CHAMPION, idle_s=None)}


def test_one_at_a_time_is_sent_to_read_anew_and_the_others_go_on() -> None:
    clock = FakeClock()
    directory = Directory(clock)
    assert directory.remembered("prj_1") is None
    directory.remember("prj_1", BEST, directory.changes)
    assert directory.remembered("prj_1") == BEST and directory.remembered("prj_2") is None
    clock.advance(1.0)
    assert [directory.remembered("prj_1") for _ in range(3)] == [None, BEST, BEST]
    clock.advance(1.0)  # whoever was sent has not come back
    assert [directory.remembered("prj_1") for _ in range(2)] == [None, BEST]
    directory.remember("prj_1", {}, directory.changes)
    assert directory.remembered("prj_1") == {}


def test_what_changed_is_not_remembered_from_before() -> None:
    directory = Directory(FakeClock())
    changes = directory.changes
    directory.remember("prj_1", BEST, changes)
    directory.forget()
    assert directory.remembered("prj_1") is None
    directory.remember("prj_1", BEST, changes)  # read before the change
    assert directory.remembered("prj_1") is None
