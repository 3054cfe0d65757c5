"""Paths and earlier sweeps in requests: a project reaches its own part of the store, and the machine outside of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from service import rows
from service.auth import Caller
from service.clock import SystemClock
from service.errors import Invalid
from service.reach import check_reach, check_warm_start
from service.settings import Settings
from service.store import Store

pytestmark = pytest.mark.quick


@pytest.fixture
def session(settings: Settings) -> Iterator[Session]:
    """Of the project `mine`; the store holds a sweep of it and one of another project."""
    store = Store(settings.database_url)
    with store.write() as writing:
        for project in ("mine", "theirs"):
            order = rows.Order(kind="sweep", name="a", spec={}, plan={}, spec_hash="0" * 64)
            row = rows.create_sweep(writing, order, Caller(key_id="k", name="k", project=project), SystemClock().now())
            row.id = f"swp_{project}"
            (settings.run_dir(row.id) / "base").mkdir(parents=True)
    with store.within("mine").read() as reading:
        yield reading
    store.close()


def test_ones_own_part_and_the_machine_around_the_store_are_reached(session: Session, settings: Settings) -> None:
    own = settings.run_dir("swp_mine")
    for path in (own, own / "base", own / "not there", settings.store.parent, "/usr/share/models/x"):
        check_reach(session, settings, {"base_model": str(path)})
    for text in ("practice", "org/name", "org/name:train", "a / b", ""):
        check_reach(session, settings, {"dataset": {"train": text}})


def test_the_rest_of_the_store_is_not(session: Session, settings: Settings, tmp_path: Path) -> None:
    theirs = settings.run_dir("swp_theirs")
    (tmp_path / "way-in").symlink_to(theirs)
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    odd = ("~/x", "../x", f"{theirs}\0", f"{theirs}/\ud800", f"{tmp_path}/ring/x")
    paths = (
        theirs,
        theirs / "base",
        f"{theirs}:train",
        settings.run_dir("swp_nobodys"),
        settings.store,
        settings.store / "sweeps",
        settings.store / "datasets" / "dst_1" / "rows.jsonl",
        f"{settings.run_dir('swp_mine')}/../swp_theirs",
        f"//{theirs}",
        tmp_path / "way-in" / "base",
        *odd,
    )
    for path in map(str, paths):
        with pytest.raises(Invalid, match="there is no file or directory") as caught:
            check_reach(session, settings, {"judge": [{"model": path}]})
        assert [pointer for pointer, _ in caught.value.errors] == ["/judge/0/model"]


def test_a_body_may_be_nested_as_deep_as_it_likes(session: Session, settings: Settings) -> None:
    body: dict[str, object] = {"at the bottom": str(settings.run_dir("swp_theirs"))}
    for _ in range(2_000):
        body = {"x": body}
    with pytest.raises(Invalid):
        check_reach(session, settings, body)


def test_earlier_sweeps_are_the_projects_own(session: Session) -> None:
    check_warm_start(session, {"warm_start": ["swp_mine"], "methods": [{"warm_start": ["swp_mine"]}]})
    for id in ("swp_theirs", "swp_nobodys", "swp\0"):
        with pytest.raises(Invalid, match=r"there is no sweep .*GET /v1/sweeps"):
            check_warm_start(session, {"methods": [{}, {"warm_start": [id]}]})
